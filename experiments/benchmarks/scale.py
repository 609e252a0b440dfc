"""Time and memory until training starts on 20 million events of 138,000 users on 27,000 items.

    python experiments/benchmarks/scale.py

Writes such a data set as a RecBole atomic file (not timed), then, in a process of its own, reads
it, splits it and trains BPR-MF until the first ten steps are logged. Prints seconds and peak
memory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import polars as pl

ROOT = pathlib.Path(__file__).resolve().parents[2]


def write(folder: pathlib.Path, events: int, users: int, items: int) -> None:
    """Writes `big.inter` with a long-tailed catalogue and no repeated pair."""
    rng = np.random.default_rng(0)
    popularity = 1.0 / np.arange(1, items + 1) ** 0.6
    popularity /= popularity.sum()
    keys = np.zeros(0, np.int64)
    while len(keys) < events:
        missing = int((events - len(keys)) * 1.2) + 1000
        user = rng.integers(0, users, missing)
        item = rng.choice(items, missing, p=popularity)
        keys = np.unique(np.concatenate([keys, user * items + item]))
    keys = rng.permutation(keys)[:events]
    pl.DataFrame(
        {
            "user_id:token": keys // items,
            "item_id:token": keys % items,
            "rating:float": rng.integers(1, 11, events) / 2,
            "timestamp:float": rng.integers(800_000_000, 1_500_000_000, events),
        }
    ).write_csv(folder / "big.inter", separator="\t")


def child(folder: str) -> None:
    """Reads, splits, starts training; prints one JSON line."""
    # The imports count as part of the start.
    begin = time.perf_counter()
    from xrec_jax.core.runtime.memory import keep_freed_memory

    keep_freed_memory()
    from xrec_jax import defaults
    from xrec_jax.core.logging import MetricWriter
    from xrec_jax.core.rundir import RunDir
    from xrec_jax.data.run_data import prepare
    from xrec_jax.parallel.mesh import open_mesh
    from xrec_jax.training.recommender import RecommenderTask

    config = defaults.base()
    config.data.update(dict(format="atomic", path=folder))
    config.recommend.bpr = defaults.system("bpr", train=dict(batch_size=8192, log_every=10))
    seconds = {}

    class Started(Exception):  # noqa: N818
        pass

    # The first line of metrics means that the first steps are compiled and done.
    class Stopwatch(MetricWriter):
        def write(self, stage, step, metrics):
            del stage, step, metrics
            seconds["training started"] = time.perf_counter() - begin
            raise Started

    with tempfile.TemporaryDirectory() as workdir, open_mesh(config) as mesh:
        data = prepare(config.data)
        seconds["read and split"] = time.perf_counter() - begin
        task = RecommenderTask(config, "bpr", data=data, mesh=mesh, rundir=RunDir(workdir))
        with contextlib.suppress(Started):
            task.fit(0, Stopwatch(workdir))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "events": len(data.split.train)}))


def main() -> None:
    """Generates, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--events", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=138_000)
    parser.add_argument("--items", type=int, default=27_000)
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        write(pathlib.Path(folder), args.events, args.users, args.items)
        size = (pathlib.Path(folder) / "big.inter").stat().st_size / 2**20
        print(f"{args.events:,} events, {size:.0f} MiB")
        subprocess.run([sys.executable, __file__, f"--child={folder}"], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
