"""Effect of tuning on explanations that are unequal between groups, and of balancing the set.

    python experiments/bias_mitigation.py --base=runs/scratch/base --workdir=runs/bias

A teacher in the quickstart's world writes longer explanations for women than for men; all of them
are true. Three adapters are tuned on as many of them, from the same base:

- `biased`: examples as they come.
- `matched`: `instruct.balance=gender` chooses from four times as many, groups equal in number and
  in the distribution of lengths (`text.sampling.match_lengths`).
- `one_length`: of a short, a middle and a long answer to each prompt the one nearest to a length
  for all (`text.sampling.one_answer_each`).

Then the base and each of them answer the same prompts of visits that no set holds. The gap is
Hedges' g of the number of words, women minus men, with a 95 % interval; p-values of words are
Holm-corrected over the explainers and the changes between them, those of all other figures over
the whole rest. Prints a table, writes JSON. The base is that of a finished
`configs/quickstart.py:scratch`. A run that was cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec_jax.api.run import run as run_stages
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage.files import write_json
from xrec_jax.data.run_data import RunData, prepare
from xrec_jax.evaluation.bias import Comparison, compare_groups, explanation_figures
from xrec_jax.evaluation.texts.grounding import Grounder, ground_pairs, vocabulary_of
from xrec_jax.llm import run_base
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.parallel.mesh import saved_mesh, use_mesh
from xrec_jax.run_config import read_config
from xrec_jax.tasks import instructions, prompting
from xrec_jax.tasks.prompting import visits_to_explain
from xrec_jax.text.records.instructions import Instruction, write_instructions
from xrec_jax.text.records.splits import one_answer_each, select
from xrec_jax.text.synthetic.explanations import Length
from xrec_jax.text.synthetic.instructions import Case, build_instructions

ROOT = pathlib.Path(__file__).resolve().parents[1]
GROUPS = ("woman", "man")
SHORT = Length(low=24, mean=38, high=60, most=66)
MIDDLE = Length(low=36, mean=52, high=70, most=74)
LONG = Length(low=42, mean=68, high=84, most=88)
COLUMNS = ("kind", "cuisine", "mood", "price", "popularity", "district")


class Writer:
    """Writes true explanations of any length for visits of the world.

    Args:
      config: of a run on the world.
      data: its data.
      tokenizer: of the base: prompts keep to its budget.
    """

    def __init__(self, config: Any, data: RunData, tokenizer: Tokenizer):
        self.prompting = prompting.prompting(config.instruct, data, tokenizer)
        self.data = data
        users = data.dataset.users
        self.gender = [] if users is None else users["gender"].to_list()

    def visits(self, count: int, *, seed: int) -> list[tuple[int, int, np.ndarray, int]]:
        """`count` visits of women and men."""
        visits = visits_to_explain(self.data, count + count // 4, seed=seed)
        return [visit for visit in visits if self.gender[visit[0]] in GROUPS][:count]

    def cases(self, visits: Sequence[tuple[int, int, np.ndarray, int]]) -> list[Case]:
        """Visits with their true reasons."""
        if self.data.world is None:
            raise UserError("this experiment needs a planted world")
        users, items, visits_before = (np.array([visit[i] for visit in visits]) for i in (0, 1, 3))
        reasons = self.data.world.reasons(users, items, visits_before)
        dataset = self.data.dataset
        return [
            Case(
                item=self.prompting.items[item],
                history=[self.prompting.items[i] for i in before],
                reasons=own_reasons,
                user=self.prompting.user(user),
                meta={
                    "user": str(dataset.user_ids[user]),
                    "item": str(dataset.item_ids[item]),
                    "gender": self.gender[user],
                },
            )
            for (user, item, before, _), own_reasons in zip(visits, reasons, strict=True)
        ]

    def write(self, cases: Sequence[Case], length: Length) -> list[Instruction]:
        """An instruction for every case."""
        return build_instructions(
            cases,
            self.prompting.template,
            latest=self.prompting.latest,
            count_tokens=self.prompting.count_tokens,
            max_tokens=self.prompting.max_tokens,
            length=length,
        )[0]


def sets(writer: Writer, examples: int) -> dict[str, list[Instruction]]:
    """The file of each arm: the pool that it chooses from, or what is chosen already."""
    cases = writer.cases(writer.visits(4 * examples, seed=0))
    answers = {
        name: writer.write(cases, length)
        for name, length in (("short", SHORT), ("middle", MIDDLE), ("long", LONG))
    }
    unequal = [
        answers["long" if case.meta["gender"] == "woman" else "short"][place]
        for place, case in enumerate(cases)
    ]
    # As many as the run tunes on and holds out, so that every arm sees the same number.
    tuned = select(unequal, examples + examples // 8, balance="gender")
    chosen = {example.group for example in tuned}
    several = [
        example
        for answer_set in answers.values()
        for example in answer_set
        if example.group in chosen
    ]
    return {"biased": tuned, "matched": unequal, "one_length": one_answer_each(several)}


def words_by_group(examples: Sequence[Instruction]) -> dict[str, dict[str, float]]:
    """Examples and mean words of each gender."""
    groups = collections.defaultdict(list)
    for example in examples:
        groups[str(example.meta["gender"])].append(len(example.completion.split()))
    return {
        name: {"examples": len(words), "words": float(np.mean(words))}
        for name, words in sorted(groups.items())
    }


def tune(config: Any, args: argparse.Namespace, name: str, path: pathlib.Path) -> RunDir:
    """Tunes the adapter of an arm; a finished one is kept."""
    cfg = config.copy_and_resolve_references()
    cfg.name, cfg.stages = f"bias_{name}", ("instruct",)
    cfg.llm.path = args.base
    cfg.instruct.update(
        dict(
            source="file",
            path=str(path),
            examples=args.examples,
            held_out=0.05,
            stratify="gender" if name == "biased" else "",
            balance="gender" if name == "matched" else "",
        )
    )
    cfg.instruct.train.update(dict(epochs=args.epochs, evaluate_every=args.epochs))
    cfg.instruct.samples.update(dict(final=8))
    return run_stages(cfg, path.parent / name)


def answers_of(rundir: RunDir, prompts: Sequence[str], tuned: bool) -> list[str]:
    """Answers of the adapter of an arm, or of its base."""
    config = read_config(rundir)
    with use_mesh(saved_mesh(config)) as mesh:
        base = run_base.load_base(config, rundir, mesh)
        adapters = {"tuned": run_base.tuned_adapter(rundir, base)} if tuned else {}
        lm = run_base.language_model(config, base, adapters)
        records = run_base.answer(config, lm, prompts, "tuned" if tuned else None)
    return [record["text"] for record in records]


def gaps(
    figures: dict[str, dict[str, np.ndarray]],
    tested: Sequence[tuple[Case, Instruction]],
    *,
    only: str = "",
    without: str = "",
) -> list[Comparison]:
    """Gaps between women and men, of one figure or of all but one."""
    chosen = {
        explainer: {
            name: values for name, values in named.items() if name != without and only in ("", name)
        }
        for explainer, named in figures.items()
    }
    return compare_groups(
        chosen,
        {"gender": [case.meta["gender"] for case, _ in tested]},
        users=[str(case.meta["user"]) for case, _ in tested],
        changes=(("matched", "biased"), ("one_length", "biased")),
    )


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all arms; see the head of this file."""
    sys.path.insert(0, str(ROOT))
    config = importlib.import_module("configs.quickstart").get_config("scratch")
    config.instruct.history = args.history
    config.instruct.train.batch_size = args.batch
    data = prepare(config.data)
    writer = Writer(config, data, load_tokenizer(args.base))
    folder = pathlib.Path(args.workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    pools = sets(writer, args.examples)
    # Visits of any set: the tested prompts must be of others.
    seen = {example.group for pool in pools.values() for example in pool}
    cases = writer.cases(writer.visits(2 * args.prompts, seed=1))
    tested = [
        (case, example)
        for case, example in zip(cases, writer.write(cases, MIDDLE), strict=True)
        if example.group not in seen
    ][: args.prompts]
    prompts = [example.prompt for _, example in tested]
    # The grounding of answers needs the facts that each prompt shows.
    grounder = Grounder(
        [row["name"] for row in writer.prompting.items],
        vocabulary_of(writer.prompting.items, COLUMNS),
    )
    pairs = [
        {
            "title": case.item["name"],
            "attributes": {column: case.item[column] for column in COLUMNS},
            "history": [
                {"title": row["name"], "attributes": {column: row[column] for column in COLUMNS}}
                for row in case.history[-config.instruct.history :]
            ],
        }
        for case, _ in tested
    ]
    result: dict[str, Any] = {
        "settings": {k: v for k, v in vars(args).items() if k not in ("base", "workdir", "output")},
        "prompts": dict(collections.Counter(str(case.meta["gender"]) for case, _ in tested)),
        "sets": {},
        "explainers": {},
    }
    figures: dict[str, dict[str, np.ndarray]] = {}
    for name, pool in pools.items():
        path = folder / f"{name}.jsonl"
        write_instructions(path, pool)
        rundir = tune(config, args, name, path)
        # `matched` chooses from its pool, so the table shows the examples that were used.
        used = instructions.read_instructions(rundir.path / "instructions" / "train.jsonl")
        result["sets"][name] = words_by_group(used)
        # The base answers once, in the first round.
        for explainer, tuned in ((("base", False),) if not figures else ()) + ((name, True),):
            texts = answers_of(rundir, prompts, tuned)
            figures[explainer] = explanation_figures(texts, ground_pairs(grounder, pairs, texts))
            result["explainers"][explainer] = {
                metric: float(np.nanmean(values)) for metric, values in figures[explainer].items()
            }
    # Words are a family of tests of their own; see the head of this file.
    result["gaps"] = {}
    for comparison in gaps(figures, tested, only="words") + gaps(figures, tested, without="words"):
        sign = 1 if comparison.first == "woman" else -1  # women minus men
        low, high = sorted((sign * comparison.effect.low, sign * comparison.effect.high))
        result["gaps"].setdefault(comparison.explainer, {})[comparison.metric] = {
            "difference": sign * comparison.effect.difference,
            "g": sign * comparison.effect.size,
            "low": low,
            "high": high,
            "p": comparison.p,
            "users": list(comparison.effect.counts),
        }
    return result


def show(result: dict[str, Any]) -> None:
    """Prints the mean words of each set and the gap in words of each explainer."""
    for name, figures in result["sets"].items():
        summary = ", ".join(f"{group} {figures[group]['words']:.1f} words" for group in GROUPS)
        print(f"set {name:12} {summary}")
    print(f"{'explainer':22}{'words':>8}{'women - men':>13}{'g':>7}  95 % interval     p")
    for name, metrics in result["gaps"].items():
        gap = metrics["words"]
        words = result["explainers"].get(name, {}).get("words")
        print(
            f"{name:22}{'' if words is None else f'{words:.1f}':>8}{gap['difference']:13.2f}"
            f"{gap['g']:7.2f}  [{gap['low']:.2f}, {gap['high']:.2f}]  {gap['p']:.2g}"
        )


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--base", required=True, help="base of a finished quickstart:scratch")
    parser.add_argument("--workdir", required=True, help="where sets and runs go")
    parser.add_argument("--examples", type=int, default=240, help="to tune on, each arm")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8, help="rows of a step")
    parser.add_argument("--history", type=int, default=4, help="entries of a prompt")
    parser.add_argument("--prompts", type=int, default=300, help="answered by every explainer")
    parser.add_argument("--output", default="", help="default: in experiments/results")
    args = parser.parse_args()
    output = args.output or ROOT / "experiments" / "results" / "bias_mitigation.json"
    try:
        result = experiment(args)
    except UserError as error:
        sys.exit(f"error: {error}")
    show(result)
    write_json(output, result)


if __name__ == "__main__":
    main()
