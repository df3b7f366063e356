#!/usr/bin/env python3
"""The numbers in README.md that follow from streamlite.py: lines of sections, limits, its sum.

    python3 .ci/readme_numbers.py --check       exit code 1, and what differs, if they are not right
    python3 .ci/readme_numbers.py --write       put them right

The map's rows are "| NAME | FIRST-LAST | ...", one for each banner of the module, in its order; the
first row is what stands before the first banner. A limit's row is "| `NAME` | VALUE UNIT | ...";
every MAX_ of the module must have one, and the unit is kept. The sum's row is
"| VERSION | `SUM` |", for the module's own version. Standard library only.
"""
import argparse
import hashlib
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
sys.dont_write_bytecode = True
import streamlite  # noqa: E402

HEADER = "(header)"
RULE = "# " + "-" * 98
LIMIT = re.compile(r"^\| `([A-Z_]+)` \| (\d+)( s| [KMG]iB|) \|", re.M)
UNITS = {"": 1, " s": 1, " KiB": 1 << 10, " MiB": 1 << 20, " GiB": 1 << 30}
ROW = re.compile(r"^\| ([(A-Z][^|]*?) \| (\d+-\d+) \|", re.M)


def sections(source):
    """Each section's name, and its first and last line.

    A banner is a rule, a line with the name, perhaps some text, and a rule. A section begins with
    its banner.
    """
    lines = source.splitlines()
    starts, in_banner = [(HEADER, 1)], False
    for number, line in enumerate(lines, 1):
        if line == RULE:
            if not in_banner:
                starts.append((lines[number][2:], number))
            in_banner = not in_banner
    ends = [start - 1 for _, start in starts[1:]] + [len(lines)]
    return [(name, start, end) for (name, start), end in zip(starts, ends)]


def with_limits(readme):
    """README.md with the limits of the module."""
    values = {name: value for name, value in vars(streamlite).items()
              if name.isupper() and isinstance(value, (int, float))}
    rows = LIMIT.findall(readme)
    missing = {name for name in values if name.startswith("MAX_")} - {row[0] for row in rows}
    if missing:
        sys.exit("README.md has no row for " + ", ".join(sorted(missing)))

    def right(row):
        name, _, unit = row.groups()
        if name not in values:
            sys.exit("streamlite.py has no %s, of which README.md tells" % name)
        return "| `%s` | %d%s |" % (name, values[name] // UNITS[unit], unit)

    return LIMIT.sub(right, readme)


def corrected(readme, source):
    """README.md with the numbers of this source."""
    text = source.decode("utf-8")
    found = sections(text)
    rows = ROW.findall(readme)
    if [name for name, _ in rows] != [name for name, _, _ in found]:
        sys.exit("the map of README.md has the sections %s, and streamlite.py has %s" % (
            ", ".join(name for name, _ in rows), ", ".join(name for name, _, _ in found)))
    for name, start, end in found:
        readme = re.sub(r"^(\| %s \| )\d+-\d+( \|)" % re.escape(name),
                        r"\g<1>%d-%d\g<2>" % (start, end), readme, flags=re.M)
    readme = with_limits(readme)
    version = re.search(r'^__version__ = "(.*)"', text, re.M).group(1)
    row = r"^(\| %s \| `)[0-9a-f]{64}(` \|)" % re.escape(version)
    if not re.search(row, readme, re.M):
        sys.exit("README.md has no row for the sum of version " + version)
    return re.sub(row, r"\g<1>%s\g<2>" % hashlib.sha256(source).hexdigest(), readme, flags=re.M)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true")
    what.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    path = TOP / "README.md"
    with path.open(encoding="utf-8", newline="") as file:
        readme = file.read()
    right = corrected(readme, (TOP / "streamlite.py").read_bytes())
    if right == readme:
        return 0
    if arguments.write:
        with path.open("w", encoding="utf-8", newline="") as file:
            file.write(right)
        return 0
    for old, new in zip(readme.splitlines(), right.splitlines()):
        if old != new:
            print("- %s\n+ %s" % (old, new))
    return 1


if __name__ == "__main__":
    sys.exit(main())
