"""Training data that joint training saves: the share at which it matches the base on all of it.

    python experiments/recpie_data_share.py --workdir=runs/data_share --base=RUN
    python experiments/recpie_data_share.py --workdir=DIR --shares=0.12,1 --seeds=0,1

For each share `data.train_share` keeps the training events of that part of the users, to learn
from; of all others the history is known, and all are tested. The recommender is trained on them
alone, and then jointly with its explainer (`configs/recpie_world.py`). Of the controls only
`planted` is trained, which reads everybody's true tastes: what an explainer without a mistake would
reach with the same fusion. Figures are over the users that no run was taught explanations of, the
same for every share. Answered is: from which share on joint, and the true tastes, are as good as
the recommender alone on all the data, on a straight line between the shares that were run (null: at
none of them).

All share one small language model: that of `--base`, a finished run of the same config (its stages
`recommend` and `pretrain` are enough), or else of `WORKDIR/base`, made first. It has read exercises
made of ALL training visits, whatever the share. With `--anew` each share makes its own from its own
visits, which takes longer. Where `--base` holds the joint stage, too, with `planted`, and it is
that of share 1, it is read and not run again.

Prints a table, writes JSON, and a plot with `--plot` (extra `report`). What is cut off goes on
where it stopped when it is called again. `--override=joint.rounds=4` changes a value of the config.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the other experiment is found without an installation, too

from experiments import recpie_ablations as sweep  # noqa: E402
from xrec_jax.core.errors import UserError  # noqa: E402
from xrec_jax.core.rundir import RunDir  # noqa: E402
from xrec_jax.data.run_data import prepare  # noqa: E402
from xrec_jax.evaluation.statistics.intervals import estimate, paired_difference  # noqa: E402
from xrec_jax.evaluation.statistics.significance import sign_flip  # noqa: E402
from xrec_jax.evaluation.tables import cell, text_table  # noqa: E402
from xrec_jax.joint.states.base import TEST  # noqa: E402
from xrec_jax.joint.states.setup import states_of  # noqa: E402

TRUE = "planted"
SYSTEMS = (sweep.ALONE, sweep.JOINT, TRUE)


def matching_share(shares: Sequence[float], values: Sequence[float], target: float) -> float | None:
    """The smallest share at which `values`, joined by straight lines, reach `target`.

    Args:
      shares: shares of the training data, ascending.
      values: value at each of them.
      target: value to reach.

    Returns:
      The first share where its value is enough already; None where none is.
    """
    for place, (share, value) in enumerate(zip(shares, values, strict=True)):
        if value < target:
            continue
        if place == 0:
            return share
        before, low = shares[place - 1], values[place - 1]
        return before + (target - low) / (value - low) * (share - before)
    return None


def shares_of(text: str) -> list[float]:
    """Shares between commas, ascending.

    Raises:
      UserError: if one is none, or all the data is not among them.
    """
    shares = sorted(set(sweep.numbers(text, "--shares", float)))
    if not shares or not all(0.0 < share <= 1.0 for share in shares):
        raise UserError(f"--shares={text}: a share is above 0 and at most 1")
    if shares[-1] != 1.0:
        raise UserError(f"--shares={text}: add 1, as all are compared with it")
    return shares


def config_of(config: ConfigDict, share: float, base: RunDir | None) -> ConfigDict:
    """The config of a share's run."""
    cfg = config.copy_and_resolve_references()
    cfg.name, cfg.data.train_share = f"recpie_world_share_{share:g}", share
    cfg.joint.systems = (TRUE,)
    cfg.stages = ("recommend", "joint")
    if base is None:
        cfg.stages = ("recommend", "pretrain", "joint")
    else:
        cfg.llm.path, cfg.llm.chat_template = str(base.path / "base"), "no"
    return cfg


def run_share(config: ConfigDict, rundir: RunDir, base: RunDir | None) -> RunDir:
    """Runs a share; the base's recommender has learned from all data, and serves for share 1."""
    if base is not None and config.data.train_share == 1.0:
        if sweep.is_finished(base, config, more_seeds=True):
            return base
        sweep.share(base, rundir, language=False)
    return sweep.run_joint(config, rundir)


