#!/usr/bin/env python3
"""Change streamlite.py a little, at random, and see whether the tests notice.

    python3 .ci/mutate.py [--seed 0] [--count 300] [--jobs 2] [--lines 100-400] [--verbose]
    python3 .ci/mutate.py --list [--lines 100-400]      every change that could be made
    python3 .ci/mutate.py --only 1234                   one of them, by its number, in full

A mutant is the file with one change: a comparison turned, `and` for `or`, an operand or a `not`
dropped, a number one off, a statement dropped, a condition forced, `return None`.  Left alone are
docstrings, annotations, `if TYPE_CHECKING`, overloads, imports, `__all__` and `__version__`.  The
source is edited as text at the positions that `ast` tells, so everything else stays as it is.

The tests run once on the file as it is, which tells how long each takes and which functions it
calls.  Then they run on each mutant until one fails, first those that call the changed function,
quick ones first.  A test that fails must fail twice.  What hangs is noticed, too.

The seed, the number of candidates and the file fix the sample.  Printed are the mutants that no
test noticed, with their lines, and the score.  Standard library only; Python 3.8 or newer; a
POSIX system.
"""

import argparse
import ast
import bisect
import collections
import concurrent.futures
import faulthandler
import io
import json
import keyword
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tokenize
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
TOP = os.path.dirname(HERE)
FILES = "streamlite.py", "test_streamlite.py", "README.md", "LICENSE"
PATIENCE = 10  # seconds that one test may take beside ten times what it takes on the original
MEMORY = 4 << 30  # bytes that a mutant's tests may hold


# ---- Candidates ----------------------------------------------------------------------------------

TURNED = {
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
}
STATEMENTS = (ast.Assign, ast.AugAssign, ast.Delete, ast.Expr, ast.Raise, ast.Break, ast.Continue)


class Mutant:
    """One change: the text from `start` to `end` becomes `new`.  `function` is the line on which
    the innermost function around it begins, as its code object tells it; 0 at the top level."""

    def __init__(self, kind, line, start, end, new, function):
        self.kind, self.line, self.start, self.end, self.new = kind, line, start, end, new
        self.function = function

    def apply(self, source):
        return source[: self.start] + self.new + source[self.end :]

    def told(self, source):
        old = shorten(" ".join(source[self.start : self.end].split()))
        return "line %d, %s: %s -> %s" % (self.line, self.kind, old, self.new or "nothing")


def shorten(text):
    return text if len(text) < 60 else text[:40] + " ... " + text[-12:]


