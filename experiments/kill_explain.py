"""Test that `xrec explain` over 100,000 pairs, killed three times, has every pair exactly once.

    XLA_FLAGS="--xla_force_host_platform_device_count=8 \
      --xla_cpu_enable_concurrency_optimized_scheduler=false" JAX_PLATFORMS=cpu \
      python experiments/kill_explain.py --output=experiments/results/kill_explain.json

A planted world of 1,000 users, the hundred best items of each by a BPR, a random LLaMA of two
layers, eight fake devices. SIGKILL hits at three random moments, each in another tenth of the work;
then the same command runs to its end. Compared with an undisturbed run: the shards that were being
made when the kills came and their neighbours, byte by byte.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pathlib
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # works without an installation, too

from xrec_jax.core.storage import files  # noqa: E402

SIZES = dict(
    vocab_size=1024,
    hidden_size=16,
    intermediate_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_positions=512,
    initializer_range=0.2,
)


class Job:
    """The command that is killed and run again.

    Args:
      program: command line up to the verb.
      workdir: the run.
      output: the file to make.
      users: as the flag.
      args: command line of the experiment.
    """

    def __init__(
        self,
        program: list[str],
        workdir: pathlib.Path,
        output: pathlib.Path,
        users: str,
        args: argparse.Namespace,
    ):
        self.parts = output.with_name(output.name + ".parts")
        self.output = output
        self._command = [
            *program,
            "explain",
            f"--workdir={workdir}",
            f"--users={users}",
            f"--top_k={args.top_k}",
            f"--output={output}",
            f"--shard={args.shard}",
        ]

    def start(self) -> subprocess.Popen:
        """Starts it."""
        return subprocess.Popen(
            self._command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )

    def finish(self) -> float:
        """Runs it to its end; seconds."""
        start = time.monotonic()
        process = self.start()
        if process.wait():
            raise SystemExit(f"exit status {process.returncode}")
        return time.monotonic() - start

    def shards(self) -> set[int]:
        """Shards that are done."""
        return {int(path.name.split("-")[1]) for path in self.parts.glob("shard-*")}

    def kill(self, after: int, delay: float) -> dict[str, object]:
        """Runs until `after` shards are done and `delay` seconds more, then SIGKILL."""
        before, start = self.shards(), time.monotonic()
        process = self.start()
        while len(self.shards()) < after and process.poll() is None:
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done = self.shards()
        return {
            "hit": process.returncode == -signal.SIGKILL,
            "seconds": time.monotonic() - start,
            "shards_before": len(before),
            "shards_after": len(done),
            "half_written_files": len([*self.parts.glob(".*.tmp")]),
            "output_there": self.output.exists(),
        }


def check(output: pathlib.Path, recommended: pathlib.Path, shard: int) -> dict[str, object]:
    """Counts the pairs of a file against the recommendations it must hold."""
    records, expected = files.read_records(output), files.read_records(recommended)
    keys = [(record["user"], record["item"]) for record in records]
    counts = collections.Counter(keys)
    return {
        "pairs": len(records),
        "expected": len(expected),
        "pairs_exactly_once": sum(count == 1 for count in counts.values()),
        "missing": len({(r["user"], r["item"]) for r in expected} - counts.keys()),
        "in_order": keys == [(record["user"], record["item"]) for record in expected],
        "same_rank_score_system": all(
            all(a[key] == b[key] for key in ("rank", "score", "system"))
            for a, b in zip(records, expected, strict=True)
        ),
        "with_text": sum(bool(record["text"]) for record in records),
        "shards": -(-len(records) // shard),
    }


def main() -> None:
    """Makes the run, kills, compares, writes the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--top_k", type=int, default=100)
    parser.add_argument("--shard", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--program", default=f"{sys.executable} -m xrec_jax")
    parser.add_argument("--keep", default="", help="folder to work in; default: one that goes")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(pathlib.Path(args.keep or folder), args)
    result["seconds_in_all"] = time.monotonic() - began
    text = json.dumps(result, indent=2) + "\n"
    print(text)
    if args.output:
        pathlib.Path(args.output).write_text(text)
    if not result["passed"]:
        raise SystemExit("not every pair is there exactly once")


def measure(folder: pathlib.Path, args: argparse.Namespace) -> dict[str, object]:
    """Kills and resumes the job, then compares it with an undisturbed one; see the module."""
    import jax

    from experiments import explained_world
    from xrec_jax.api import recommend

    draw, program, run = random.Random(args.seed), args.program.split(), folder / "run"
    explained_world.make(
        run,
        users=args.users,
        items=400,
        visits=8.0,
        history=0,
        max_new_tokens=3,
        batch=512,
        sizes=SIZES,
    )
    recommend.recommend(
        str(run), users="all", top_k=args.top_k, output=str(folder / "recommended.jsonl")
    )
    job = Job(program, run, folder / "killed.jsonl", "all", args)
    shards = -(-args.users * args.top_k // args.shard)
    # Three kills in different tenths of the work, each at a random moment of a shard.
    tenths = sorted(draw.sample(range(10), 3))
    kills, around = [], set()
    for tenth in tenths:
        after = max(1, draw.randrange(tenth * shards // 10, (tenth + 1) * shards // 10))
        kill = job.kill(after, draw.uniform(0.0, 3.0))
        kills.append(kill)
        next_shard = len(job.shards())  # the first one that is missing was being made
        around |= {
            shard for shard in (next_shard - 1, next_shard, next_shard + 1) if 0 <= shard < shards
        }
        print(f"seed {args.seed}: {kill}", flush=True)
    seconds = job.finish()
    result = check(job.output, folder / "recommended.jsonl", args.shard)
    compared = equal = 0
    with job.output.open("rb") as file:
        lines = file.readlines()
    # A shard is a function of its pairs alone; users are in the order of their rows.
    names = list(dict.fromkeys(record["user"] for record in files.read_records(job.output)))
    each = args.shard // args.top_k
    sampled = sorted(around)
    (folder / "users.txt").write_text(
        "\n".join(name for k in sampled for name in names[k * each : (k + 1) * each])
    )
    # Only users of the shards around the kills are explained again: all would take too long.
    whole = Job(program, run, folder / "whole.jsonl", str(folder / "users.txt"), args)
    whole.finish()
    with whole.output.open("rb") as file:
        undisturbed = file.readlines()
    resumed = [line for k in sampled for line in lines[k * args.shard : (k + 1) * args.shard]]
    compared, equal = len(resumed), sum(a == b for a, b in zip(resumed, undisturbed, strict=True))
    clean = not job.parts.exists() and not [p for p in folder.iterdir() if "parts" in p.name]
    ok = (
        {result[key] for key in ("pairs", "expected", "pairs_exactly_once")}
        == {args.users * args.top_k}
        and result["missing"] == 0
        and result["in_order"]
        and result["same_rank_score_system"]
        and equal == compared
        and clean
        and all(kill["hit"] for kill in kills)
    )
    return {
        "passed": bool(ok),
        "seed": args.seed,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "shard": args.shard,
        "kills": kills,
        "last_call_seconds": seconds,
        **result,
        "compared_with_an_undisturbed_run": compared,
        "equal_to_the_byte": equal,
        "nothing_left_behind": clean,
    }


if __name__ == "__main__":
    main()
