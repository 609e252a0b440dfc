"""Ranking figures of users whose histories lack the event right before the test event.

    python experiments/history_gaps.py --workdir=runs/ml1m_sasrec

For data whose times are positions in a user's sequence, like the shared copy of MovieLens-1M: where
the last two events of a user are not neighbours, an event between them is missing. The run is
evaluated already; its users are told apart. Prints a row for each system, users with a gap and the
others, with intervals over users and seeds. Writes JSON with `--output`.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the package is found without an installation, too

from xrec_jax.core.errors import UserError  # noqa: E402
from xrec_jax.core.rundir import RunDir  # noqa: E402
from xrec_jax.core.storage.files import write_json  # noqa: E402
from xrec_jax.data.run_data import RunData, prepare  # noqa: E402
from xrec_jax.evaluation.statistics.intervals import Estimate, estimates  # noqa: E402
from xrec_jax.evaluation.tables import text_table  # noqa: E402
from xrec_jax.inference.run_records import per_user_ids, per_user_values  # noqa: E402
from xrec_jax.run_config import read_config  # noqa: E402


def users_with_gap(data: RunData) -> np.ndarray:
    """`[num_users]` bool: the test event's position is not the one after the validation event's.

    Raises:
      UserError: if times are no positions, or a user has not one event of each kind.
    """
    train, valid, test = data.split.train, data.split.valid, data.split.test
    if train.timestamp is None or valid.timestamp is None or test.timestamp is None:
        raise UserError("events without positions have no gaps")
    following = np.diff(train.user) == 0
    if following.any() and np.mean(np.diff(train.timestamp)[following] == 1) < 0.5:
        raise UserError(
            "the times of this run's events are no positions in the users' histories: fewer than "
            "half of the events follow the one before by 1"
        )
    if not np.array_equal(valid.user, test.user) or len(np.unique(test.user)) < len(test.user):
        raise UserError("gaps are told by one validation and one test event of every user")
    gap = np.zeros(data.dataset.num_users, bool)
    gap[test.user] = test.timestamp - valid.timestamp > 1
    return gap


def figures_apart(
    values: dict[str, np.ndarray], users: np.ndarray, gap: np.ndarray, *, resamples: int
) -> dict[str, dict[str, Estimate]]:
    """Estimates of the users with a gap and of the others.

    Args:
      values: `[seeds, rows]` by metric name.
      users: `[rows]` users of the rows.
      gap: `[num_users]` bool.
      resamples: bootstrap samples.
    """
    with_gap = gap[users]
    return {
        name: estimates(
            {key: value[:, rows] for key, value in values.items()},
            users=users[rows],
            resamples=resamples,
        )
        for name, rows in (("gap", with_gap), ("no gap", ~with_gap))
        if rows.any()
    }


def _cell(figure: Estimate) -> str:
    low, high = figure["low"], figure["high"]
    bounds = "" if low is None or high is None else f" [{low:.4f}, {high:.4f}]"
    return f"{figure['value']:.4f}{bounds}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Prints the table, and returns it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="a finished run")
    parser.add_argument("--metrics", default="ndcg@10,hit@10")
    parser.add_argument("--output", default="", help="JSON file")
    args = parser.parse_args(argv)
    rundir = RunDir(args.workdir)
    config = read_config(rundir)
    gap = users_with_gap(prepare(config.data))
    table: dict[str, Any] = {}
    rows = []
    names = [f"test/{metric}" for metric in args.metrics.split(",")]
    for system in config.recommend:
        values = per_user_values(config, system, rundir)
        if unknown := [name for name in names if name not in values]:
            raise UserError(f"--metrics: the run has no {unknown[0]}")
        users = per_user_ids(config, system, rundir)["test_users"]
        table[system] = figures_apart(
            {name: values[name] for name in names}, users, gap, resamples=config.ranking.resamples
        )
        for group, figures in table[system].items():
            count = str(next(iter(figures.values()))["count"])
            rows.append([system, group, count, *map(_cell, figures.values())])
    print(text_table(["system", "users", "count", *names], rows))
    if args.output:
        write_json(pathlib.Path(args.output), table)
    return table


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(str(error))