def tested(config: ConfigDict) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the users with a test state, and of those whose explanations were taught."""
    states = states_of(config, prepare(config.data))
    return states.user[states.rows(TEST)], np.unique(states.user[sorted(states.teacher)])


def values_of(
    rundirs: Sequence[RunDir], configs: Sequence[ConfigDict], metric: str
) -> dict[str, np.ndarray]:
    """`[shares, seeds, users]` of each system, over users that all shares may be judged by.

    Raises:
      UserError: if there are none.
    """
    # Only users that no run was taught explanations of are comparable over the shares.
    loaded, kept = [], None
    for rundir, config in zip(rundirs, configs, strict=True):
        seeds = []
        for seed in config.seeds:
            with np.load(rundir.per_user(f"{sweep.JOINT}/{seed}")) as file:
                seeds.append({name: file[f"{name}/{metric}"] for name in SYSTEMS})
                users = file["users"]
        with_state, taught = tested(config)
        own = np.isin(users, with_state) & ~np.isin(users, taught)
        kept = own if kept is None else kept & own
        loaded.append(seeds)
    if kept is None or not kept.any():
        raise UserError("every tested user is taught in some run; lower joint.sft.examples")
    return {
        name: np.array([[seed[name][kept] for seed in seeds] for seeds in loaded], np.float64)
        for name in SYSTEMS
    }


def compare(
    shares: Sequence[float], values: dict[str, np.ndarray], *, resamples: int
) -> dict[str, Any]:
    """Figures of every share, and the share that answers the question.

    Args:
      shares: ascending, 1 the last.
      values: of `alone`, `joint` and `planted`, each `[shares, seeds, users]`.
      resamples: number of resamples of the intervals.
    """
    alone, joint = values[sweep.ALONE], values[sweep.JOINT]
    whole = alone[-1]
    table = {}
    for share, alone_values, joint_values, true_values in zip(
        shares, alone, joint, values[TRUE], strict=True
    ):
        table[f"{share:g}"] = {
            "alone": estimate(alone_values, resamples=resamples),
            "joint": estimate(joint_values, resamples=resamples),
            "planted": estimate(true_values, resamples=resamples),
            "joint_less_alone": paired_difference(joint_values, alone_values, resamples=resamples),
            "joint_less_alone_on_all": paired_difference(joint_values, whole, resamples=resamples),
            "p_on_all": sign_flip(joint_values.mean(axis=0), whole.mean(axis=0)),
        }
    # the share that answers the question, and its bound for an explainer without a mistake
    reached, bound = (
        matching_share(shares, system_values.mean(axis=(1, 2)).tolist(), float(whole.mean()))
        for system_values in (joint, values[TRUE])
    )
    return {
        "users": alone.shape[-1],
        "shares": table,
        "matching_share": reached,
        "planted_matching_share": bound,
    }


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Runs and compares all shares; see the head of this file."""
    shares = shares_of(args.shares)
    config = sweep.world_config(args)
    if args.tiny:  # so small a share has no more users to teach by
        config.joint.sft.examples = min(config.joint.sft.examples, 4)
    if args.anew and args.base:
        raise UserError("--anew makes a language model for each share; drop it, or --base")
    base = None if args.anew else sweep.base_of(args, config)
    configs = [config_of(config, share, base) for share in shares]
    rundirs = []
    for share, cfg in zip(shares, configs, strict=True):
        print(f"share {share:g}", flush=True)
        rundir = RunDir(pathlib.Path(args.workdir) / f"share_{share:g}")
        try:
            rundirs.append(run_share(cfg, rundir, base))
        except UserError as error:
            raise UserError(f"share {share:g}: {error}") from error
    k = 10 if 10 in config.ranking.ks else config.ranking.ks[0]
    values = values_of(rundirs, configs, f"ndcg@{k}")
    return {
        "settings": {
            "seeds": config.seeds,
            "tiny": args.tiny,
            "anew": args.anew,
            "override": args.override,
        },
        "metric": f"ndcg@{k}",
        **compare(shares, values, resamples=config.ranking.resamples),
    }


def answer(result: dict[str, Any]) -> str:
    """The share in words."""
    least, parts = min(map(float, result["shares"])), []
    for reached in (result["matching_share"], result["planted_matching_share"]):
        less = " or less" if reached == least else ""
        parts.append("at no share that was run" if reached is None else f"with {reached:.1%}{less}")
    return f"joint reaches the recommender alone on all data {parts[0]}, true tastes {parts[1]}"


def show(result: dict[str, Any]) -> str:
    """A row for each share, as text."""
    rows = [
        [
            share,
            *(cell(record[name]) for name in SYSTEMS),
            signed(record["joint_less_alone"]),
            signed(record["joint_less_alone_on_all"]),
            f"{record['p_on_all']:.4f}",
        ]
        for share, record in result["shares"].items()
    ]
    metric = result["metric"].upper()
    header = [
        "share",
        f"alone, {metric}",
        "joint",
        "true tastes",
        "joint - alone",
        "joint - alone on all",
        "p",
    ]
    return f"{text_table(header, rows)}\n{result['users']:,} users; {answer(result)}"


def signed(difference: Any) -> str:
    """A difference with its interval."""
    low, high = difference["low"], difference["high"]
    bounds = "" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]"
    return f"{difference['value']:+.4f}{bounds}"


def draw(result: dict[str, Any], panel: Any) -> None:
    """Curves over the share, and what the recommender alone reaches on all data."""
    shares = [float(share) for share in result["shares"]]
    for name, colour in zip(SYSTEMS, ("#D55E00", "#0072B2", "#009E73"), strict=True):
        estimates = [record[name] for record in result["shares"].values()]
        panel.plot(
            shares, [record["value"] for record in estimates], "o-", color=colour, label=name
        )
        if all(record["low"] is not None for record in estimates):
            low, high = ([record[bound] for record in estimates] for bound in ("low", "high"))
            panel.fill_between(shares, low, high, color=colour, alpha=0.15, lw=0)
    whole = result["shares"]["1"]["alone"]["value"]
    panel.axhline(whole, color="#666666", ls="--", lw=1, label="alone on all data")
    if result["matching_share"] is not None:
        panel.plot([result["matching_share"]], [whole], "k*", ms=10, label="joint reaches it")
    panel.set(xlabel="share of the users learned from", ylabel=result["metric"].upper())
    panel.legend(frameon=False)


def main() -> None:
    """Parses the command line."""
    parser = sweep.parser_of(__doc__)
    parser.add_argument("--shares", default="0.12,0.25,0.5,1", help="with commas; 1 among them")
    parser.add_argument("--anew", action="store_true", help="a language model for each share")
    args = parser.parse_args()
    sweep.run_shares(args, "recpie_data_share", experiment, draw=draw, show=show)


if __name__ == "__main__":
    main()
