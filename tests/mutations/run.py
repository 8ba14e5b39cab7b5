"""Take each defence out of a copy of the code, and run the tests that have to notice it.

    python -m tests.mutations                 all mutations; exit 1 if one is not noticed
    python -m tests.mutations --row 5         those of an attack of docs/threat_model.md
    python -m tests.mutations replay-window   those whose name contains the text
    python -m tests.mutations --jobs 2        two at a time
    python -m tests.mutations --check         only whether the list fits the code; the suite runs this too

A mutation is noticed if each of its tests fails. A test that passes, and one that hangs, does not count.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

import attrs

from tests.mutations.catalogue import MUTATIONS
from tests.mutations.mutation import ROOT, ROWS, Mutation

#: Seconds for the tests of one mutation. Each takes a few seconds, and has a deadline of its own where it could hang.
DEADLINE = 90.0
#: What a copy of the checkout consists of: all that the tests import or read.
_COPIED = ("trionode", "transports", "pytest_plugin", "tests", "examples", "docs", "pyproject.toml", "setup.cfg")
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR|SKIPPED) (tests/\S+?\.py::[^\s\[]+)", re.MULTILINE)


@attrs.frozen
class Outcome:
    """What the tests of one mutation did."""

    verdict: str  # noticed, survives, hangs, or broken: a test does not pass in the unchanged code either
    seconds: float
    detail: str = ""


def check() -> list[str]:
    """Return why the list does not fit the code: stale texts, tests that do not exist, attacks without a mutation."""
    problems = [f"{name}: the name occurs {count} times" for name, count in _repeated(each.name for each in MUTATIONS)]
    for mutation in MUTATIONS:
        path = ROOT / mutation.path
        try:
            ast.parse(mutation.apply(path.read_text()))
        except (OSError, ValueError, SyntaxError) as error:
            problems.append(str(error) if mutation.name in str(error) else f"{mutation.name}: {error}")
        if not mutation.tests:
            problems.append(f"{mutation.name}: it names no test")
        problems += [f"{mutation.name}: there is no test {each}" for each in mutation.node_ids if not _exists(each)]
    covered = {row for mutation in MUTATIONS for row in mutation.rows}
    problems += [f"attack {row} has no mutation" for row in ROWS if row not in covered]
    return problems + [f"there is no attack {row}" for row in covered if row not in ROWS]


def _repeated(names: Iterator[str]) -> list[tuple[str, int]]:
    return [(name, count) for name, count in Counter(names).items() if count > 1]


def _exists(test: str) -> bool:
    file, _, name = test.partition("::")
    return name.partition("[")[0] in _functions(ROOT / file)


@cache
def _functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text())) if path.exists() else ()
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@contextmanager
def copies(number: int) -> Iterator[SimpleQueue[Path]]:
    """Provide copies of the checkout to change."""
    free: SimpleQueue[Path] = SimpleQueue()
    with TemporaryDirectory(prefix="trionode-mutations-") as directory:
        for each in range(number):
            copy = Path(directory, str(each))
            for name in _COPIED:
                if (ROOT / name).is_dir():
                    shutil.copytree(
                        ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
                    )
                else:
                    shutil.copy(ROOT / name, copy / name)
            free.put(copy)
        yield free


def run_tests(copy: Path, node_ids: Sequence[str], deadline: float) -> tuple[dict[str, str], str]:
    """Run tests in a copy; return the worst outcome of each, and the output. TimeoutExpired past the deadline."""
    paths = [copy, copy / "transports", copy / "pytest_plugin"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:randomly", "-p", "no:cacheprovider"]
    # A session of its own, so that what a test starts ends with it.
    with subprocess.Popen(
        [*command, "-m", "", *node_ids],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=deadline)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    outcomes: dict[str, str] = {}
    for outcome, name in _OUTCOME.findall(output):
        if outcomes.get(name) not in {"FAILED", "ERROR"}:
            outcomes[name] = outcome
    return outcomes, output


def try_mutation(copy: Path, mutation: Mutation) -> Outcome:
    """Run the tests of a mutation in a copy, and restore the copy."""
    path = copy / mutation.path
    text = path.read_text()
    started = time.monotonic()
    try:
        _write(path, mutation.apply(text))
        outcomes, output = run_tests(copy, mutation.node_ids, DEADLINE)
    except subprocess.TimeoutExpired:
        return Outcome("hangs", time.monotonic() - started, f"no end within {DEADLINE:g} s")
    finally:
        _write(path, text)
    seconds = time.monotonic() - started
    # An error while the tests are collected is not a failure of one of them: the mutation breaks the program.
    passed = [test for test in mutation.node_ids if outcomes.get(test.partition("[")[0]) not in {"FAILED", "ERROR"}]
    if any(outcomes.get(test.partition("[")[0]) is None for test in passed):
        return Outcome("broken", seconds, output[-2000:])
    return Outcome("survives", seconds, f"passes: {', '.join(passed)}") if passed else Outcome("noticed", seconds)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()  # its time stamp has a resolution of a second


def chosen(rows: Sequence[int], names: Sequence[str]) -> list[Mutation]:
    """Return the mutations of these attacks and names; all if there are none."""
    return [
        each
        for each in MUTATIONS
        if (not rows or set(rows) & set(each.rows)) and (not names or any(name in each.name for name in names))
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations", description="Take each defence out of a copy of the code, and run its tests."
    )
    parser.add_argument("names", nargs="*", help="only mutations whose name contains one of these")
    parser.add_argument("--row", type=int, action="append", default=[], help="only mutations of this attack")
    parser.add_argument("--jobs", type=int, default=1, help="mutations to run at a time")
    parser.add_argument("--check", action="store_true", help="run no test: check that the list fits the code")
    options = parser.parse_args(arguments)
    problems = check()
    _say(*problems)
    mutations = chosen(options.row, options.names)
    if problems or options.check or not mutations:
        _say(f"{len(mutations)} mutations, {len(problems)} problems")
        return 1 if problems or not mutations else 0
    return run(mutations, options.jobs)


def run(mutations: Sequence[Mutation], jobs: int) -> int:
    """Try the mutations, and print a table; return 1 unless each is noticed."""
    verdicts: Counter[str] = Counter()
    with copies(jobs) as free:
        copy = free.get()
        tests = sorted({test for mutation in mutations for test in mutation.node_ids})
        outcomes, output = run_tests(copy, tests, DEADLINE * 10)
        failing = [test for test in tests if outcomes.get(test.partition("[")[0]) != "PASSED"]
        if failing:
            _say(output[-4000:], *(f"fails or is skipped in the unchanged code: {test}" for test in failing))
            return 1
        free.put(copy)

        def attempt(mutation: Mutation) -> Outcome:
            copy = free.get()
            try:
                return try_mutation(copy, mutation)
            finally:
                free.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            for mutation, outcome in zip(mutations, pool.map(attempt, mutations), strict=True):
                verdicts[outcome.verdict] += 1
                rows = ",".join(map(str, mutation.rows)) or "-"
                _say(f"{rows:8} {mutation.name:44} {outcome.verdict:9} {outcome.seconds:5.1f} s  {mutation.tests[0]}")
                if outcome.detail:
                    _say(outcome.detail)
    _say(f"{len(mutations)} mutations: " + ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items()))
    return 0 if set(verdicts) == {"noticed"} else 1


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)  # noqa: T201 - the table is what the command is for
