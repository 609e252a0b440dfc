"""Results of a joint run: figures over seeds, paired tests and the table."""

from __future__ import annotations

from typing import Any

import numpy as np
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.core.storage.arrays import write_npz
from xrec_jax.evaluation.faithfulness.planted import score_texts
from xrec_jax.evaluation.statistics.intervals import (
    Estimate,
    estimate,
    estimates,
    exact,
    paired_difference,
)
from xrec_jax.evaluation.statistics.significance import sign_flip
from xrec_jax.evaluation.tables import text_table
from xrec_jax.inference import run_records
from xrec_jax.joint.controls.registry import ALONE, JOINT, compared, published
from xrec_jax.joint.controls.systems import Systems
from xrec_jax.joint.granularity import granularity_of
from xrec_jax.joint.guards import GuardOptions, kept_round
from xrec_jax.joint.sides import Sides
from xrec_jax.joint.state import JointState
from xrec_jax.joint.states.base import TEST
from xrec_jax.joint.states.setup import StateSetup
from xrec_jax.llm.io.peft_io import save_adapter
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.parallel.mesh import gather
from xrec_jax.text.synthetic.taste_pairs import split_pair
from xrec_jax.text.words import word_count


def texts_path(rundir: RunDir, seed: int) -> epath.Path:
    """File of a seed's final texts."""
    return rundir.path / "explanations" / f"joint_{seed}.jsonl"


def leave_seed(sides: Sides, state: JointState, systems: Systems, figures: Any) -> None:
    """Writes texts, adapter and per-user figures of a seed; the last file marks it done.

    Args:
      sides: of the seed.
      state: after the rounds.
      systems: trained and tested.
      figures: per-user test metrics of every system.
    """
    shared, setup, seed = sides.shared, sides.setup, sides.seed
    policy = gather(state.best["policy"])
    texts = {name: systems.texts(name) for name in systems.names() if name in published()}
    if not is_primary():
        barrier("joint")
        return
    # The adapter in PEFT's format, which other programs load.
    folder = shared.rundir.path / "adapter_joint" / str(seed)
    if folder.exists():  # of this seed, before a kill kept it from being done
        folder.rmtree()
    save_adapter(folder, Adapter(policy["lora"], shared.lora), base=shared.base.identity())
    records = []
    ids, states = shared.data.dataset.user_ids, setup.states
    for name, made in texts.items():
        for s, text in zip(systems.rows, made, strict=True):
            if states.part[s] == TEST:
                why, why_not = split_pair(text)
                [named] = states.records(np.array([s]), shared.data.dataset.item_ids)
                records.append(
                    {
                        "user": str(ids[states.user[s]]),
                        **named,
                        "system": name,
                        "text": text,
                        "why": why,
                        "why_not": why_not,
                    }
                )
    path = texts_path(shared.rundir, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, files.json_lines(records))
    # Per-user figures last: their file marks the seed as done.
    arrays = {
        f"{name}/{key.removeprefix('test/')}": value
        for name, metrics in figures.items()
        for key, value in metrics.items()
        if key != "users"
    }
    arrays["users"] = figures[JOINT]["users"]

    write_npz(shared.rundir.per_user(f"{STAGE}/{seed}"), arrays)
    barrier("joint")


def aggregate(config: Any, setup: StateSetup, rundir: RunDir) -> dict[str, dict[str, Estimate]]:
    """Every system's figures over users and seeds, and the differences that decide."""
    resamples = config.ranking.resamples
    per_seed = []
    for seed in config.seeds:
        per_seed.append(run_records.per_user(rundir, f"{STAGE}/{seed}"))
    users = per_seed[0]["users"]
    values = run_records.stacked(per_seed, rundir.path / "per_user" / STAGE)
    names = list(dict.fromkeys(key.split("/")[0] for key in values))
    # Only users that were explained, and that the warm start was not taught with.
    kept = np.isin(users, setup.states.user[setup.states.rows(TEST)])
    kept &= ~np.isin(users, setup.taught_users)  # taught users may be known
    if not kept.any():
        raise UserError(
            "joint: every user with a test state is taught; lower joint.sft.examples or raise "
            "joint.states.max_users"
        )
    table: dict[str, dict[str, Estimate]] = {}
    for name in names:
        own = {
            f"test/{key.split('/', 1)[1]}": v
            for key, v in values.items()
            if key.startswith(f"{name}/")
        }
        table[name] = estimates({k: v[:, kept] for k, v in own.items()}, resamples=resamples)
        if not kept.all():
            whole = {k.replace("test/", "test_all/"): v for k, v in own.items()}
            table[name] |= estimates(whole, resamples=resamples)
    _add_texts(config, setup, rundir, table, resamples)
    metric = f"ndcg@{setup.shared.best_k}"
    pairs = [(name, ALONE) for name in names if name != ALONE]
    pairs += [(JOINT, name) for name in compared() if name in names]
    pairs += [("refit", "sft")] if {"refit", "sft"} <= {*names} else []  # only texts differ
    for first, second in pairs:
        a, b = (values[f"{system}/{metric}"][:, kept] for system in (first, second))
        apart = paired_difference(a, b, resamples=resamples)
        scale = max(float(b.mean()), 1e-12)
        p = sign_flip(a.mean(axis=0), b.mean(axis=0))
        table[f"{first} vs {second}"] = {
            f"{metric}/difference": apart,
            f"{metric}/relative": _share(apart, scale),
            f"{metric}/p": exact(p, int(kept.sum())),
        }
    table["rounds"] = _over_rounds(config, rundir)
    return table