class Finder:
    """Walks the tree of a source and collects its mutants."""

    def __init__(self, source):
        self.source, self.found, self.function = source, [], 0
        lines = source.splitlines(keepends=True)
        self._lines = [line.encode() for line in lines]
        self._starts = [0]
        for line in lines:
            self._starts.append(self._starts[-1] + len(line))
        self._tokens = []  # (start, end, text) of what may be an operator
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type in (tokenize.OP, tokenize.NAME):
                start = self._starts[token.start[0] - 1] + token.start[1]
                self._tokens.append((start, start + len(token.string), token.string))
        self._visit(ast.parse(source))

    def _at(self, line, column):
        """The index in the source of a position whose column counts bytes."""
        return self._starts[line - 1] + len(self._lines[line - 1][:column].decode())

    def _span(self, node):
        start = self._at(node.lineno, node.col_offset)
        return start, self._at(node.end_lineno, node.end_col_offset)

    def _add(self, kind, node, start, end, new):
        self.found.append(Mutant(kind, node.lineno, start, end, new, self.function))

    def _visit(self, node):
        if self._is_left_alone(node):
            return
        outer = self.function
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            # A code object begins at the first decorator.
            decorators = getattr(node, "decorator_list", [])
            self.function = min([node.lineno] + [item.lineno for item in decorators])
        self._change(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "type_comment"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self._visit(child)
        self.function = outer

    def _is_left_alone(self, node):
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.arg)):
            return True
        if isinstance(node, ast.If) and ast.dump(node.test).find("TYPE_CHECKING") > 0:
            return True
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return True  # a docstring, or the dots of an overload
        if isinstance(node, ast.Assign):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            return any(name in ("__all__", "__version__") for name in names)
        decorators = getattr(node, "decorator_list", [])
        return any(isinstance(item, ast.Name) and item.id == "overload" for item in decorators)

    def _change(self, node):
        if isinstance(node, ast.Compare):
            self._turn(node)
        elif isinstance(node, ast.BoolOp):
            self._change_operands(node)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            start, until = self._span(node)[0], self._bracketed(*self._span(node.operand))[0]
            self._add("a dropped not", node, start, until, "")
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            # One more than a limit in the hundreds is the same limit: it is doubled.
            other = node.value + 1 if abs(node.value) < 16 else 2 * node.value
            self._add("a number", node, *self._span(node), new=repr(other))
        elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
            if not isinstance(node.test, ast.Constant):
                for forced in "True", "False":
                    start, end = self._span(node.test)
                    self._add("a forced condition", node.test, start, end, forced)
        elif isinstance(node, ast.Return) and node.value is not None:
            if not (isinstance(node.value, ast.Constant) and node.value.value is None):
                self._add("return None", node, *self._span(node), new="return None")
        elif isinstance(node, STATEMENTS):
            self._add("a dropped statement", node, *self._span(node), new="pass")

    def _turn(self, node):
        operands = [node.left] + node.comparators
        for before, operator, after in zip(operands, node.ops, operands[1:]):
            old, new = TURNED[type(operator)]
            between = self._span(before)[1], self._span(after)[0]
            words = self._between(*between, old)
            self._add("a comparison", after, words[0][0], words[-1][1], new)

    def _change_operands(self, node):
        old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
        spans = [self._span(value) for value in node.values]
        for number, (start, end) in enumerate(spans):
            value = node.values[number]
            if number:
                words = self._between(spans[number - 1][1], start, old)
                self._add("and/or", value, words[0][0], words[0][1], new)
                # An operand's span leaves out the brackets around it.
                closed = self._bracketed(start, end)[1]
                self._add("a dropped operand", value, words[0][0], closed, "")
            else:
                until = self._between(end, spans[1][0], old)[0][1]
                until += len(self.source[until:]) - len(self.source[until:].lstrip())
                self._add("a dropped operand", value, self._bracketed(start, end)[0], until, "")

    def _between(self, start, end, words):
        """The tokens from `start` to `end` that are among the words."""
        first, last = (bisect.bisect_left(self._tokens, (place,)) for place in (start, end))
        return [token for token in self._tokens[first:last] if token[2] in words.split()]

    def _bracketed(self, start, end):
        """The span with the brackets around it, but not with those of a call."""
        while True:
            first = bisect.bisect_left(self._tokens, (start,))
            last = bisect.bisect_left(self._tokens, (end,))
            left, right = self._tokens[first - 1 : first], self._tokens[last : last + 1]
            if not (left and right and left[0][2] == "(" and right[0][2] == ")"):
                return start, end
            called = self._tokens[first - 2] if first > 1 else (0, 0, "")
            name = called[2].isidentifier() and not keyword.iskeyword(called[2])
            if called[1] == left[0][0] and (name or called[2] in (")", "]")):
                return start, end
            start, end = left[0][0], right[0][1]


def candidates(source):
    """Every change that could be made."""
    found = Finder(source).found
    return [mutant for mutant in found if source[mutant.start : mutant.end] != mutant.new]


