"""Deliberate mistakes, one at a time, and whether the tests that should notice them do.

    make mutations
    python experiments/mutations.py --only=negated_reward,greedy_rollouts --output=/tmp/some.json

Each mistake of `experiments/mutants.py` is put into a copy of the checkout, where only the tests
named beside it are run. It is caught if every one of them fails there; without a mistake all of
them must pass, or nothing is said. A mistake whose text is no longer in its file ends the program.
The tests share finished runs (`XREC_TEST_RUNS`) that are made once, without a mistake, so what they
notice is in the code that they call themselves. All of it takes about half an hour of two cores;
`--only` takes some, and `--tests` runs other tests than those that are named.

Leaves a table on the terminal and `experiments/results/mutations.json`, written after each; with
`--only` the figures of the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from experiments.mutants import MUTANTS, Mutant  # noqa: E402

# Parts of a checkout that tests need.
_PARTS = ("xrec_jax", "tests", "configs", "experiments", "examples", "docs", "pyproject.toml")
_FAILED = re.compile(r"^(FAILED|ERROR) (\S+)", re.MULTILINE)


class Outcome:
    """Result of a pytest run.

    Args:
      code: its exit status.
      output: its standard output and error.
    """

    def __init__(self, code: int, output: str):
        self.code, self.output = code, output
        matches = _FAILED.findall(output)
        self.failed = sorted({name for word, name in matches if word == "FAILED"})
        self.errors = sorted({name for word, name in matches if word == "ERROR"})

    def fails(self, test: str) -> bool:
        """True if a test failed, in one of its cases at least; a broken fixture is no failure."""
        return any(name == test or name.startswith(f"{test}[") for name in self.failed)


def mutated(mutant: Mutant, text: str) -> str:
    """The text of a mutant's file with its mistake.

    Raises:
      ValueError: if what it replaces is not there exactly once, or Python cannot read the result.
    """
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(
            f"mutation {mutant.name!r} no longer applies: its text is {count} times in "
            f"{mutant.file}, not once; write it anew in experiments/mutants*.py"
        )
    text_mutated = text.replace(mutant.old, mutant.new)
    compile(text_mutated, mutant.file, "exec")
    return text_mutated


def copy_checkout(folder: pathlib.Path) -> None:
    """Copies what tests need of this checkout."""
    for name in _PARTS:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", ".*", "*.egg-info")
            shutil.copytree(source, folder / name, ignore=ignored)
        elif source.exists():
            shutil.copy2(source, folder / name)


def run_tests(checkout: pathlib.Path, tests: Sequence[str], runs: pathlib.Path) -> Outcome:
    """Runs some tests in a copy of the checkout.

    Args:
      checkout: the copy.
      tests: pytest's names of them.
      runs: folder of the finished runs that they share.
    """
    with tempfile.TemporaryDirectory(prefix="mutation_tests_") as scratch:
        process = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-rfE",
                "--tb=short",
                "--no-header",
                "-p",
                "no:cacheprovider",
                f"--basetemp={scratch}/tests",
                *tests,
            ],
            cwd=checkout,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "PYTHONPATH": str(checkout),
                "XREC_TEST_RUNS": str(runs),
                "PYTHONDONTWRITEBYTECODE": "1",
                "COLUMNS": "200",
            },
        )
    return Outcome(process.returncode, process.stdout + process.stderr)


def check_baseline(folder: pathlib.Path, mutants: Sequence[Mutant], runs: pathlib.Path) -> None:
    """Every named test passes without a mistake.

    Raises:
      SystemExit: names those that do not.
    """
    checkout = folder / "checkout"
    copy_checkout(checkout)
    tests = sorted({test for mutant in mutants for test in mutant.tests})
    outcome = run_tests(checkout, tests, runs)
    shutil.rmtree(checkout)
    if outcome.code:
        raise SystemExit(
            f"without a mistake: {', '.join([*outcome.failed, *outcome.errors]) or 'pytest'} "
            f"failed\n{outcome.output[-4000:]}"
        )


def run_mutant(
    mutant: Mutant, folder: pathlib.Path, runs: pathlib.Path, tests: Sequence[str]
) -> dict[str, Any]:
    """Puts one mistake into a copy, runs its tests there, and says which noticed it."""
    begin, checkout = time.perf_counter(), folder / "checkout"
    copy_checkout(checkout)
    path = checkout / mutant.file
    path.write_text(mutated(mutant, path.read_text(encoding="utf-8")), encoding="utf-8")
    try:
        outcome = run_tests(checkout, tests, runs)
    finally:
        shutil.rmtree(checkout)
    missed = [test for test in tests if not outcome.fails(test)]
    return {
        "file": mutant.file,
        "caught": not missed,
        "failed": outcome.failed,
        "missed_by": missed,
        "errors": outcome.errors,
        "seconds": round(time.perf_counter() - begin, 1),
        "output": "" if not missed else outcome.output[-3000:],
    }


def chosen(only: str) -> list[Mutant]:
    """Mutants by their names, "" for all.

    Raises:
      SystemExit: names one that does not exist.
    """
    known = {mutant.name: mutant for mutant in MUTANTS}
    names = [name for name in only.split(",") if name]
    for name in names:
        if name not in known:
            raise SystemExit(f"no mutation {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(MUTANTS)


def kept(path: pathlib.Path, only: str) -> dict[str, Any]:
    """Figures of an earlier run that stay where only some mutations are run again."""
    if not only or not path.exists():
        return {}
    before = json.loads(path.read_text(encoding="utf-8"))["mutations"]
    return {mutant.name: before[mutant.name] for mutant in MUTANTS if mutant.name in before}


def write(path: pathlib.Path, records: dict[str, Any]) -> int:
    """Writes the figures; returns how many mutations were not caught."""
    caught = sum(record["caught"] for record in records.values())
    ordered = {mutant.name: records[mutant.name] for mutant in MUTANTS if mutant.name in records}
    table = {"caught": caught, "of": len(records), "mutations": ordered}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return len(records) - caught


def main() -> int:
    """Exit status 0 if every chosen mistake is caught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="names joined by commas; default all")
    parser.add_argument("--tests", default="", help="other tests to run, joined by commas")
    parser.add_argument("--runs", default="", help="folder of finished runs to take; default new")
    parser.add_argument("--output", default=str(ROOT / "experiments/results/mutations.json"))
    args = parser.parse_args()
    mutants, others = chosen(args.only), [test for test in args.tests.split(",") if test]
    for mutant in mutants:  # before an hour is spent
        mutated(mutant, (ROOT / mutant.file).read_text(encoding="utf-8"))
    path, missed = pathlib.Path(args.output), 0
    records = kept(path, args.only)
    with tempfile.TemporaryDirectory(prefix="mutations_") as scratch:
        folder = pathlib.Path(scratch)
        runs = pathlib.Path(args.runs) if args.runs else folder / "shared"
        if not others:
            check_baseline(folder, mutants, runs)
        for mutant in mutants:
            record = run_mutant(mutant, folder, runs, others or mutant.tests)
            output = record.pop("output")
            records[mutant.name] = record
            word = "caught" if record["caught"] else "MISSED"
            print(
                f"{word}  {mutant.name} ({record['seconds']:.0f} s): {', '.join(record['failed'])}"
            )
            if output and not others:
                print(output)
            sys.stdout.flush()
            missed = write(path, records)
    print(f"{len(records) - missed} of {len(records)} caught; {path}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
