"""Figures of a config over several runs, each with a seed of its own for all that is trained.

    python experiments/seeds.py --config=configs/quickstart.py --seeds=0,1,2 --workdir=runs/seeds
    python experiments/seeds.py --workdir=runs/seeds --figures='test/ndcg@10$,planted/f1$'

One run is one draw: initial parameters, order of batches, negatives, and on another processor the
rounding too. `config.seeds` of several numbers draws recommenders and joint training anew but not
the language model under them, so here every seed is a run of its own (`WORKDIR/SEED`, resumed and
skipped like any other). The data is the same in all.

The interval of a figure holds, with 95 % confidence, what one further run measures on other users:

    mean ± sqrt(u^2 + (t * s)^2 * (1 + 1/n))

u is half of the interval that a run draws over its test users (root mean square over the runs), s
the standard deviation between the n runs, t Student's quantile with n - 1 degrees of freedom. It is
wider than an interval of the mean on purpose: a reader runs the config once. Values between 0 and 1
are not cut there. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # also without an installation

from xrec_jax.core.errors import UserError  # noqa: E402
from xrec_jax.core.storage.files import read_json, write_json  # noqa: E402
from xrec_jax.evaluation.tables import text_table  # noqa: E402

_P_VALUE = re.compile(r"(^|[/_])p$")  # nothing to average


def predicted(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of a figure over runs, and the interval that one further run falls into.

    Args:
      figures: `value`, `low`, `high` of each run, as in `evaluation.json`.

    Returns:
      `value`, `low`, `high` (None for fewer than two runs), `runs` and the single `values`.
    """
    values = [float(figure["value"]) for figure in figures]
    count, mean = len(values), sum(values) / len(values)
    out: dict[str, Any] = {"value": mean, "low": None, "high": None, "runs": count}
    out["values"] = values
    if count > 1:
        users = [
            0.0 if figure["low"] is None else (figure["high"] - figure["low"]) / 2
            for figure in figures
        ]
        within = sum(half**2 for half in users) / count
        between = sum((value - mean) ** 2 for value in values) / (count - 1)
        quantile = float(stats.t.ppf(0.975, count - 1))
        half = math.sqrt(within + quantile**2 * between * (1 + 1 / count))
        out |= {"low": mean - half, "high": mean + half}
    return out


def together(runs: Sequence[Mapping[str, Any]], pattern: str) -> dict[str, Any]:
    """`predicted` of every figure that all runs have and whose name matches, but for p-values.

    Args:
      runs: contents of `evaluation.json`.
      pattern: regular expression, searched in "stage/system/group/name".

    Returns:
      `{"stage/system": {"group/name": ...}}`.
    """
    table: dict[str, Any] = {}
    for stage, systems in runs[0].items():
        for system, figures in systems.items():
            for name in figures:
                everywhere = [run.get(stage, {}).get(system, {}).get(name) for run in runs]
                if not re.search(pattern, f"{stage}/{system}/{name}") or _P_VALUE.search(name):
                    continue
                if any(
                    estimate is None or estimate.get("value") is None for estimate in everywhere
                ):
                    continue
                table.setdefault(f"{stage}/{system}", {})[name] = predicted(everywhere)
    return table


def run_all(config: str, seeds: Sequence[int], workdir: pathlib.Path, more: Sequence[str]) -> None:
    """Runs the config once a seed; a run that is done is skipped.

    Raises:
      UserError: if a run fails.
    """
    for seed in seeds:
        command = [
            sys.executable,
            "-m",
            "xrec_jax",
            "run",
            f"--config={config}",
            f"--config.seeds={seed},",
            f"--workdir={workdir / str(seed)}",
            *more,
        ]
        if subprocess.run(command, cwd=ROOT).returncode:
            raise UserError(f"seed {seed} failed: {' '.join(command)}")


def seeds_of(text: str, workdir: pathlib.Path) -> list[int]:
    """The seeds of the command line; without any, those that have a finished run.

    Raises:
      UserError: if one is no whole number, or there is no run.
    """
    if not text:
        folders = workdir.iterdir() if workdir.is_dir() else []
        present = sorted(int(folder.name) for folder in folders if folder.name.isdigit())
        if not present:
            raise UserError(f"{workdir} holds no run; give --config and --seeds")
        return present
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--seeds={text}: whole numbers between commas") from error


def show(table: Mapping[str, Any]) -> str:
    """A line a figure: mean, interval, single runs."""
    number = lambda value: "-" if value is None else f"{value:.4f}"  # noqa: E731
    rows = []
    for system, figures in table.items():
        for name, estimate in figures.items():
            bounds = [number(estimate[key]) for key in ("value", "low", "high")]
            rows.append([system, name, *bounds, " ".join(map(number, estimate["values"]))])
    return text_table(["system", "figure", "mean", "low", "high", "runs"], rows)


def main() -> int:
    """Reads the command line, runs what is missing, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="", help="without it, finished runs are read only")
    parser.add_argument("--seeds", default="", help="between commas; default: those in WORKDIR")
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--figures", default=r"test/(ndcg|hit)@10$|planted/|f1$|win_ratio")
    parser.add_argument("--output", default="", help="JSON")
    args, more = parser.parse_known_args()
    try:
        seeds = seeds_of(args.seeds, args.workdir)
        if args.config:
            run_all(args.config, seeds, args.workdir, more)
        runs = [read_json(args.workdir / str(seed) / "evaluation.json") for seed in seeds]
        table = together(runs, args.figures)
        print(show(table))
        if args.output:
            config = read_json(args.workdir / str(seeds[0]) / "config.json")
            write_json(
                args.output,
                {
                    "config": args.config or config["name"],
                    "seeds": seeds,
                    "machine": {"processor": platform.processor() or platform.machine()},
                    "figures": table,
                },
            )
    except (UserError, re.error) as error:
        print(f"seeds: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