def is_program(mutant, source):
    """Whether the mutant is Python, as what stands in brackets over several lines may not be."""
    try:
        compile(mutant.apply(source), "mutant", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


# ---- Running the tests, in a process of its own --------------------------------------------------


class Result(unittest.TestResult):
    """Stops at the first failure, and ends a process whose test hangs."""

    def __init__(self, limits, profile):
        super().__init__()
        self.failfast, self._limits, self._profile = not profile, limits, profile
        self.noticed, self.times, self.functions = None, {}, {}

    def startTest(self, test):
        super().startTest(test)
        limit = PATIENCE + 10 * self._limits.get(test.id(), 6.0)
        if not self._profile:
            # What hangs is told by the last line that was printed.
            print(json.dumps({"running": test.id()}), flush=True)
            faulthandler.dump_traceback_later(limit, exit=True, file=open(os.devnull, "w"))
        self._called, self._started = set(), time.monotonic()
        if self._profile:
            self.functions[test.id()] = self._called
            watch(self._called)

    def stopTest(self, test):
        if self._profile:
            watch(None)
        faulthandler.cancel_dump_traceback_later()
        self.times[test.id()] = time.monotonic() - self._started
        super().stopTest(test)

    def addError(self, test, err):
        super().addError(test, err)
        self.noticed = self.noticed or test.id()

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.noticed = self.noticed or test.id()

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.noticed = self.noticed or test.id()


def watch(called):
    """Note in the set the first lines of the functions of streamlite.py that are called."""

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.endswith("streamlite.py"):
            if not frame.f_code.co_filename.endswith("test_streamlite.py"):
                called.add(frame.f_code.co_firstlineno)

    threading.setprofile(note if called is not None else None)
    sys.setprofile(note if called is not None else None)


def flat(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from flat(item)
        else:
            yield item


def run_here(plan):
    """Run the tests of the module in this folder, in the order of the plan; print what came."""
    sys.path.insert(0, os.getcwd())
    try:
        tests = list(flat(unittest.defaultTestLoader.loadTestsFromName("test_streamlite")))
    except BaseException as error:
        print(json.dumps({"noticed": "importing it: %r" % error}), flush=True)
        return
    if plan["order"] is not None:
        places = {name: place for place, name in enumerate(plan["order"])}
        tests = [test for test in tests if test.id() in places]
        tests.sort(key=lambda test: places[test.id()])
    result = Result(plan["limits"], plan["profile"])
    output, sys.stdout, sys.stderr = sys.stdout, io.StringIO(), io.StringIO()
    sys.stdout = output if not plan["profile"] else sys.stdout
    unittest.TestSuite(tests).run(result)
    sys.stdout = output
    noticed = result.noticed
    if noticed is None and not result.wasSuccessful():
        noticed = "a fixture of a class"
    functions = {name: sorted(lines) for name, lines in result.functions.items()}
    answer = {"noticed": noticed, "times": result.times, "functions": functions}
    if plan["profile"]:
        failed = [(getattr(test, "test_case", test), words) for test, words in result.failures]
        failed += [(getattr(test, "test_case", test), words) for test, words in result.errors]
        answer["failed"] = sorted({test.id() for test, _ in failed if test.id() in result.times})
        answer["words"] = [words for _, words in failed]
    print(json.dumps(answer), flush=True)
    os._exit(0)  # threads that a mutant left behind are no matter here


# ---- The mutants ---------------------------------------------------------------------------------


class Runner:
    """Runs the tests on mutants, each in a folder of its own."""

    def __init__(self, options):
        self.options = options
        with open(os.path.join(options.folder, "streamlite.py"), encoding="utf-8") as file:
            self.source = file.read()
        self.times, self.functions, self.limit = {}, {}, 600.0

    def run(self, source, order=None, profile=False):
        """The runner's answer: `noticed` is the test that failed, or None."""
        with tempfile.TemporaryDirectory() as folder:
            for name in FILES:
                if os.path.exists(os.path.join(self.options.folder, name)):
                    shutil.copy(os.path.join(self.options.folder, name), folder)
            with open(os.path.join(folder, "streamlite.py"), "w", encoding="utf-8") as file:
                file.write(source)
            plan = json.dumps({"order": order, "limits": self.times, "profile": profile})
            with open(os.path.join(folder, "plan.json"), "w") as file:
                file.write(plan)
            command = [sys.executable, "-B", os.path.abspath(__file__), "--run", "plan.json"]
            with open(os.path.join(folder, "output"), "wb+") as output:
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=bound_memory,
                )
                try:
                    process.wait(self.limit)
                except subprocess.TimeoutExpired:
                    pass
                finally:
                    # Commands that the tests started are in the same session.
                    try:
                        os.killpg(process.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
                    process.wait()
                output.seek(0)
                lines = output.read().decode("utf-8", "replace").splitlines()
        answers = []
        for line in lines:
            try:
                answers.append(json.loads(line))
            except ValueError:
                continue  # what a test or the mutant printed
        answers = [answer for answer in answers if isinstance(answer, dict)]
        last = answers[-1] if answers else {}
        if "noticed" in last:
            return last
        return {"noticed": "%s (hung or died)" % last.get("running", "importing it")}

    def learn(self):
        """Run the tests on the file as it is."""
        started = time.monotonic()
        answer = self.run(self.source, profile=True)
        if answer.get("failed"):
            # The profiler holds on to frames, and so to what a test expects to be gone.
            answer["noticed"] = self.run(self.source, answer["failed"])["noticed"]
        if answer["noticed"]:
            print("The tests fail without any change: %s" % answer["noticed"])
            print("\n".join(answer.get("words", [])))
            sys.exit(2)
        self.times = answer["times"]
        self.functions = {name: set(lines) for name, lines in answer["functions"].items()}
        self.limit = 60 + 4 * sum(self.times.values())
        seconds = time.monotonic() - started
        print("%d tests on the file as it is: %.0f s" % (len(self.times), seconds), flush=True)

    def order(self, mutant):
        """All tests: first those that call the changed function, quick ones first.

        What only other processes call, the command's functions, no test is seen to call.  Tests of
        other processes call few functions here.
        """
        seen = any(mutant.function in called for called in self.functions.values())

        def key(name):
            called = self.functions[name]
            if seen or not mutant.function:
                return mutant.function not in called, self.times[name]
            return len(called) // 20, self.times[name]

        return sorted(self.times, key=key)

    def judge(self, mutant):
        """The test that notices the mutant, or None; and the seconds that it took."""
        source, order, started = mutant.apply(self.source), self.order(mutant), time.monotonic()
        noticed = None
        while order:
            noticed = self.run(source, order)["noticed"]
            if noticed not in order:
                break  # nothing, or what no single test can repeat
            # A test that fails only once tells of a busy machine: go on without it.
            if self.run(source, [noticed])["noticed"]:
                break
            order = order[order.index(noticed) + 1 :]
            noticed = None
        return noticed, time.monotonic() - started


def bound_memory():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def main():
    parser = argparse.ArgumentParser(description="See whether the tests notice small changes.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", default=TOP, help="where the file and its tests are")
    parser.add_argument("--lines", help="of streamlite.py, as in 100-400")
    parser.add_argument("--list", action="store_true", help="print every candidate and its number")
    parser.add_argument("--only", type=int, help="the number of one candidate")
    parser.add_argument("--verbose", action="store_true", help="print each mutant, and who noticed")
    parser.add_argument("--least", type=float, default=0, help="per cent below which it fails")
    options = parser.parse_args()
    runner = Runner(options)
    source = runner.source
    found = candidates(source)
    numbers = list(range(len(found)))
    if options.lines:
        first, _, last = options.lines.partition("-")
        wanted = range(int(first), int(last or first) + 1)
        numbers = [number for number in numbers if found[number].line in wanted]
    if options.list:
        for number in numbers:
            print("%5d  %s" % (number, found[number].told(source)))
        return
    if options.only is not None:
        sample = [options.only]
    else:
        random.Random(options.seed).shuffle(numbers)
        sample = []
        for number in numbers:
            if len(sample) < options.count and is_program(found[number], source):
                sample.append(number)
    print("%d candidates, %d of them by seed %d" % (len(numbers), len(sample), options.seed))
    runner.learn()
    started, survivors, counts = time.monotonic(), [], collections.Counter()

    def judge(number):
        noticed, seconds = runner.judge(found[number])
        if options.verbose or options.only is not None:
            print("%5d  %s" % (number, found[number].told(source)))
            print("       %s, %.1f s" % (noticed or "NOT NOTICED", seconds), flush=True)
        return number, noticed

    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for number, noticed in pool.map(judge, sample):
            counts[found[number].kind, noticed is None] += 1
            if noticed is None:
                survivors.append(number)
    survivors.sort(key=lambda number: found[number].line)
    print("\nNot noticed:")
    for number in survivors:
        print("%5d  %s" % (number, found[number].told(source)))
    print("\nBy kind, noticed of all:")
    for kind in sorted({kind for kind, _ in counts}):
        good, bad = counts[kind, False], counts[kind, True]
        print("  %-20s %4d of %4d" % (kind, good, good + bad))
    good = len(sample) - len(survivors)
    score = 100.0 * good / max(1, len(sample))
    minutes = (time.monotonic() - started) / 60
    line = "%d of %d mutants noticed: %.1f %% (seed %d, Python %s, %.1f minutes)"
    print(line % (good, len(sample), score, options.seed, sys.version.split()[0], minutes))
    sys.exit(score < options.least)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        with open(sys.argv[2]) as file:
            run_here(json.load(file))
    else:
        main()
