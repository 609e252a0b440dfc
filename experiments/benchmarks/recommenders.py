"""Recommenders on MovieLens-100K and Beauty: training rate, time to a score, ranking rate, memory.

    python experiments/benchmarks/recommenders.py --data=../shared/data --core=1
    python experiments/benchmarks/recommenders.py --peer=VENV/bin/python    # RecBole beside it
    python experiments/benchmarks/recommenders.py --models=beauty --peer=VENV/bin/python \
      --output=experiments/results/recommenders_beauty.json

`beauty` is SASRec on S3Rec's Amazon Beauty.

Every model runs in a process of its own, pinned to one core with one thread, with an empty
compilation cache; with `--peer` RecBole runs right after it under the same conditions
(`recbole_peer.py`, in an environment that has RecBole 1.2.1). The clock starts when the data is
read and split and covers initialisation, compilation, training, validation and checkpoints; it
stops at the first validation NDCG@10 that is at least the target: RecBole's best, measured with
`--peer`, else its best of an earlier run (`CASES`), which `beauty` does not have. Prints a
table, writes JSON.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
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

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """What is trained on what.

    Attributes:
      config: name of our configuration.
      system: its recommender.
      data: folder of the data set.
      metric: the validation score that is to be reached.
      target: RecBole 1.2.1's best, taken where it does not run beside us; None: not known.
      peer: RecBole's side.
    """

    config: str
    system: str
    data: str
    metric: str
    target: float | None
    peer: tuple[str, ...]


# Validation is masked for general models and unmasked for sequential ones, as RecBole does it.
_SEQUENCES = ("--model=SASRec", "--learning-rate=1e-3", "--max-length=20")
CASES = {
    "bpr": Case(
        "ml100k_bpr",
        "bpr",
        "ml-100k",
        "valid/ndcg@10",
        0.0696,
        ("--model=BPR", "--learning-rate=5e-3", "--epochs=60", "--patience=10"),
    ),
    "lightgcn": Case(
        "ml100k_lightgcn",
        "lightgcn",
        "ml-100k",
        "valid/ndcg@10",
        0.0729,
        ("--model=LightGCN", "--learning-rate=5e-3", "--epochs=80", "--patience=10"),
    ),
    "sasrec": Case(
        "ml100k_sasrec",
        "sasrec",
        "ml-100k",
        "valid_unmasked/ndcg@10",
        0.0723,
        (*_SEQUENCES, "--epochs=40"),
    ),
    "beauty": Case(
        "beauty_sasrec",
        "sasrec",
        "amazon-beauty",
        "valid_unmasked/ndcg@10",
        None,
        (*_SEQUENCES, "--epochs=100", "--patience=10", "--dataset=amazon-beauty"),
    ),
}


def atomic_folder(data: pathlib.Path, folder: str) -> str:
    """Folder with the events as RecBole reads them: `data` itself, or `folder`, written now."""
    source = data / "events.csv.gz"
    if not source.exists():
        return str(data)
    target = pathlib.Path(folder) / f"{data.name}.inter"
    with gzip.open(source, "rt", newline="") as read, target.open("w", encoding="utf-8") as written:
        written.write("user_id:token\titem_id:token\ttimestamp:float\n")
        for row in csv.DictReader(read):
            written.write(f"{row['user']}\t{row['item']}\t{row['timestamp']}\n")
    return folder


def measure(
    case: Case, data: pathlib.Path, seed: int, target: float, repeats: int
) -> dict[str, Any]:
    """Trains one model in this process until the target is reached, then times ranking."""
    from xrec_jax.core.runtime.memory import keep_freed_memory

    keep_freed_memory()
    import jax
    import numpy as np

    from xrec_jax.core.logging import MetricWriter
    from xrec_jax.core.rundir import RunDir
    from xrec_jax.data.run_data import prepare
    from xrec_jax.parallel.mesh import open_mesh
    from xrec_jax.training.recommender import RecommenderTask

    # JAX reports every compilation, which is part of the seconds to the target.
    compiling: list[float] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        del kwargs
        if event.startswith("/jax/core/compile/"):
            compiling.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    sys.path.insert(0, str(ROOT / "configs"))
    config = __import__(case.config).get_config()
    config.data.path = str(data)
    if config.data.format == "csv":
        config.data.path = str(data / "events.csv.gz")
        config.data.items = str(data / pathlib.Path(config.data["items"]).name)
    metric = case.metric

    # The clock reads each epoch's figures as they are written, and ends training at the target.
    class Reached(Exception):  # noqa: N818
        pass

    class Clock(MetricWriter):
        lines: list[dict[str, float]] = []  # noqa: RUF012

        def write(self, stage, step, metrics):
            super().write(stage, step, metrics)
            self.lines.append({**metrics, "seconds": time.perf_counter() - start, "step": step})
            if metrics[metric] >= target:
                raise Reached

    reached = False
    with tempfile.TemporaryDirectory() as workdir, open_mesh(config) as mesh:
        prepared = prepare(config.data)
        start = time.perf_counter()
        task = RecommenderTask(
            config, case.system, data=prepared, mesh=mesh, rundir=RunDir(workdir)
        )
        writer = Clock(workdir)
        try:
            task.fit(seed, writer)
        except Reached:
            reached = True
        compile_seconds = sum(compiling)
        ranking = ranking_rates(task, task.initial_state(seed), mesh, repeats)
    # SASRec predicts the next event, so that the first one of each user is no example.
    events = len(prepared.split.train)
    if case.system == "sasrec":
        events -= len(np.unique(prepared.split.train.user))
    epochs = [
        b["seconds"] - a["seconds"] - b.get("time/evaluation_seconds", 0.0)
        for a, b in zip(writer.lines, writer.lines[1:], strict=False)
    ]
    return {
        "target": target,
        "reached": reached,
        "seconds_to_target": writer.lines[-1]["seconds"] if reached else None,
        "compile_seconds": compile_seconds,
        "epochs": len(writer.lines),
        "best": max(line[metric] for line in writer.lines),
        "examples_per_second": events / statistics.median(epochs) if epochs else None,
        **ranking,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "devices": jax.device_count(),
    }


def ranking_rates(task: Any, state: Any, mesh: Any, repeats: int) -> dict[str, float]:
    """Users ranked a second, three ways that the peer is timed in too.

    Returns:
      `ranking_users_per_second`: a first evaluation, in which batches are built and put on the
      device; `..._prepared`: one that finds them there; `..._tables_ready`: only scores and ranks,
      with the tables (for LightGCN the propagation over the graph) made before.
    """
    import jax

    from xrec_jax.evaluation.ranking.evaluator import item_and_user_tables, rank_batch

    evaluator = task._evaluators["valid"]
    tables = item_and_user_tables(task.model, state.params, state.frozen)

    def rank_only() -> None:
        jax.block_until_ready(
            [
                rank_batch(task.model, mesh, state.params, tables, batch)
                for batch in evaluator._batches()
            ]
        )

    def prepared() -> None:
        task.evaluate("valid", state.params, state.frozen)

    def anew() -> None:
        evaluator._cache = None
        prepared()

    rates = {}
    for suffix, call in (("", anew), ("_prepared", prepared), ("_tables_ready", rank_only)):
        seconds = []
        for _ in range(repeats + 1):  # the first one compiles
            begin = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begin)
        users = len(evaluator.users)
        rates[f"ranking_users_per_second{suffix}"] = users / statistics.median(seconds[1:])
    return rates


def pinned(command: list[str], core: int) -> None:
    """Runs a command on one core with one thread and no compilation cache."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{environment.get('PYTHONPATH', '')}"

    def pin() -> None:
        os.sched_setaffinity(0, {core})

    subprocess.run(command, check=True, env=environment, preexec_fn=pin)


