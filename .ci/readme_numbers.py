#!/usr/bin/env python3
"""The numbers in README.md that follow from streamlite.py: the lines of its sections, and its sum.

    python3 .ci/readme_numbers.py --check       exit code 1, and what differs, if they are not right
    python3 .ci/readme_numbers.py --write       put them right

The map's rows are "| NAME | FIRST-LAST | ...", one for each banner of the module, in its order; the
first row is what stands before the first banner. The sum's row is "| VERSION | `SHA-256` |", for the
module's own version. Standard library only.
"""
import argparse
import hashlib
import pathlib
import re
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
HEADER = "(header)"
RULE = "# " + "-" * 98
ROW = re.compile(r"^\| ([(A-Z][^|]*?) \| (\d+-\d+) \|", re.M)


def sections(source):
    """Each section's name, and its first and last line.

    A banner is a rule, a line with the name, and, where there is no text below the name, a rule. A
    section begins with its banner.
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
