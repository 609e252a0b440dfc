"""Faithfulness of a run's explanations to the planted reasons and to the recommender.

    python experiments/faithfulness.py --workdir=runs/quickstart [--draws=8]

Reads `explanations/pairs.jsonl` and every `explanations/EXPLAINER.jsonl` of a finished run of a
planted world, and writes explanations of known quality for the same pairs as controls:

*   `true` says the planted reasons; `shuffled` says those of another pair, which is what fluent
    text scores by chance; `unfaithful` names values that the item does not have.

For each: precision, recall and F1 of the claimed reasons (means over pairs), and whether the cited
history items moved the recommender more than uncited ones (comprehensiveness and sufficiency, in
nats; `--draws=0` leaves this out). Brackets hold 95 % intervals. Explainers are compared with the
base by F1, p-values by sign flips of the pairs. Prints tables, writes JSON.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath

from xrec_jax.api import Run
from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_json_lines, write_json
from xrec_jax.evaluation.faithfulness.planted import (
    ATTRIBUTES,
    PlantedScores,
    compare,
    score_texts,
    world_vocabulary,
)
from xrec_jax.stages import Context, assess
from xrec_jax.text.records.explanations import join
from xrec_jax.text.synthetic.explanations import explain
from xrec_jax.text.synthetic.template_explainer import unfaithful_explanation

ROOT = epath.Path(__file__).resolve().parents[1]
COLUMNS = ("planted/precision", "planted/recall", "planted/f1", "planted/micro_f1")
AGAINST_RECOMMENDER = tuple(
    f"counterfactual/{name}" for name in ("comprehensiveness", "sufficiency", "measured")
)


def read(folder: epath.Path) -> tuple[list[Any], dict[str, list[str]]]:
    """The pairs of a run, and the texts of each explainer in their order.

    Raises:
      UserError: if there are none, or the pairs are not of a planted world.
    """
    if not (folder / "pairs.jsonl").exists():
        raise UserError(f"{folder / 'pairs.jsonl'}: missing; finish stage 'explain' of the run")
    pairs: list[Any] = read_json_lines(folder / "pairs.jsonl")
    if not pairs or any(pair["planted"] is None for pair in pairs):
        raise UserError(f"{folder}: no planted reasons; they exist in the generated world alone")
    texts: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        records: list[Any] = read_json_lines(path)
        if records and "explainer" in records[0]:
            texts[path.stem] = [both.explanation["text"] for both in join(pairs, records)]
    return pairs, texts


def row(entry: Any) -> dict[str, Any]:
    """A pair's item or history entry as a row with its plain name."""
    return {**entry["attributes"], "name": entry["title"]}


def controls(pairs: Sequence[Any]) -> dict[str, list[str]]:
    """Texts of known quality for the same pairs."""
    vocabulary = {
        name: [str(value) for value in world_vocabulary()[name]]
        for name in ("kind", "cuisine", "mood", "price")
    }
    texts: dict[str, list[str]] = {"true": [], "shuffled": [], "unfaithful": []}
    for place, pair in enumerate(pairs):
        item, key = row(pair), (pair["user"], pair["item"])
        history = [row(entry) for entry in pair["history"]]
        user = pair["profile_attributes"]
        # A pair halfway round is of another user, whatever the number of items a user.
        other = pairs[(place + max(1, len(pairs) // 2)) % len(pairs)]
        for name, planted in (("true", pair["planted"]), ("shuffled", other["planted"])):
            supporting = [types.SimpleNamespace(**reason) for reason in planted["for"]]
            caveats = [types.SimpleNamespace(**reason) for reason in planted["against"]]
            reasons: Any = types.SimpleNamespace(for_=supporting, against=caveats)
            texts[name].append(explain(reasons, item=item, history=history, user=user, key=key))
        texts["unfaithful"].append(
            unfaithful_explanation(item, history, user, key=key, vocabulary=vocabulary)
        )
    return texts


def cell(entry: Any) -> str:
    """A figure with its interval."""
    if entry is None:
        return "-"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"


def show(title: str, names: Sequence[str], table: dict[str, dict[str, Any]]) -> None:
    """Prints the figures `names` of every explainer."""
    print(f"\n{title}\n{'':12}" + "".join(f"{name.split('/')[1]:>25}" for name in names))
    for explainer, figures in table.items():
        print(f"{explainer:12}" + "".join(f"{cell(figures.get(name)):>25}" for name in names))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the run's explanations and the controls, and prints all tables."""
    opened = Run(args.workdir)
    pairs, texts = read(opened.rundir.path / "explanations")
    # An explainer of the run keeps its name where a control has the same one.
    texts = texts | {k: v for k, v in controls(pairs).items() if k not in texts}
    truth = [pair["planted"] for pair in pairs]
    scores: dict[str, PlantedScores] = {
        name: score_texts(written, truth) for name, written in texts.items()
    }
    table: dict[str, dict[str, Any]] = {
        name: own_scores.estimates() for name, own_scores in scores.items()
    }
    show(f"planted reasons, {len(pairs)} pairs", COLUMNS, table)
    show("F1 by attribute", [f"planted/{name}_f1" for name in ATTRIBUTES], table)
    if args.draws:
        opened.config.assess.draws = args.draws
        groundings = assess.ground(opened.data, pairs, texts)
        ctx = Context(opened.config, opened.data, opened.mesh, opened.rundir)
        for name, moved in assess.counterfactual_tables(ctx, pairs, groundings).items():
            table[name] |= moved
        show(f"against the recommender {pairs[0]['system']}", AGAINST_RECOMMENDER, table)
    compared = {}
    for name, own_scores in scores.items():
        if name != "base" and "base" in scores:
            compared[f"{name} vs base"] = compare(own_scores, scores["base"])
    for name, figures in compared.items():
        difference = cell(figures["planted/f1_difference"])
        print(f"{name}: F1 {difference}, p = {figures['planted/p']['value']:.4g}")
    return {
        "pairs": len(pairs),
        "draws": args.draws,
        "explainers": table,
        "compared": compared,
        "words": {
            name: float(np.mean([len(t.split()) for t in written]))
            for name, written in texts.items()
        },
    }


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workdir", required=True, help="a run with a finished stage explain")
    parser.add_argument("--draws", type=int, default=8, help="of uncited entries; 0: leave out")
    parser.add_argument("--output", default="", help="default: experiments/results")
    args = parser.parse_args()
    output = args.output or ROOT / "experiments" / "results" / "faithfulness.json"
    try:
        write_json(output, run(args))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
