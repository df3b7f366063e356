#!/usr/bin/env python3
"""A real CPython for Windows, run by Wine: builds it, and runs it.

    wine_python.py 3.13 -c "import sys; print(sys.version)"     any arguments of python.exe
    wine_python.py --build newest                               the newest that can be built here

No download of python.org is needed.  Panda3D's wheels for Windows carry pythonXY.dll and all
extension modules, because Panda3D packs games with them; the standard library's own files come from
a Python of the same minor version on this machine, the wheel through pip from PyPI, and python.exe
is launcher.c.  Everything is kept in .ci/.windows.

It needs the Debian packages wine and gcc-mingw-w64-x86-64-win32.  The output of python.exe must not
be a regular file (`| cat` helps): Wine takes pipes and terminals.
"""
import glob
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
HOME = HERE.parent / ".windows"
WHEEL = "panda3d==1.10.16"  # there is one for each CPython from 3.6 to 3.13
COMPILER = "x86_64-w64-mingw32-gcc-win32"
# Left out of the copy of the standard library: what belongs to Linux, and what no test needs.
LEFT_OUT = (
    "__pycache__", "config-*", "dist-packages", "ensurepip", "idlelib", "lib-dynload", "lib2to3",
    "site-packages", "test", "tests", "tkinter", "turtledemo",
)


class Unavailable(Exception):
    """This Windows Python cannot be had here; the text says why."""


def environment():
    """The variables of a process in Wine: one prefix of our own, nothing said by Wine itself."""
    kept = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "LC_", "WINE"))
    }
    return dict(
        kept, WINEPREFIX=str(HOME / "prefix"), WINEARCH="win64", WINEDEBUG="-all", LANG="C.UTF-8",
        WINEDLLOVERRIDES="mscoree,mshtml=")  # neither asks to install .NET or a browser


def command(minor):
    """What starts python.exe; the arguments follow."""
    return ["wine", str(HOME / minor / "python.exe")]


def windows_path(path):
    """The name under which Wine knows a path of this machine."""
    return "Z:" + str(pathlib.Path(path).resolve()).replace("/", "\\")


def numbers(text):
    return [int(part) for part in re.findall(r"\d+", text)]


def standard_libraries():
    """The folders of this machine's standard libraries, by minor version: the latest of each."""
    pyenv = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")
    found = {}
    for parent in ("/usr/lib", "/usr/local/lib", pyenv + "/versions/3.*/lib"):
        for folder in sorted(glob.glob(parent + "/python3.*"), key=numbers):
            if os.path.exists(folder + "/os.py") and os.path.exists(folder + "/asyncio/events.py"):
                found[os.path.basename(folder)[len("python"):]] = pathlib.Path(folder)
    return found


def run(*arguments, seconds, **options):
    """The output of a program that has to succeed."""
    try:
        done = subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=seconds, **options)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(str(error)) from None
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode:
        last = (said.splitlines() or ["exit code %d" % done.returncode])[-1]
        raise Unavailable("%s: %s" % (os.path.basename(arguments[0]), last))
    return said


def build(minor):
    """Have the Windows Python of this minor version, or of the newest; returns which it is."""
    for tool in ("wine", COMPILER):
        if not shutil.which(tool):
            raise Unavailable("%s is not installed" % tool)
    libraries = standard_libraries()
    if minor == "newest":
        failures = []
        for candidate in sorted(libraries, key=numbers, reverse=True):
            try:
                return build(candidate)
            except Unavailable as reason:
                failures.append("%s: %s" % (candidate, reason))
        raise Unavailable("; ".join(failures) or "this machine has no Python")
    if minor not in libraries:
        raise Unavailable("there is no standard library of Python %s on this machine" % minor)
    if not (HOME / minor / "python.exe").exists():
        HOME.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=str(HOME)) as work:
            assemble(minor, libraries[minor], pathlib.Path(work))
    # The first process also makes Wine's prefix, which takes some 15 s.  Two that start at the same
    # moment may wait for each other for ever.
    program = "import asyncio, ctypes, ssl, sys; print('it runs', sys.version)"
    said = ""
    for _ in range(3):
        try:
            said = run(*command(minor), "-c", program, env=environment(), seconds=60)
        except Unavailable as reason:
            said = str(reason)
        if "it runs " + minor in said:
            return minor
    raise Unavailable("it does not run: %s" % said[-300:])


def assemble(minor, library, work):
    """Make its folder, first under another name: what is there is whole."""
    tag, folder = minor.replace(".", ""), work / minor
    run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
        "--platform", "win_amd64", "--implementation", "cp", "--python-version", tag,
        "--dest", str(work), WHEEL, seconds=240)
    (folder / "DLLs").mkdir(parents=True)
    with zipfile.ZipFile(str(next(work.glob("*.whl")))) as wheel:
        for name in wheel.namelist():
            base = os.path.basename(name)
            low = base.lower()
            if os.path.dirname(name) != "deploy_libs" or not low.endswith((".dll", ".pyd")):
                continue
            if low.startswith(("api-ms-", "ucrtbase", "_wmi")):
                continue  # the C library is Wine's; and to ask WMI for the version crashes there
            beside = low.startswith(("python", "vcruntime"))
            target = folder / low if beside else folder / "DLLs" / base
            target.write_bytes(wheel.read(name))
    shutil.copytree(str(library), str(folder / "Lib"), ignore=shutil.ignore_patterns(*LEFT_OUT))
    run(COMPILER, "-municode", "-O1", "-s", '-DPYTHON_DLL=L"python%s.dll"' % tag,
        "-o", str(folder / "python.exe"), str(HERE / "launcher.c"), seconds=60)
    shutil.rmtree(str(HOME / minor), ignore_errors=True)
    folder.rename(HOME / minor)


def main(arguments):
    if not arguments or arguments == ["--build"]:
        print(__doc__, file=sys.stderr)
        return 2
    only_build = arguments[0] == "--build"
    try:
        minor = build(arguments[1 if only_build else 0])
    except Unavailable as reason:
        print(reason, file=sys.stderr)
        return 3
    if only_build:
        print(minor)
        return 0
    return subprocess.call(command(minor) + arguments[1:], env=environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
