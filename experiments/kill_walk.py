"""Test that a run killed before any of its file operations ends with the same bytes when rerun.

    JAX_PLATFORMS=cpu python experiments/kill_walk.py --config=configs/quickstart.py:tiny \
        --minutes=8 --kills=1 --output=experiments/results/kill_walk_quickstart.json

What a kill leaves is the directory as it is at that moment. So a config is run once undisturbed,
and before every file operation in its run directory (creating, emptying or appending to a file,
linking, renaming, removing, making a folder) the directory is copied; behind an opening once more
with the file empty, or with half a line at its end. What TensorStore writes into a checkpoint is
not seen, only the folders that it is written to and renamed from. TensorBoard's files count as
nothing. Then each copy that differs from the others is put in the run's place, the same run is made
again in this process up to the end of the stage that was cut off, and what it leaves is compared
with what the undisturbed run had left there: all files byte by byte, but for times, the report and
the inside of checkpoints, whose names must be the same. At the end the last state is run to the end
of the run, and the arrays of all checkpoints are compared.

All of it takes hours where there is a language model. `--every=N` takes one state of N,
`--stages=pretrain,instruct` those of some stages, `--minutes=M` begins no rerun later than M
minutes after the undisturbed run; the states are so ordered that any beginning of them is spread
over stages and kinds of operations.

`--kills=N` adds real ones: SIGKILL hits processes of their own before operations that are spread
over the run, and each is run to its end in another one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # works without an installation, too

from experiments.run_contents import arrays, contents, copy_tree, everything  # noqa: E402

_BEGINS = os.O_CREAT | os.O_TRUNC | os.O_APPEND  # other openings leave a file as it is
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate")
_HALF = b'{"stage": "rec'  # of a line
Hook = Callable[[str, tuple[str, ...]], None]
_watchers: list[Hook] = []  # of the one audit hook of this process, which cannot be removed


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watchers:
        return
    if event == "open":
        path, flags = args[0], args[2]
        if isinstance(flags, int) and flags & _BEGINS and isinstance(path, (str, bytes)):
            _tell("append" if flags & os.O_APPEND else "open", (os.fsdecode(path),))
    elif event in _CHANGES:
        folders = [a for a in args if isinstance(a, int) and not isinstance(a, bool) and a >= 0]
        base = (
            os.readlink(f"/proc/self/fd/{folders[-1]}") if folders and event != "os.mkdir" else ""
        )
        paths = [os.fsdecode(a) for a in args if isinstance(a, (str, bytes, os.PathLike))]
        _tell(event, tuple(os.path.join(base, path) for path in paths))


def _tell(event: str, paths: tuple[str, ...]) -> None:
    for watcher in list(_watchers):
        watcher(event, paths)


@contextlib.contextmanager
def watched(folder: pathlib.Path, hook: Hook) -> Iterator[None]:
    """Calls `hook(operation, paths)` before every file operation below a folder."""
    if not getattr(sys, "_xrec_kill_walk", False):
        sys.addaudithook(_audit)
        sys._xrec_kill_walk = True  # type: ignore[attr-defined]
    inside, lock = f"{folder}{os.sep}", threading.RLock()

    def notify(event: str, paths: tuple[str, ...]) -> None:
        if any(os.path.abspath(path).startswith(inside) for path in paths):
            with lock:
                hook(event, paths)

    _watchers.append(notify)
    try:
        yield
    finally:
        _watchers.remove(notify)


class State(NamedTuple):
    """A run directory as a kill leaves it.

    Attributes:
      number: number of the operation that did not happen any more, from 1.
      operation: its kind and its paths, relative to the run directory.
      stage: stage that was running.
      half: whether the operation had begun: a file was opened and nothing, or half, written.
      copy: copy of the directory.
    """

    number: int
    operation: str
    stage: str
    half: bool
    copy: pathlib.Path


class Walk:
    """States of a run directory, one before each file operation.

    Args:
      folder: the run directory; must not exist.
      copies: folder for copies of it.
    """

    def __init__(self, folder: pathlib.Path, copies: pathlib.Path):
        self.folder, self._copies = folder, copies
        self.stage = ""
        self.operations = 0
        self.states: list[State] = []
        self.ends: dict[str, dict[str, str]] = {}  # stage to what is there at its end
        self._seen: set[str] = set()

    def begin(self, stage: str) -> None:
        """Notes that a stage begins, so that the one before it is done."""
        if self.stage:
            self.ends[self.stage] = contents(self.folder)
        self.stage = stage

    def __call__(self, event: str, paths: tuple[str, ...]) -> None:
        """Copies the directory before an operation, where it is another than before."""
        if f"{os.sep}tensorboard" in paths[-1]:
            return
        self.operations += 1
        named = " -> ".join(os.path.relpath(path, self.folder) for path in paths)
        self._keep(f"{event} {named}", None, b"")
        if event in ("open", "append"):
            self._keep(f"{event} {named}", paths[0], _HALF if event == "append" else b"")

    def _keep(self, operation: str, opened: str | None, text: bytes) -> None:
        place = self._copies / f"{len(self.states):05d}"
        copy_tree(self.folder, place)
        if opened is not None:
            file = place / os.path.relpath(opened, self.folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            before = file.read_bytes() if text and file.exists() else b""
            file.unlink(missing_ok=True)
            file.write_bytes(before + text)
        digest = hashlib.sha256(json.dumps(everything(place)).encode()).hexdigest()
        if digest in self._seen:
            shutil.rmtree(place)
            return
        self._seen.add(digest)
        state = State(self.operations, operation, self.stage, opened is not None, place)
        self.states.append(state)


class Enough(BaseException):
    """A rerun has come to the end of the stage that was cut off."""


@contextlib.contextmanager
def stages_watched(before: Callable[[str], None]) -> Iterator[None]:
    """Calls `before(stage)` when a stage of a run begins, also one that is done already."""
    from xrec_jax import stages

    original = stages.registered()

    def announced(stage: stages.Stage) -> stages.Stage:
        def run(ctx: stages.Context, writer: Any) -> None:
            before(stage.name)
            stage.run(ctx, writer)

        return dataclasses.replace(stage, run=run)

    try:
        for stage in original:
            stages.register(announced(stage))
        yield
    finally:
        for stage in original:
            stages.register(stage)


def walk(make: Callable[[], Any], folder: pathlib.Path, copies: pathlib.Path) -> Walk:
    """Runs undisturbed, and keeps every state that a kill could leave.

    Args:
      make: makes a config.
      folder: the run directory; must not exist.
      copies: folder for copies of it.
    """
    from xrec_jax.api import run

    undisturbed = Walk(folder, copies)
    with stages_watched(undisturbed.begin), watched(folder, undisturbed):
        run.run(make(), folder)
    undisturbed.ends[undisturbed.stage] = contents(folder)
    # After a kill before the first stage the run goes on to its very end.
    undisturbed.ends[""] = undisturbed.ends[undisturbed.stage]
    return undisturbed


def rerun(
    make: Callable[[], Any], undisturbed: Walk, state: State, *, whole: bool = False
) -> list[str]:
    """Puts a state in the run's place, runs again, and compares.

    Args:
      make: makes the config.
      undisturbed: states of the undisturbed run.
      state: one of its states.
      whole: run to the end, whatever stage was cut off.

    Returns:
      Names of what differs; empty if all is as it should be.
    """
    from xrec_jax.api import run

    shutil.rmtree(undisturbed.folder, ignore_errors=True)
    shutil.copytree(state.copy, undisturbed.folder)
    until = "" if whole else state.stage
    names = list(make().stages)
    later = names[names.index(until) + 1 :] if until else []

    def before(stage: str) -> None:
        if stage in later:
            raise Enough

    try:
        with contextlib.suppress(Enough), stages_watched(before):
            run.run(make(), undisturbed.folder)
    except Exception as error:
        return [f"{type(error).__name__}: {error}".replace(str(undisturbed.folder), "RUN")]
    now, then = contents(undisturbed.folder), undisturbed.ends[until]
    return [name for name in sorted(now.keys() | then.keys()) if now.get(name) != then.get(name)]


def spread(states: list[State], every: int) -> list[State]:
    """One state of n, spread over stages, kinds of operations and time.

    Args:
      states: in the order of the run.
      every: one of how many is taken.

    Returns:
      The states, so ordered that any beginning is spread, too: the stages take turns, and a stage
      has one state of every kind, metrics first, before it has a second of one.
    """
    stages: dict[str, dict[tuple[str, bool], list[State]]] = {}
    for state in states:
        kind = (re.sub(r"[0-9a-f-]*\d[0-9a-f-]*", "#", state.operation), state.half)
        stages.setdefault(state.stage, {}).setdefault(kind, []).append(state)
    turns = []
    for kinds in stages.values():
        scattered = sorted(kinds, key=lambda k: ("metrics.jsonl" not in k[0], _scattered(k)))
        # The last of a kind first: it has most to lose.
        same = (sorted(kinds[kind], key=lambda s: -s.number) for kind in scattered)
        turns.append([s for turn in itertools.zip_longest(*same) for s in turn if s is not None])
    taken = [s for turn in itertools.zip_longest(*turns) for s in turn if s is not None]
    return taken[: -(-len(states) // every)]


def _scattered(kind: tuple[str, bool]) -> str:
    """A key of an order that has nothing to do with that of the run."""
    return hashlib.sha256(repr(kind).encode()).hexdigest()


def real_kills(command: list[str], undisturbed: Walk, count: int) -> list[dict[str, Any]]:
    """Kills processes of their own before operations spread over the run, then runs to the end.

    Args:
      command: arguments of `xrec` for the run; `die_at` makes it die.
      undisturbed: states of the undisturbed run, whose place they take.
      count: number of kills.
    """
    records = []
    for number in range(1, count + 1):
        shutil.rmtree(undisturbed.folder, ignore_errors=True)
        at = number * undisturbed.operations // (count + 1)
        dying = dying_command(at, undisturbed.folder)
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        killed = subprocess.run([*dying, *command], cwd=ROOT, **quiet)
        again = subprocess.run([sys.executable, "-m", "xrec_jax", *command], cwd=ROOT, **quiet)
        now, then = contents(undisturbed.folder), undisturbed.ends[""]
        differs = [
            name for name in sorted(now.keys() | then.keys()) if now.get(name) != then.get(name)
        ]
        hit = killed.returncode == -signal.SIGKILL
        records.append(
            {"operation": at, "hit": hit, "status": again.returncode, "differs": differs}
        )
        print(records[-1], flush=True)
    return records


def dying_command(number: int, folder: pathlib.Path) -> list[str]:
    """A command that runs `xrec` with the arguments put behind it and dies at an operation."""
    script = str(pathlib.Path(__file__).resolve())
    return [sys.executable, script, "--die_at", str(number), "--folder", str(folder), "--"]


def die_at(number: int, folder: pathlib.Path, arguments: list[str]) -> int:
    """Runs a command line that SIGKILL ends before a file operation."""
    from xrec_jax import cli

    count = 0

    def hook(event: str, paths: tuple[str, ...]) -> None:
        nonlocal count
        if f"{os.sep}tensorboard" not in paths[-1]:
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    with watched(folder, hook):
        return cli.main(arguments)


def main() -> None:
    """Reads the command line, walks, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/quickstart.py:tiny")
    parser.add_argument("--output", default="")
    parser.add_argument("--kills", type=int, default=0, help="real ones")
    parser.add_argument("--every", type=int, default=1, help="only one state of n")
    parser.add_argument("--minutes", type=float, default=1e9, help="of reruns")
    parser.add_argument("--stages", default="", help="only states of these, with commas between")
    parser.add_argument("--die_at", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    # `--` separates the arguments of the command that a process of its own is to die in.
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args, command = parser.parse_args(arguments[:cut]), arguments[cut + 1 :]
    if args.die_at:
        sys.exit(die_at(args.die_at, pathlib.Path(args.folder), command))
    name, _, variant = args.config.partition(":")

    def make() -> Any:
        module: dict[str, Any] = {}
        exec(compile((ROOT / name).read_text(), name, "exec"), module)
        return module["get_config"](variant)

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        undisturbed = walk(make, folder / "run", folder / "copies")
        saved = arrays(undisturbed.folder)
        print(f"{undisturbed.operations} operations, {len(undisturbed.states)} states", flush=True)
        records, walked = [], time.monotonic()
        chosen_stages = args.stages.split(",") if args.stages else [*undisturbed.ends]
        for state in spread(
            [s for s in undisturbed.states if s.stage in chosen_stages], args.every
        ):
            if time.monotonic() - walked > 60 * args.minutes:
                break
            differs = rerun(make, undisturbed, state)
            record = {
                "operation": state.operation,
                "number": state.number,
                "stage": state.stage,
                "half": state.half,
                "differs": differs,
            }
            records.append(record)
            if differs:
                print(record, flush=True)
        # Checkpoints count by their names alone so far; their arrays are compared once, at the end.
        last = rerun(make, undisturbed, undisturbed.states[-1], whole=True)
        now = arrays(undisturbed.folder)
        result = {
            "command": shlex.join(["experiments/kill_walk.py", *sys.argv[1:]]),
            "config": args.config,
            "operations": undisturbed.operations,
            "states": len(undisturbed.states),
            "tried": len(records),
            "differ": [r for r in records if r["differs"]],
            "stages": {s: sum(r["stage"] == s for r in records) for s in undisturbed.ends if s},
            "differ_at_the_end": last,
            "arrays_differ": sorted(
                key for key in saved.keys() | now.keys() if saved.get(key) != now.get(key)
            ),
            "kills": real_kills(
                ["run", f"--config={args.config}", f"--workdir={undisturbed.folder}"],
                undisturbed,
                args.kills,
            ),
            "seconds": time.monotonic() - begin,
            "python": platform.python_version(),
            "machine": platform.machine(),
        }
    print(json.dumps({k: v for k, v in result.items() if k != "kills"}, indent=1))
    if args.output:
        (ROOT / args.output).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
