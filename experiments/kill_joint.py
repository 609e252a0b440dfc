"""Joint training killed at random moments: does it end with the very bits of an undisturbed run?

    JAX_PLATFORMS=cpu python experiments/kill_joint.py --output=experiments/results/kill_joint.json

`configs/recpie_world.py:tiny` with more rounds is run once undisturbed. A copy of that run without
its joint stage is then run again: SIGKILL hits it in the warm start, at random moments of random
rounds and while the controls are tested, and each time the same command is run again, at last to
its end. Everything that the two leave is compared bit by bit, but for times and paths: the arrays
of the last checkpoints (policy, critic, optimisers, recommender, controller, cache, first texts,
rollouts, constants, best round), the rounds, all texts, per-user figures, the log and the
evaluation.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # works without an installation, too

from xrec_jax.core.storage import files  # noqa: E402


class Run:
    """A run directory and the command that makes it.

    Args:
      folder: the run directory.
      args: of the experiment.
    """

    def __init__(self, folder: pathlib.Path, args: argparse.Namespace):
        self.folder = folder
        self._command = [
            *args.program.split(),
            "run",
            f"--config={args.config}",
            f"--workdir={folder}",
            "--config.stages=recommend,pretrain,joint",
            "--config.seeds=0,",
            f"--config.joint.rounds={args.rounds}",
        ]

    def start(self) -> subprocess.Popen:
        """Starts it; what it prints goes to a file beside it."""
        with self.folder.with_suffix(".log").open("ab") as log:
            return subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def finish(self) -> float:
        """Runs it to its end; seconds."""
        begin = time.monotonic()
        process = self.start()
        if process.wait():
            log = self.folder.with_suffix(".log").read_text()
            raise SystemExit(f"exit status {process.returncode}\n{log[-3000:]}")
        return time.monotonic() - begin

    def rounds(self) -> int:
        """Rounds that are done, the warm start counted."""
        path = self.folder / "joint" / "0" / "rounds.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def tuned(self) -> int:
        """Lines that the warm start of the explainer logged."""
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b'"joint/0/sft"') if path.exists() else 0

    def systems(self) -> int:
        """Controls that are tested."""
        return len([*(self.folder / "joint" / "0" / "systems").glob("*.npz")])

    def checkpoint(self) -> int:
        """Step of the newest checkpoint of the rounds: two a round; -1 for none."""
        folder = self.folder / "checkpoints" / "joint" / "0" / "rounds"
        return max((int(p.name) for p in folder.glob("*") if p.name.isdigit()), default=-1)

    def kill(self, where: str, count: int, delay: float) -> dict[str, Any]:
        """Runs until `where` has counted to `count` and `delay` seconds more, then SIGKILL."""
        before, begin = self.checkpoint(), time.monotonic()
        process = self.start()
        while getattr(self, where)() < count and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        return {
            "waited_for": f"{where} {count}",
            "delay": delay,
            "hit": process.returncode == -signal.SIGKILL,
            "seconds": time.monotonic() - begin,
            "rounds_logged": self.rounds(),
            "systems_tested": self.systems(),
            "checkpoint_before": before,
            "checkpoint_after": self.checkpoint(),
        }


def without_joint(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copies a finished run as it was before its joint stage."""
    drop = {"joint", "adapter_joint", "explanations", "tensorboard"}
    shutil.copytree(source, target, ignore=lambda _, names: [n for n in names if n in drop])
    evaluation = json.loads((source / "evaluation.json").read_text())
    evaluation.pop("joint")
    (target / "evaluation.json").write_text(json.dumps(evaluation))
    records = files.read_json_lines(source / "metrics.jsonl")
    kept = [record for record in records if not record["stage"].startswith("joint")]
    files.write_text(target / "metrics.jsonl", files.json_lines(kept))


# What the two runs are compared by: name of a thing and its bits.


def checkpoints(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """All arrays of all kept checkpoints of the joint stage, and what they hold beside arrays."""
    import jax
    import numpy as np

    from xrec_jax.training.checkpoint import Checkpoints

    for stage in ("sft", "rounds"):
        with Checkpoints(folder / "checkpoints" / "joint" / "0" / stage, read_only=True) as kept:
            steps = [int(one.step) for one in kept._checkpointer.checkpoints]
            for step in sorted(steps):
                told = kept._checkpointer.checkpointables_metadata(step).metadata["state"]
                asked = jax.tree.map(
                    lambda one: jax.ShapeDtypeStruct(
                        one.shape,
                        one.dtype,
                        sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]),
                    ),
                    told,
                    is_leaf=lambda one: hasattr(one, "shape"),
                )
                found = kept._checkpointer.load_checkpointables(
                    step, {"state": asked, "data": None, "progress": None}
                )
                for path, leaf in jax.tree_util.tree_leaves_with_path(found["state"]):
                    array = np.asarray(leaf)
                    name = jax.tree_util.keystr(path, simple=True, separator="/")
                    yield f"checkpoint {stage} {step}: {name}", bits(array)
                beside = [untimed(found["data"]), found["progress"]]
                yield f"checkpoint {stage} {step}: data", json.dumps(beside, sort_keys=True)