def _share(apart: Estimate, scale: float) -> Estimate:
    """A difference and its interval as shares of `scale`."""
    low, high = apart["low"], apart["high"]
    return {
        "value": apart["value"] / scale,
        "low": None if low is None else low / scale,
        "high": None if high is None else high / scale,
        "count": apart["count"],
    }


def _add_texts(
    config: Any, setup: StateSetup, rundir: RunDir, table: dict[str, Any], resamples: int
) -> None:
    """Planted F1, length and mentions of titles of the final texts."""
    values: dict[str, dict[str, list[np.ndarray]]] = {}
    users, items = setup.shared.data.dataset.user_ids, setup.shared.data.dataset.item_ids
    for seed in config.seeds:
        finished = granularity_of(config).of_finished(setup, seed)
        states, monitors = finished.states, finished.monitors
        test = states.rows(TEST)
        test = test[~np.isin(states.user[test], setup.taught_users)]
        names = states.records(test, items)
        of_record = {
            (str(users[states.user[s]]), name.get("item")): int(s)
            for s, name in zip(test, names, strict=True)
        }
        path = texts_path(rundir, seed)
        by_system: dict[str, list[Any]] = {}
        for record in run_records.joint_texts(rundir, path):
            by_system.setdefault(record["system"], []).append(record)
        for name, records in by_system.items():
            records = [r for r in records if (r["user"], r.get("item")) in of_record]
            texts = [record["text"] for record in records]
            chosen = [of_record[record["user"], record.get("item")] for record in records]
            own = values.setdefault(name, {})
            own.setdefault("text/words", []).append(
                np.array([word_count(text) for text in texts], np.float64)
            )
            if states.planted is not None:
                f1 = score_texts(texts, [states.planted[s] for s in chosen]).f1
                own.setdefault("planted/f1", []).append(f1)
                # What a text scores against somebody else's reasons: the zero of the F1.
                other = np.roll(np.arange(len(chosen)), 1)
                chance = score_texts(texts, [states.planted[chosen[o]] for o in other]).f1
                own.setdefault("planted/f1_chance", []).append(chance)
            measured = monitors.measure(
                texts, [states.prompts[s] for s in chosen], states.unshown_target[chosen]
            )
            for key in ("title_mention", "target_title", "copied_prompt"):
                own.setdefault(f"text/{key}", []).append(np.array([measured[f"monitor/{key}"]]))
    for name, own in values.items():
        for key, arrays in own.items():
            stacked = np.stack(arrays)
            single = stacked.shape[1] == 1
            table[name][key] = (
                exact(float(stacked.mean()), len(test))
                if single
                else estimate(stacked, resamples=resamples)
            )


def _over_rounds(config: Any, rundir: RunDir) -> dict[str, Estimate]:
    """What changed from the warm start to the best round, over seeds."""
    options = GuardOptions.of(config.joint.guards)
    first, last, stopped, gains = [], [], 0, []
    sampled: list[tuple[float, float]] = []  # in the first round and in the last
    for seed in config.seeds:
        rounds = run_records.rounds(rundir, str(seed))
        kept = kept_round(rounds, options)
        # Without a good round the parameters of the warm start are kept.
        best = next((record for record in rounds if record["round"] == kept), rounds[0])
        gains.append(best["valid/gain"])
        stopped += int(rounds[-1].get("stopped", 0))
        rolled = [
            record["rollout/planted_f1"] for record in rounds if "rollout/planted_f1" in record
        ]
        if rolled:
            sampled.append((rolled[0], rolled[-1]))
        if "valid/planted_f1" in rounds[0]:
            first.append(rounds[0]["valid/planted_f1"])
            last.append(best["valid/planted_f1"])
    count = len(config.seeds)
    table = {
        "guards/stopped": exact(stopped, count),
        "valid/best_gain": exact(float(np.mean(gains)), count),
    }
    if first:
        table |= {
            "planted/f1_first": exact(float(np.mean(first)), count),
            "planted/f1_best": exact(float(np.mean(last)), count),
            "planted/f1_difference": exact(float(np.mean(last) - np.mean(first)), count),
        }
    if sampled:
        begin, end = np.mean(sampled, axis=0)
        table |= {
            "rollout/planted_f1_first": exact(float(begin), len(sampled)),
            "rollout/planted_f1_last": exact(float(end), len(sampled)),
        }
    return table


def figures_table(table: dict[str, dict[str, Estimate]], k: int) -> str:
    """Systems, their NDCG, and their gain over the recommender alone, as text."""
    rows = []
    for name, figures in table.items():
        if f"test/ndcg@{k}" not in figures:
            continue
        cells = [name, f"{figures[f'test/ndcg@{k}']['value']:.4f}"]
        against = table.get(f"{name} vs {ALONE}")
        if against:
            gain, p = against[f"ndcg@{k}/relative"], against[f"ndcg@{k}/p"]["value"]
            low, high = gain["low"], gain["high"]
            bounds = "" if low is None or high is None else f" [{low:+.1%}, {high:+.1%}]"
            cells += [f"{gain['value']:+.1%}{bounds}", f"{p:.4f}"]
        else:
            cells += ["-", "-"]
        f1 = figures.get("planted/f1")
        cells.append("-" if f1 is None else f"{f1['value']:.3f}")
        rows.append(cells)
    return text_table(["system", f"NDCG@{k}", "gain over alone", "p", "planted F1"], rows)


STAGE = "joint"
