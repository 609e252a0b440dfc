"""What a text is worth by how a recommender reads it, without any language model.

    python experiments/recpie_match.py --workdir=runs/match
    python experiments/recpie_match.py --workdir=DIR --shares=0.12,1 --seeds=0

Users of the world of `configs/recpie_world.py` are described by texts that need nobody to write
them: what their prompts state (`stated`), their true tastes (`planted`), and true tastes of which
some are replaced by others until they have the F1 of `--f1` (`noisy`). A recommender that is
trained on a share of the users reads each of them twice: through the residual of the user state
alone, and with the match head beside it, in which a text meets what items are
(`recommenders.explained.match`). Texts are bags of words. `history` is the same recommender that
reads what the items of the history are instead of a text. For each share `data.train_share` keeps
the training events of that part of the users; all users are tested, by recommenders that were
chosen on other events.

Figures are means over seeds; intervals draw seeds and users. Answered is: from which share on a
text is as good as the recommender alone on all the data (null: at none that was run).

Prints a table, writes JSON, and a plot with `--plot` (extra `report`). Recommenders that are
trained already are read from the work directory.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the other experiments are values without an installation, too

from experiments import recpie_ablations as sweep  # noqa: E402
from experiments.recpie_data_share import matching_share, shares_of  # noqa: E402
from xrec_jax.core.errors import UserError  # noqa: E402
from xrec_jax.core.logging import MetricWriter, log  # noqa: E402
from xrec_jax.core.rundir import RunDir  # noqa: E402
from xrec_jax.data.run_data import RunData, prepare  # noqa: E402
from xrec_jax.data.world import vocabulary  # noqa: E402
from xrec_jax.evaluation.faithfulness.planted import score_texts  # noqa: E402
from xrec_jax.evaluation.statistics.intervals import estimate  # noqa: E402
from xrec_jax.evaluation.tables import cell, text_table  # noqa: E402
from xrec_jax.joint.controls.registry import said  # noqa: E402
from xrec_jax.joint.recommender.fitting import fit  # noqa: E402
from xrec_jax.joint.recommender.fused import FusedTask, system_of  # noqa: E402
from xrec_jax.joint.setup import JointSetup, cut_off  # noqa: E402
from xrec_jax.joint.states.base import TRAIN, VALID, JointStates  # noqa: E402
from xrec_jax.joint.states.setup import StateSetup, state_setup, states_of  # noqa: E402
from xrec_jax.parallel.mesh import open_mesh  # noqa: E402
from xrec_jax.run_config import start_run  # noqa: E402
from xrec_jax.text.bag_of_words import BagOfWords  # noqa: E402
from xrec_jax.training.recommender import RecommenderTask  # noqa: E402

ALONE = "alone"
TEXTS = ("noisy", "stated", "planted")
HISTORY = "history"  # no text: what the items of the history are, averaged
HEADS = ("residual", "match")
VALUES = {
    "kind": vocabulary.KINDS,
    "cuisine": tuple(c for c in vocabulary.CUISINES if c != "none"),
    "mood": vocabulary.MOODS,
}
COLOURS = {"history": "#D55E00", "noisy": "#0072B2", "stated": "#009E73", "planted": "#CC79A7"}


def noisy(planted: Any, rate: float, key: int) -> dict[str, list[dict[str, str]]]:
    """Tastes of which each is replaced by another value of its attribute at a rate.

    Args:
      planted: as `JointStates.planted` has them.
      rate: from 0 to 1.
      key: of the draws.
    """
    rng = np.random.default_rng(key)
    sides: dict[str, list[dict[str, str]]] = {}
    for side in ("for", "against"):
        kept = {(one["attribute"], one["value"]) for one in planted[side]}
        sides[side] = []
        for reason in planted[side]:
            name, value = reason["attribute"], reason["value"]
            if rng.random() < rate:
                others = [v for v in VALUES[name] if (name, v) not in kept]
                value = str(rng.choice(others)) if others else value
            sides[side].append({**reason, "value": value})
    return sides


def noisy_texts(states: JointStates, f1: float, seed: int) -> tuple[list[str], float]:
    """Texts with the mean F1 that is wanted, up to a few thousandths, and the F1 that they have."""
    assert states.planted is not None
    low, high = 0.0, 1.0
    for _ in range(12):
        rate = (low + high) / 2
        texts = [said(noisy(p, rate, seed * 10**9 + n)) for n, p in enumerate(states.planted)]
        reached = float(score_texts(texts, list(states.planted)).f1.mean())
        if abs(reached - f1) < 0.003:
            break
        low, high = (rate, high) if reached > f1 else (low, rate)
    return texts, reached


def texts_of(states: JointStates, f1: float, seed: int) -> tuple[dict[str, list[str]], float]:
    """The texts of every state by their names, and the F1 of the noisy ones."""
    assert states.planted is not None and states.stated is not None
    damaged, reached = noisy_texts(states, f1, seed)
    return {
        "noisy": damaged,
        "stated": list(states.stated),
        "planted": [said(planted) for planted in states.planted],
    }, reached


def alone_of(
    config: ConfigDict, data: RunData, mesh: Any, rundir: RunDir, seed: int
) -> tuple[RecommenderTask, Any]:
    """The recommender alone of a seed, trained unless it is there."""
    task = RecommenderTask(config, system_of(config), data=data, mesh=mesh, rundir=rundir)
    writer = MetricWriter(rundir.path)
    task.fit(seed, writer)
    writer.close()
    return task, task.restore(seed)


def tested(
    fused: FusedTask,
    setup: StateSetup,
    alone: Any,
    read: dict[str, np.ndarray],
    *,
    steps: int,
    seed: int,
) -> np.ndarray:
    """NDCG `[users]` of the test by a recommender trained to read; -1 for none.

    Args:
      fused: the recommender, not trained yet.
      setup: of the run's states.
      alone: parameters and frozen arrays of the recommender alone.
      read: `encoding` and `present` of every state.
      steps: updates; 0 tests the recommender alone.
      seed: of their order.
    """
    params, arrays = alone
    rows = setup.states.rows(VALID)
    tracked = rows[np.isin(setup.states.user[rows], setup.tracked_users)]
    constants = fused.constants(read, np.concatenate([setup.learned, tracked]))
    constants["temperature"] = np.asarray(fused.temperature(params, arrays))
    frozen = fused.frozen(arrays, constants)
    state = fused.initial(seed, params)
    if steps:
        params = fit(fused, state, frozen, read, steps=steps, seed=seed).params
    else:
        params = state.params  # a fusion that is not trained adds nothing
    per_user = fused.evaluate("test", params, frozen, read)
    values = np.full(setup.shared.data.dataset.num_users, -1.0)
    values[per_user.users] = per_user.masked[f"ndcg@{setup.shared.best_k}"]
    return values


def run_share(
    config: ConfigDict, share: float, workdir: pathlib.Path, *, f1: float, steps: int, features: int
) -> tuple[dict[str, np.ndarray], list[float]]:
    """`[seeds, users]` NDCG of every system at a share, and the F1 of each seed's noisy texts."""
    config = config.copy_and_resolve_references()
    config.data.train_share = share
    data = prepare(config.data)
    states = states_of(config, data)
    rundir = RunDir(workdir / f"share_{share:g}")
    config.stages = ("recommend",)
    start_run(rundir, config)  # refuses recommenders of another configuration
    values: dict[str, list[np.ndarray]] = {}
    reached = []
    with open_mesh(config) as mesh:
        for seed in config.seeds:
            task, alone = alone_of(config, data, mesh, rundir, seed)
            texts, value = texts_of(states, f1, seed)
            reached.append(value)
            # Words of test texts alone are not known, as they would not be of texts yet to come.
            known = [texts[name][s] for name in TEXTS for s in states.rows(TRAIN)]
            encoder = BagOfWords([*states.item_texts, *known])
            for head in HEADS:
                own = config.copy_and_resolve_references()
                own.joint.recommender.match = features if head == "match" else 0
                shared = JointSetup(own, data, None, mesh=mesh, rundir=rundir, encoder=encoder)
                setup = state_setup(shared, states)
                fused = FusedTask(setup, task, width=encoder.width)  # compiles once for all
                for name in (HISTORY, *TEXTS):
                    if name == HISTORY:
                        read = setup.history_reading()
                    else:
                        encoding, present = shared.encode(texts[name])
                        read = {"encoding": encoding, "present": present}
                    if len(values.get(ALONE, ())) < len(reached):
                        measured = tested(fused, setup, alone, read, steps=0, seed=seed)
                        values.setdefault(ALONE, []).append(measured)
                    count = steps or fused.steps
                    measured = tested(fused, setup, alone, read, steps=count, seed=seed)
                    values.setdefault(f"{name}, {head}", []).append(measured)
                    mean = measured[measured >= 0].mean()
                    log(f"share {share:g}, seed {seed}: {name}, {head}: {mean:.4f}")
        jax.clear_caches()
    return {name: np.array(rows) for name, rows in values.items()}, reached


