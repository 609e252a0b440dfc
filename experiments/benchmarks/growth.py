"""Seconds an epoch and peak memory of recommenders as events and items grow.

    python experiments/benchmarks/growth.py --core=0 --plot=docs/growth.png

Generated histories of 20 events a user with a long-tailed catalogue: 10^5 to 10^7 events on 10^4
items, and 10^3 to 10^6 items with 10^6 events. Each point is a process of its own, pinned to one
core with one thread: events in memory, a recommender built, and as many steps as `--seconds` allow,
of which an epoch is extrapolated (median seconds a step behind the first ones, times the steps of
an epoch). Memory is the process's peak, events, batches and compilation included. Full softmax
is left out where an epoch has more than 10^11 scores. Prints a table, writes JSON, and a figure
with `--plot` (extra `report`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # the other experiments are found without an installation, too

from experiments import recpie_ablations as sweep  # noqa: E402

HISTORY = 20
EVENTS = (100_000, 1_000_000, 10_000_000)
ITEMS = (1_000, 10_000, 100_000, 1_000_000)
POINTS = [(events, 10_000) for events in EVENTS] + [(1_000_000, items) for items in ITEMS]
SYSTEMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "bpr": ("bpr", {}, 4096),
    "sasrec, full softmax": ("sasrec", dict(length=HISTORY), 256),
    "sasrec, 1,000 shared negatives": (
        "sasrec",
        dict(
            length=HISTORY,
            objective="sampled_softmax",
            sampler="uniform",
            negatives=1000,
            negatives_per="batch",
        ),
        256,
    ),
}
_MOST_LOGITS = 10**11  # of an epoch of full softmax, beyond which a step takes minutes


def events_of(count: int, items: int) -> Any:
    """Run data with `count` training events."""
    from xrec_jax.data.dataset import Dataset, Interactions, Split
    from xrec_jax.data.run_data import RunData

    rng = np.random.default_rng(0)
    users = count // HISTORY
    # Zipf-like popularity with exponent 0.6, by inversion of its distribution function.
    item = (items * rng.random(count) ** (1 / 0.4)).astype(np.int32)
    train = Interactions(np.repeat(np.arange(users, dtype=np.int32), HISTORY), item)
    valid, test = (
        Interactions(np.arange(users, dtype=np.int32), rng.integers(0, items, users, np.int32))
        for _ in range(2)
    )
    ids = np.arange(users).astype(np.str_), np.arange(items).astype(np.str_)
    return RunData(Dataset("generated", train, *ids), Split(train, valid, test, kind="given"), None)


def child(system: str, count: int, items: int, seconds: float) -> dict[str, Any]:
    """Trains for some seconds in this process."""
    from xrec_jax.core.runtime.memory import keep_freed_memory

    keep_freed_memory()
    from xrec_jax import defaults
    from xrec_jax.core.logging import MetricWriter
    from xrec_jax.core.rundir import RunDir
    from xrec_jax.parallel.mesh import open_mesh
    from xrec_jax.training.recommender import RecommenderTask

    model, hparams, batch = SYSTEMS[system]
    config = defaults.base()
    train = dict(batch_size=batch, log_every=1, evaluate_every=1000, checkpoint_every=1000)
    train["epochs"] = 1000
    config.recommend.one = defaults.system(model, train=train, **hparams)
    times: list[float] = []

    class Enough(Exception):  # noqa: N818
        pass

    class Clock(MetricWriter):
        def write(self, stage, step, metrics):
            del stage, step, metrics
            times.append(time.perf_counter())
            if len(times) > 12 and times[-1] - times[4] > seconds:
                raise Enough

    with tempfile.TemporaryDirectory() as workdir, open_mesh(config) as mesh:
        data = events_of(count, items)
        task = RecommenderTask(config, "one", data=data, mesh=mesh, rundir=RunDir(workdir))
        with contextlib.suppress(Enough):
            task.fit(0, Clock(workdir))
    a_step = statistics.median(np.diff(times[4:]).tolist())  # the first ones compile
    return {
        "seconds_an_epoch": a_step * task.steps_per_epoch,
        "steps_an_epoch": task.steps_per_epoch,
        "steps_timed": len(times) - 5,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10,
    }


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """One process a point."""
    rows = []
    for system in SYSTEMS:
        for count, items in dict.fromkeys(POINTS):
            if "full" in system and count * items > _MOST_LOGITS:
                continue
            command = [sys.executable, __file__, f"--child={system}", f"--events={count}"]
            command += [f"--items={items}", f"--seconds={args.seconds}"]
            environment = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
            environment |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
            pin = lambda: os.sched_setaffinity(0, {args.core})  # noqa: E731
            done = subprocess.run(
                command,
                env=environment,
                preexec_fn=pin,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            row = {"system": system, "events": count, "items": items}
            rows.append(row | json.loads(done.stdout.splitlines()[-1]))
            print(
                f"{system:32} {count:>10,} events {items:>9,} items "
                f"{rows[-1]['seconds_an_epoch']:9.1f} s an epoch {rows[-1]['peak_mib']:8,.0f} MiB",
                flush=True,
            )
    return rows


def draw(rows: list[dict[str, Any]], figure: Any) -> None:
    """Four panels: seconds and memory, over events and over items."""
    colours = dict(zip(SYSTEMS, ("#0072B2", "#D55E00", "#009E73"), strict=True))
    panels = figure.subplots(2, 2, sharex="col", sharey="row")
    for column, (over, fixed, value) in enumerate(
        (("events", "items", 10_000), ("items", "events", 1_000_000))
    ):
        for line, key in enumerate(("seconds_an_epoch", "peak_mib")):
            panel = panels[line][column]
            for system in SYSTEMS:
                some = [row for row in rows if row["system"] == system and row[fixed] == value]
                some = sorted(some, key=lambda row: row[over])
                x, y = [row[over] for row in some], [row[key] for row in some]
                panel.plot(x, y, "o-", color=colours[system], ms=4, label=system)
            panel.set(xscale="log", yscale="log")
            panel.grid(alpha=0.3)
            if column == 0:
                panel.set_ylabel("seconds an epoch" if line == 0 else "peak memory, MiB")
        panels[1][column].set_xlabel(f"{over} ({value:,} {fixed})")
    panels[0][0].legend(frameon=False, fontsize=8)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0, help="of steps a point, at least")
    parser.add_argument("--output", default=str(ROOT / "experiments/results/growth.json"))
    parser.add_argument("--plot", default="", help="a PNG file")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--events", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--items", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.events, args.items, args.seconds)))
        return
    if args.plot:
        sweep.check_plot(args.plot)
    rows = measure(args)
    pathlib.Path(args.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5.6), layout="constrained")
        draw(rows, figure)
        figure.savefig(args.plot, dpi=120)


if __name__ == "__main__":
    main()
