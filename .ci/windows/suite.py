#!/usr/bin/env python3
"""The project's tests under a Python for Windows, one line a test.

    suite.py 3.13                       all tests, on Windows' own event loop, the proactor
    suite.py 3.13 --selector            the selector loop: tests of classes that speak of asyncio
    suite.py 3.13 [--selector] WORD...  those with one of these words in their names

It prints "ok", "FAIL" (and why) or "skip" for each test, and at last "N passed, N failed,
N skipped"; the exit code is 1 if one failed.  A test that hangs tells where its threads are and
fails; its process ends, and another goes on behind it.

This file runs on both sides: here it starts itself in Wine and reads what comes; there it runs the
tests, in Python 3.6 and newer.
"""
import argparse
import asyncio
import collections
import faulthandler
import functools
import inspect
import json
import os
import pathlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
import unittest

HANG = 45  # seconds for one test
MARK = "\x1e"  # begins a line that is ours; all other output is the tests'


# ---- inside Wine ---------------------------------------------------------------------------------


class Reporter(unittest.TestResult):
    """Writes a line of JSON when a test begins, and one when it ends."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers  # of the tests; not every Python tells of the beginning of each
        self.current, self.troubles, self.reason = None, [], None
        # The tests may do with file descriptor 1 what they like.
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")

    def tell(self, **facts):
        self.out.write("\n%s%s\n" % (MARK, json.dumps(facts)))
        self.out.flush()

    def startTest(self, test):
        super().startTest(test)
        self.current, self.troubles, self.reason = test, [], None
        self.tell(begins=name_of(test), number=self.numbers[name_of(test)])
        self.started = time.perf_counter()
        faulthandler.dump_traceback_later(HANG, exit=True)

    def stopTest(self, test):
        if self.current is None:  # a test that is skipped, in Python 3.12.1
            return
        faulthandler.cancel_dump_traceback_later()
        self.tell_end(test, time.perf_counter() - self.started)
        self.current = None
        super().stopTest(test)

    def tell_end(self, test, seconds=0.0):
        kind = "failed" if self.troubles else "passed" if self.reason is None else "skipped"
        why = "\n".join(self.troubles) or self.reason or ""
        self.tell(ended=kind, name=name_of(test), seconds=seconds, why=why)
        self.troubles, self.reason = [], None

    def trouble(self, test, error):
        text = error
        if not isinstance(error, str):
            text = "".join(traceback.format_exception(*error))
        self.troubles.append("%s\n%s" % (test, text))
        if self.current is None:  # in the preparation of a class or of the module
            self.tell_end(test)

    addError = addFailure = trouble

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self.trouble(subtest, error)

    def addSkip(self, test, reason):
        self.reason = reason
        if self.current is None:
            self.tell_end(test)

    def addUnexpectedSuccess(self, test):
        self.trouble(test, "an unexpected success")


def name_of(test):
    return test.id().replace("test_streamlite.", "")


def flat(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


@functools.lru_cache(maxsize=None)
def is_asynchronous(test_class):
    """Whether a method of the class has a coroutine in it, or uses a name with "async" in it."""
    codes = [value.__code__ for value in vars(test_class).values() if inspect.isfunction(value)]
    for code in codes:  # grows
        if code.co_flags & inspect.CO_COROUTINE or "async" in " ".join(code.co_names).lower():
            return True
        codes += filter(inspect.iscode, code.co_consts)
    return False


def run_tests(selector, first, words):
    """The tests from number `first` on."""
    if selector:
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    sys.path.insert(0, os.getcwd())
    import test_streamlite

    def is_wanted(test):
        if words:
            return any(word in name_of(test) for word in words)
        return not selector or is_asynchronous(type(test))

    loaded = flat(unittest.defaultTestLoader.loadTestsFromModule(test_streamlite))
    tests = list(filter(is_wanted, loaded))
    reporter = Reporter({name_of(test): number for number, test in enumerate(tests)})
    unittest.TestSuite(tests[first:]).run(reporter)
    reporter.tell(over=True)


# ---- on this machine -----------------------------------------------------------------------------


class Guest:
    """A process in Wine that runs the tests from a number on."""

    def __init__(self, arguments, folder, first):
        import wine_python
        line = wine_python.command(arguments.minor)
        line += [wine_python.windows_path(__file__), "--inside", str(first)]
        line += ["--selector"] * arguments.selector + [arguments.minor] + arguments.words
        self.process = subprocess.Popen(
            line, cwd=folder, env=wine_python.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line.decode("utf-8", "replace").rstrip("\r\n"))
        self.lines.put(None)

    def messages(self, noise):
        """What it tells, until it ends or is stuck; what else is printed goes to `noise`."""
        quiet_since = time.monotonic()
        try:
            while True:
                ended = self.process.poll() is not None
                try:
                    line = self.lines.get(timeout=1)
                except queue.Empty:
                    # A process that a test has left behind may hold the pipe open.
                    if ended or time.monotonic() - quiet_since > HANG + 20:
                        return
                    continue
                if line is None:
                    return
                quiet_since = time.monotonic()
                if line.startswith(MARK):
                    yield json.loads(line[len(MARK):])
                elif line:
                    noise.append(line)
        finally:
            self.process.kill()
            self.process.wait()


def watch(arguments, folder):
    """Run all tests, in as many processes as that takes; return the numbers of each kind."""
    counts = collections.Counter()
    first, over = 0, False
    while not over:
        noise, running, begun = collections.deque(maxlen=80), None, False
        for message in Guest(arguments, folder, first).messages(noise):
            if "begins" in message:
                begun, running, first = True, message["begins"], message["number"] + 1
                noise.clear()
            elif "ended" in message:
                running = None
                counts[message["ended"]] += 1
                tell(message)
            else:
                over = True
        if not over:  # it hung or crashed
            counts["failed"] += 1
            name = running or ("between two tests" if begun else "before the first test")
            why = "hung or crashed\n" + "\n".join(noise)
            tell({"ended": "failed", "name": name, "seconds": 0, "why": why})
            over = not begun
    return counts


def tell(message):
    name, seconds, why = message["name"], message["seconds"], message["why"].rstrip()
    if message["ended"] == "passed":
        print("ok   %s (%.2f s)" % (name, seconds), flush=True)
    elif message["ended"] == "skipped":
        print("skip %s: %s" % (name, why), flush=True)
    else:
        print("FAIL %s (%.2f s)" % (name, seconds))
        print(textwrap.indent(why, "    "), flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("minor")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--selector", action="store_true")
    parser.add_argument("--inside", type=int, metavar="FIRST", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside is not None:
        run_tests(arguments.selector, arguments.inside, arguments.words)
        return 0
    import wine_python
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    try:
        arguments.minor = wine_python.build(arguments.minor)
    except wine_python.Unavailable as reason:
        print("SKIPPED Windows Python %s: %s" % (arguments.minor, reason))
        print("0 passed, 0 failed, 1 skipped")
        sys.exit(0)
    project = pathlib.Path(__file__).resolve().parent.parent.parent
    # A copy: what the interpreter writes beside the files is not for others who use them now.
    with tempfile.TemporaryDirectory() as folder:
        for path in project.iterdir():
            if path.is_file() and not path.name.startswith("."):
                shutil.copy(str(path), folder)
        counts = watch(arguments, folder)
    numbers = tuple(counts[kind] for kind in ("passed", "failed", "skipped"))
    print("%d passed, %d failed, %d skipped" % numbers)
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