def answer(
    shares: list[float], values: list[dict[str, np.ndarray]], *, resamples: int
) -> dict[str, Any]:
    """Figures of every share, and from which share on each text reaches alone on all the data.

    Args:
      shares: ascending, 1 the last.
      values: of every share, `[seeds, users]` by system; a user without a test event has -1.
      resamples: number of resamples of the intervals.
    """
    kept = (values[-1][ALONE] >= 0).all(axis=0)
    table = {
        f"{share:g}": {
            name: estimate(rows[:, kept], resamples=resamples) for name, rows in systems.items()
        }
        for share, systems in zip(shares, values, strict=True)
    }
    whole = float(values[-1][ALONE][:, kept].mean())
    parity = {
        name: matching_share(shares, [float(f[name][:, kept].mean()) for f in values], whole)
        for name in values[-1]
        if name != ALONE
    }
    return {"users": int(kept.sum()), "shares": table, "parity_share": parity}


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all shares; see the head of this file."""
    if args.base:
        raise UserError("--base: nothing is shared here; drop it")
    if args.steps < 0 or args.features < 1:
        raise UserError("--steps is at least 0 and --features at least 1")
    shares = shares_of(args.shares)
    config = sweep.world_config(args)
    values, reached = [], []
    for share in shares:
        systems, f1 = run_share(
            config,
            share,
            pathlib.Path(args.workdir),
            f1=args.f1,
            steps=args.steps,
            features=args.features,
        )
        values.append(systems)
        reached += f1
    return {
        "settings": {
            "seeds": config.seeds,
            "tiny": args.tiny,
            "override": args.override,
            "steps": args.steps,
            "features": args.features,
            "f1": args.f1,
        },
        "metric": f"ndcg@{cut_off(config)}",
        "noisy_f1": float(np.mean(reached)),
        **answer(shares, values, resamples=config.ranking.resamples),
    }


def show(result: dict[str, Any]) -> str:
    """A row for each system, a column for each share."""
    shares = list(result["shares"])
    rows = []
    for name in result["shares"][shares[-1]]:
        parity = result["parity_share"].get(name)
        rows.append(
            [
                name,
                *(cell(result["shares"][share][name]) for share in shares),
                "" if name == ALONE else shown_share(parity, least=float(shares[0])),
            ]
        )
    return text_table([result["metric"].upper(), *shares, "as alone on all"], rows)


def shown_share(share: float | None, *, least: float) -> str:
    """A share in words; nothing is known below the least that was run."""
    if share is None:
        return "none"
    return f"{share:.1%}" + (" or less" if share == least else "")


def draw(result: dict[str, Any], panel: Any) -> None:
    """A curve for each text and head over the share."""
    shares = [float(share) for share in result["shares"]]
    curve: Callable[[str], list[float]] = lambda name: [  # noqa: E731
        record[name]["value"] for record in result["shares"].values()
    ]
    for text, colour in COLOURS.items():
        for head, style in (("match", "o-"), ("residual", "o:")):
            panel.plot(
                shares, curve(f"{text}, {head}"), style, color=colour, label=f"{text}, {head}"
            )
    panel.plot(shares, curve(ALONE), "o-", color="#666666", label=ALONE)
    panel.axhline(curve(ALONE)[-1], color="#666666", ls="--", lw=1)
    panel.set(
        xlabel="share of the users learned from", ylabel=result["metric"].upper(), xscale="log"
    )
    panel.set_xticks(shares, [f"{share:g}" for share in shares])
    panel.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    """Parses the command line."""
    parser = sweep.parser_of(__doc__)
    parser.add_argument(
        "--shares", default="0.05,0.12,0.25,0.5,1", help="with commas; 1 among them"
    )
    parser.add_argument("--f1", type=float, default=0.735, help="of the noisy texts")
    parser.add_argument("--steps", type=int, default=0, help="updates; default: those of a run")
    parser.add_argument("--features", type=int, default=64, help="of the match head, at most")
    args = parser.parse_args()
    sweep.run_shares(args, "recpie_match", experiment, draw=draw, show=show)


if __name__ == "__main__":
    main()