def ratio(first: float | None, second: float | None) -> str:
    """`first / second` for people."""
    return f"{first / second:.2f}" if first and second else "-"


def main() -> None:
    """Runs and prints everything."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data", help="folder of data sets")
    parser.add_argument("--models", default="bpr,lightgcn,sasrec")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7, help="timed ranking passes")
    parser.add_argument("--peer", default="", help="python of an environment with RecBole")
    parser.add_argument("--peer-epochs", type=int, default=0, help="0: as in the table")
    parser.add_argument("--peer-time-limit", type=float, default=900.0, help="seconds a model")
    parser.add_argument("--output", default="experiments/results/recommenders.json")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    parser.add_argument("--target", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    root = pathlib.Path(args.data).resolve()
    for model in args.models.split(","):
        if model not in CASES:
            parser.error(f"--models={model}: none of {', '.join(CASES)}")
        if CASES[model].target is None and not (args.peer or args.child):
            parser.error(f"the score to reach on {model} is not known: give --peer")
        if not (root / CASES[model].data).is_dir():
            parser.error(f"no folder {CASES[model].data} in --data={args.data}")
    if args.child:
        seed, case = int(args.seeds), CASES[args.child]
        record = measure(case, root / case.data, seed, args.target, args.repeats)
        pathlib.Path(args.output).write_text(json.dumps(record))
        return

    # The peer goes first: its best validation score is the target of ours. Every measurement has
    # a process of its own, so that no compilation or memory of another one counts.
    results: dict[str, Any] = {"core_pinned": True, "models": {}}
    for model in args.models.split(","):
        entry: dict[str, Any] = {"ours": []}
        case = CASES[model]
        target = case.target
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/out.json"
            if args.peer:
                pinned(
                    [
                        args.peer,
                        "-B",
                        str(HERE / "recbole_peer.py"),
                        f"--data={atomic_folder(root / case.data, folder)}",
                        *case.peer,
                        f"--time-limit={args.peer_time_limit}",
                        f"--output={out}",
                        *([f"--epochs={args.peer_epochs}"] if args.peer_epochs else []),
                    ],
                    args.core,
                )
                entry["peer"] = json.loads(pathlib.Path(out).read_text())
                target = entry["peer"]["best_valid_ndcg@10"]
            for seed in args.seeds.split(","):
                pinned(
                    [
                        sys.executable,
                        __file__,
                        f"--child={model}",
                        f"--data={root}",
                        f"--seeds={seed}",
                        f"--target={target}",
                        f"--repeats={args.repeats}",
                        f"--output={out}",
                    ],
                    args.core,
                )
                entry["ours"].append(json.loads(pathlib.Path(out).read_text()))
        results["models"][model] = entry
        show(model, entry)
    path = pathlib.Path(args.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n")


def show(model: str, entry: dict[str, Any]) -> None:
    """Prints medians over seeds, and ratios to the peer where it ran."""
    ours, peer = entry["ours"], entry.get("peer", {})

    def median(key: str) -> float | None:
        values = [run[key] for run in ours if run[key] is not None]
        return statistics.median(values) if len(values) == len(ours) else None

    rows = (
        ("seconds to target", "seconds_to_target", peer.get("seconds_to_best")),
        ("of it compilation", "compile_seconds", None),
        ("training examples/s", "examples_per_second", peer.get("train_examples_per_s")),
        ("ranking users/s", "ranking_users_per_second", peer.get("ranking_users_per_s")),
        (
            "  batches prepared",
            "ranking_users_per_second_prepared",
            peer.get("ranking_users_per_s_prepared"),
        ),
        (
            "  and tables ready",
            "ranking_users_per_second_tables_ready",
            peer.get("ranking_users_per_s_tables_ready"),
        ),
        ("peak memory, MiB", "peak_mib", peer.get("peak_rss_mib")),
    )
    if peer.get("stopped_by") == "time":
        print(f"{model}: the peer was stopped by --peer-time-limit, before it was done")
    print(f"{model}: target {ours[0]['target']:.4f}, best {[round(r['best'], 4) for r in ours]}")
    for label, key, theirs in rows:
        value = median(key)
        shown = "-" if value is None else f"{value:,.1f}"
        other = "-" if theirs is None else f"{theirs:,.1f}"
        print(f"  {label:<22} {shown:>12}  peer {other:>12}  ratio {ratio(value, theirs):>7}")


if __name__ == "__main__":
    main()