def bits(array: Any) -> str:
    """Type, shape and a digest of all bytes."""
    return f"{array.dtype}{array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def untimed(value: Any) -> Any:
    """Without what depends on the machine."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if not k.startswith("time/")}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def leavings(folder: pathlib.Path) -> Iterator[tuple[str, str]]:
    """All files of the joint stage but its checkpoints, the log and the evaluation."""
    import numpy as np

    yield "evaluation.json", (folder / "evaluation.json").read_text()
    log = files.read_json_lines(folder / "metrics.jsonl")
    own = [untimed(one) for one in log if one["stage"].startswith("joint")]
    for stage in sorted({one["stage"] for one in own}):
        yield f"metrics.jsonl of {stage}", json.dumps([o for o in own if o["stage"] == stage])
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if "joint" not in name or not path.is_file() or name.startswith(("checkp", "tensorb")):
            continue
        if path.suffix == ".npz":
            with np.load(path) as file:
                for key in file.files:
                    yield f"{name}: {key}", bits(file[key])
        elif path.suffix == ".jsonl":
            yield name, json.dumps(untimed(files.read_json_lines(path)))  # in the order of its keys
        elif path.suffix == ".safetensors":
            yield name, hashlib.sha256(path.read_bytes()).hexdigest()


GROUPS = {
    "checkpoint rounds": "checkpoints of the rounds",
    "checkpoint sft": "checkpoints of the warm start",
    "metrics.jsonl": "log",
    "evaluation.json": "evaluation",
    "per_user": "per-user figures",
    "adapter_joint": "adapter",
    "explanations": "final texts",
}


def compare(killed: pathlib.Path, whole: pathlib.Path) -> dict[str, Any]:
    """Counts of equal things by group, and the names of those that differ."""
    both = [dict([*checkpoints(one), *leavings(one)]) for one in (killed, whole)]
    groups: dict[str, list[int]] = {}
    different = []
    for name in sorted(both[0].keys() | both[1].keys()):
        group = next((g for start, g in GROUPS.items() if name.startswith(start)), "")
        group = group or ("systems" if "systems" in name else "rounds and samples")
        equal = both[0].get(name) == both[1].get(name)
        count = groups.setdefault(group, [0, 0])
        count[0] += 1
        count[1] += equal
        if not equal:
            different.append(name)
    return {
        "compared": {group: count[0] for group, count in groups.items()},
        "equal": {group: count[1] for group, count in groups.items()},
        "different": different,
    }


def measure(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, Any]:
    """See the module."""
    draw = random.Random(args.seed)
    whole, killed = Run(folder / "whole", args), Run(folder / "killed", args)
    seconds = whole.finish()
    told = files.read_json_lines(whole.folder / "joint" / "0" / "rounds.jsonl")
    if len(told) != args.rounds + 1:
        raise SystemExit(f"a guard ended the run: {told[-1]['verdict']}")
    # The fastest round: the first ones compile, and a kill must come before the round is over.
    # One that a guard stopped has no times.
    lengths = [sum(v for k, v in one.items() if k.startswith("time/")) for one in told[1:]]
    length = min(seconds for seconds in lengths if seconds)
    without_joint(whole.folder, killed.folder)
    # A round is waited for by the line of the one before it.
    chosen = sorted(draw.sample(range(1, args.rounds + 1), args.kills))
    moments = [
        ("tuned", 1, draw.uniform(0.0, 3.0)),
        *(("rounds", number, draw.uniform(0.0, length)) for number in chosen),
        ("systems", draw.randrange(1, 9), draw.uniform(0.0, 2.0)),
    ]
    kills = []
    for where, count, delay in moments:
        kills.append(killed.kill(where, count, delay))
        print(f"seed {args.seed}: {kills[-1]}", flush=True)
    last = killed.finish()
    result = compare(killed.folder, whole.folder)
    left = [str(p.relative_to(folder)) for p in killed.folder.rglob("*") if "tmp" in p.name]
    hits = sum(kill["hit"] for kill in kills)
    return {
        "passed": not result["different"] and not left and hits == len(kills),
        "seed": args.seed,
        "config": args.config,
        "rounds": args.rounds,
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "undisturbed_seconds": seconds,
        "fastest_round_seconds": length,
        "last_call_seconds": last,
        "kills": kills,
        "half_written_files_left": left,
        **result,
    }


def table(result: dict[str, Any]) -> str:
    """What was compared, as text."""
    rows = [("what", "compared", "equal")]
    rows += [(g, str(n), str(result["equal"][g])) for g, n in result["compared"].items()]
    width = max(len(row[0]) for row in rows)
    lines = [f"{a:<{width}}  {b:>8}  {c:>6}" for a, b, c in rows]
    hits = sum(kill["hit"] for kill in result["kills"])
    return "\n".join([*lines, f"{hits} of {len(result['kills'])} kills hit a running process"])


def main() -> None:
    """Runs, kills, compares, writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="")
    parser.add_argument("--config", default="configs/recpie_world.py:tiny")
    parser.add_argument("--rounds", type=int, default=3, help="so small a model soon ends nothing")
    parser.add_argument(
        "--kills", type=int, default=2, help="of different rounds; two more hit elsewhere"
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--program", default=f"{sys.executable} -m xrec_jax")
    parser.add_argument("--keep", default="", help="folder to work in; default: one that goes")
    args = parser.parse_args()
    if not 0 <= args.kills <= args.rounds:
        parser.error(f"--kills={args.kills} hit different rounds, of which there are {args.rounds}")
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(args.keep or folder)
        work.mkdir(parents=True, exist_ok=True)
        result = measure(work, args)
    print(table(result))
    if args.output:
        pathlib.Path(args.output).write_text(json.dumps(result, indent=2) + "\n")
    if not result["passed"]:
        raise SystemExit(f"not the same: {', '.join(result['different'][:20]) or 'see the result'}")


if __name__ == "__main__":
    main()
