"""Number of instructions that an explainer needs: LLMXRec's claim that 240 suffice, as a curve.

    python experiments/instruction_curve.py --workdir=runs/instruction_curve \
      --judge=runs/llmxrec_smollm2_judge --plot=docs/instruction_curve.png
    python experiments/instruction_curve.py --workdir=DIR --counts=0,50,216 --seeds=0

Each pair of a count and a seed is a run of `configs/llmxrec_smollm2.py` in `WORKDIR/COUNT_SEED`,
with the same 24 held-out prompts in all. 0 is the base. Up to 216, what the set of 240 leaves, the
examples are drawn from it, the smaller draws of a seed being parts of the larger ones; beyond, all
of them and GPT-4's published answers to other BPR-MF prompts. Counts beyond the set can have fewer
seeds (`--seeds_beyond`), since each takes as long as many small ones. All prompts, held-out ones
included, are cut to `--max_prompt_tokens` (oldest history entries first); the default is about what
the longest prompts of the set have.

Of the published prompts three kinds are left out: those that ask what any prompt of the set asks;
those of users of held-out prompts; and those without an answer of GPT-4. The files name no user. A
prompt counts as one of a held-out prompt's user where it stands in the row of the same data set in
which the held-out prompt is published (a row is a user), or where both are of one data set and at
least half of the shorter history's titles, three or more, stand in the other one's.
The rule takes too many rather than too few: users who know the same popular films fall under it,
as 18 of the set's own 216 examples would, which stay.

Every count gets at least `--updates` updates, so that a small set is not a short training, and at
least `--epochs` epochs. The adapter is that of the last epoch: nothing is chosen on the held-out
prompts. Measured are, on the held-out prompts and their human-checked answers: loss, length,
completeness and grounding of the greedy answers, and with `--judge` (a finished run of stage
`judge` on the same base, which has seen none of these systems) the win ratio over the base's
answers in both orders, ties as half. The published judgements ask about these prompts, too: a judge
with the seed of the curve's split has held the 24 out, with another it has learned some of them
(`prompts_the_judge_learned` in the JSON).

The loss per token is fitted by floor + drop / (1 + n / scale)^power: least squares over the counts,
each with the mean of its seeds. After `half` instructions half of what is to be gained is gained;
where `endless` is true, the data shows no end of the fall, and `open` names the parts of the curve
that it does not bound.
The interval draws prompts and seeds. Prints a table, writes JSON, and a plot with `--plot` (extra
`report`). What is cut off goes on where it stopped when it is called again.
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # the other experiments are found without an installation, too

from experiments import recpie_ablations as sweep  # noqa: E402
from experiments.instruction_sets import Sets, drawn, published_sets, tiny_sets  # noqa: E402
from experiments.saturation import saturation  # noqa: E402
from experiments.seeds import predicted  # noqa: E402
from xrec_jax.api import run as api  # noqa: E402
from xrec_jax.core.errors import UserError  # noqa: E402
from xrec_jax.core.rundir import RunDir  # noqa: E402
from xrec_jax.core.storage.files import read_json, write_json  # noqa: E402
from xrec_jax.data.packing import PackedRows  # noqa: E402
from xrec_jax.evaluation.tables import text_table  # noqa: E402
from xrec_jax.evaluation.texts.prompt_grounding import PromptGrounder  # noqa: E402
from xrec_jax.evaluation.texts.text_metrics import text_figures  # noqa: E402
from xrec_jax.inference import comparisons  # noqa: E402
from xrec_jax.inference.comparisons import ComparisonSet  # noqa: E402
from xrec_jax.inference.judges.base import judge_path  # noqa: E402
from xrec_jax.inference.judges.language import load_judge  # noqa: E402
from xrec_jax.inference.run_records import learned_prompts  # noqa: E402
from xrec_jax.llm import run_base  # noqa: E402
from xrec_jax.llm.io.peft_io import is_adapter  # noqa: E402
from xrec_jax.llm.run_base import LoadedBase  # noqa: E402
from xrec_jax.parallel.mesh import batch_divisor, put_batch  # noqa: E402
from xrec_jax.run_config import read_config  # noqa: E402
from xrec_jax.tasks.instructions import examples  # noqa: E402
from xrec_jax.text.records import instructions as instruction_files  # noqa: E402
from xrec_jax.text.records.explanations import prompt_hash  # noqa: E402
from xrec_jax.text.records.instructions import Instruction  # noqa: E402
from xrec_jax.training.instruct import summed_loss  # noqa: E402

COUNTS = "0,10,20,50,100,216,500,1000,2000"
TINY_COUNTS = "0,4,8,12"
EXAMPLES_AN_UPDATE = 5  # in two rows of 1,408 tokens
_FIGURES = (
    "text/words",
    "text/within_75_words",
    "text/ended",
    "grounding/item_named",
    "grounding/history_cited",
    "grounding/hallucinated_titles",
    "grounding/attributes_precision",
)


# Runs.


def curve_config(args: argparse.Namespace) -> ConfigDict:
    """The config that all runs share."""
    import configs.llmxrec_smollm2 as module

    config = module.get_config("tiny" if args.tiny else "")
    config.stages = tuple(stage for stage in config.stages if stage != "report")
    if args.tiny:
        config.instruct.examples = 16
    for entry in args.override:
        sweep.override(config, entry)
    if args.tiny:
        # A model from nothing, made once, takes the place of the real base.
        base = RunDir(pathlib.Path(args.workdir) / "base")
        made = config.copy_and_resolve_references()
        made.stages = ("pretrain",)
        if "pretrain" not in base.evaluation():
            api.run(made, base.path)
        config.llm.path = str(base.path / "base")
        config.llm.chat_template = "no"
        config.stages = ("instruct",)
    return config


def run_config(config: ConfigDict, count: int, seed: int, args: argparse.Namespace) -> ConfigDict:
    """The config of one run, whose files lie in `WORKDIR/sets`."""
    folder = pathlib.Path(args.workdir) / "sets"
    config = config.copy_and_resolve_references()
    config.name, config.seeds, config.data.format = f"instructions_{count}", (seed,), "none"
    instruct = config.instruct
    instruct.source, instruct.path = "file", str(folder / f"{count}_{seed}.jsonl")
    instruct.held_out_path, instruct.examples = str(folder / "held_out.jsonl"), 0
    instruct.stratify = "dataset"
    epochs = max(args.epochs, math.ceil(args.updates * EXAMPLES_AN_UPDATE / count))
    instruct.train.update(dict(epochs=epochs, evaluate_every=epochs))
    # The answers are made once for all runs, by one model that is loaded once.
    instruct.samples.update(dict(during=0, final=0))
    return config


class Meter:
    """Measures adapters on the held-out prompts.

    Args:
      config: configuration that all runs share.
      base: the loaded base.
      mesh: devices.
      held_out: the examples.
    """

    def __init__(
        self, config: ConfigDict, base: LoadedBase, mesh: Any, held_out: list[Instruction]
    ):
        self.config, self.base, self.mesh, self.held_out = config, base, mesh, held_out
        template = run_base.template(config)
        rows = examples(base.tokenizer, held_out, template=template)
        length = -(-max(len(row.ids) for row in rows) // 64) * 64
        self._rows = PackedRows(rows, length=length, together=False)

        def loss(trained, base_params, batch, lora):
            return summed_loss(trained, base_params, batch, None, model=base.model, lora=lora)

        self._loss = jax.jit(loss, static_argnums=3)

    def __call__(self, adapter: Any) -> dict[str, Any]:
        """Loss and tokens of each held-out answer, and the greedy answer to its prompt."""
        lm = run_base.language_model(self.config, self.base, {"tuned": adapter})
        prompts = [example.prompt for example in self.held_out]
        answers = run_base.answer(self.config, lm, prompts, "tuned")
        losses, tokens = [], []
        size = batch_divisor(self.mesh)
        for number in range(len(self.held_out)):
            # One prompt a call, in as many rows as the mesh needs; only the first one counts.
            batch = self._rows.rows(0, np.full(size, number))
            batch["weights"][1:] = 0.0
            value = self._loss(
                adapter.params, self.base.params, put_batch(batch, self.mesh), adapter.config
            )
            losses.append(float(value))
            tokens.append(float(batch["weights"].sum()))
        return {
            "loss": losses,
            "tokens": tokens,
            "texts": [record["text"] for record in answers],
            "stops": [record["stop"] for record in answers],
        }


def measured(
    config: ConfigDict, held_out: list[Instruction], rundirs: Mapping[tuple[int, int], RunDir]
) -> dict[tuple[int, int], dict[str, Any]]:
    """What `Meter` measures of every run, kept in its directory; (0, 0) is the base."""
    results: dict[tuple[int, int], dict[str, Any]] = {}
    with api.open_mesh(config) as mesh:

        @functools.cache
        def meter() -> Meter:
            base = run_base.load_base(config, next(iter(rundirs.values())), mesh)
            return Meter(config, base, mesh, held_out)

        for (count, seed), rundir in rundirs.items():
            path = rundir.path / ("base.json" if count == 0 else "measured.json")
            if not path.exists():
                base = meter().base
                adapter = run_base.tuned_adapter(rundir, base)
                if count == 0:  # an adapter of zeros changes nothing
                    adapter = adapter.replace(params=jax.tree.map(np.zeros_like, adapter.params))
                write_json(path, meter()(adapter))
                print(f"measured {count} instructions, seed {seed}", flush=True)
            results[count, seed] = read_json(path)
    return results


# Figures.


def figures(
    sets: Sets, results: Mapping[tuple[int, int], dict[str, Any]], *, resamples: int
) -> dict[tuple[int, int], dict[str, Any]]:
    """Length, completeness and grounding of each run's answers, as in `evaluation.json`."""
    prompts = [example.prompt for example in sets.held_out]
    grounder = PromptGrounder([*prompts, *(example.prompt for example in sets.train)])
    table = {}
    for key, result in results.items():
        records = [
            {"text": text, "stop": stop}
            for text, stop in zip(result["texts"], result["stops"], strict=True)
        ]
        table[key] = text_figures(records, resamples=resamples) | grounder.figures(
            prompts, result["texts"], resamples=resamples
        )
    return table


def judge_identity(path: str) -> str:
    """Identity of the weights of a run's judge.

    Raises:
      UserError: if the run has no judge.
    """
    folder = judge_path(RunDir(path))
    if not is_adapter(folder):
        raise UserError(f"--judge={path}: no judge there; finish a run with stage 'judge' first")
    return run_base.adapter_identity(str(folder), "")


def win_ratios(
    args: argparse.Namespace, sets: Sets, results: Mapping[tuple[int, int], dict[str, Any]]
) -> tuple[dict[tuple[int, int], Any], int]:
    """Win ratio of each run's answers over the base's, and of the set's own as (-1, 0).

    Returns:
      The ratios, and the number of held-out prompts that the judge has learned from.
    """
    rundir = RunDir(args.judge)
    judge_config = read_config(rundir)
    prompts = sets.uncut  # the judge cuts them itself, and knows its own by their whole text
    path = pathlib.Path(args.workdir) / "wins.json"
    kept: dict[str, Any] = read_json(path) if path.exists() else {}
    # What another judge preferred is not asked again, but does not count either.
    identity = judge_identity(args.judge)
    known = kept.setdefault(identity, {})
    learned = set(learned_prompts(rundir))
    texts = {key: result["texts"] for key, result in results.items() if key[0]}
    texts[-1, 0] = [example.completion for example in sets.held_out]
    with api.open_mesh(judge_config) as mesh:

        @functools.cache
        def judge() -> Any:
            base = run_base.load_base(judge_config, rundir, mesh)
            return load_judge(judge_config, rundir, base, mesh)

        for key, answers in texts.items():
            name = f"{key[0]}_{key[1]}"
            if name in known:
                continue
            nobody: list[str | None] = [None] * len(prompts)
            pair = {"tuned": [*answers], "base": [*results[0, 0]["texts"]]}
            compared = ComparisonSet(name, prompts, pair, nobody, nobody, [""] * len(prompts))
            result = comparisons.compare(judge(), compared, judge_config)
            known[name] = result.figures["tuned"]["win/ratio"]
            write_json(path, kept)
    ratios = {key: known[f"{key[0]}_{key[1]}"] for key in texts}
    return ratios, sum(prompt_hash(prompt) in learned for prompt in prompts)


# The table.


def table_of(
    results: Mapping[tuple[int, int], dict[str, Any]],
    texts: Mapping[tuple[int, int], dict[str, Any]],
    wins: Mapping[tuple[int, int], Any],
) -> dict[str, dict[str, Any]]:
    """Figures by count: the mean over seeds, and the interval of one further run."""
    table: dict[str, dict[str, Any]] = {}
    for count in sorted({count for count, _ in results}):
        keys = sorted(key for key in results if key[0] == count)
        perplexities = [
            {
                "value": math.exp(sum(results[k]["loss"]) / sum(results[k]["tokens"])),
                "low": None,
                "high": None,
            }
            for k in keys
        ]
        row = {"held_out/perplexity": predicted(perplexities)}
        for name in _FIGURES:
            if all(name in texts[key] for key in keys):
                row[name] = predicted([texts[key][name] for key in keys])
        if all(key in wins for key in keys):
            row["win/ratio"] = predicted([wins[key] for key in keys])
        table[str(count)] = row
    return table


def experiment(args: argparse.Namespace) -> dict[str, Any]:
    """Runs, measures and fits; see the head of this file."""
    counts = sweep.numbers(args.counts or (TINY_COUNTS if args.tiny else COUNTS), "--counts", int)
    seeds = sweep.numbers(args.seeds or "0,1,2", "--seeds", int)
    beyond = sweep.numbers(args.seeds_beyond, "--seeds_beyond", int) or seeds
    if len(set(counts)) < 2 or min(counts) < 0 or not any(counts) or not seeds:
        raise UserError(f"--counts={args.counts}: two numbers or more from 0, one above it")
    if args.judge:
        judge_identity(args.judge)  # before hours of training
    config = curve_config(args)
    sets = tiny_sets(config) if args.tiny else published_sets(args, config)
    folder = pathlib.Path(args.workdir) / "sets"
    folder.mkdir(parents=True, exist_ok=True)
    instruction_files.write_instructions(folder / "held_out.jsonl", sets.held_out)
    rundirs: dict[tuple[int, int], RunDir] = {}
    for seed in sorted({*seeds, *beyond}):
        for count in sorted({*counts} - {0}):
            if seed not in (seeds if count <= len(sets.train) else beyond):
                continue
            instruction_files.write_instructions(
                folder / f"{count}_{seed}.jsonl", drawn(sets, count, seed)
            )
            rundirs[count, seed] = RunDir(pathlib.Path(args.workdir) / f"{count}_{seed}")
            print(f"{count} instructions, seed {seed}", flush=True)
            api.run(run_config(config, count, seed, args), rundirs[count, seed].path)
    # The base is measured like the others, by the first run's adapter with zeros in place of it.
    first = next(iter(rundirs.values()))
    everything = {(0, 0): first, **rundirs} if 0 in counts or args.judge else rundirs
    results = measured(
        config, instruction_files.read_instructions(folder / "held_out.jsonl"), everything
    )
    resamples = config.ranking.resamples
    wins: dict[tuple[int, int], Any] = {}
    known_prompts = 0
    if args.judge:
        wins, known_prompts = win_ratios(args, sets, results)
    return {
        "settings": {
            "seeds": seeds,
            "seeds_beyond": beyond,
            "epochs": args.epochs,
            "updates": args.updates,
            "max_prompt_tokens": args.max_prompt_tokens,
            "tiny": args.tiny,
            "override": args.override,
        },
        "set": len(sets.train),
        "held_out": len(sets.held_out),
        "published": {"examples": len(sets.more), "left_out": sets.dropped},
        "counts": table_of(results, figures(sets, results, resamples=resamples), wins),
        "reference_win_ratio": wins.get((-1, 0)),
        "prompts_the_judge_learned": known_prompts if args.judge else None,
        "saturation": saturation(results, resamples=min(resamples, args.resamples)),
    }


def show(result: dict[str, Any]) -> str:
    """A row for each count, and the fit."""
    names = list(dict.fromkeys(name for row in result["counts"].values() for name in row))
    rows = [
        [count, *(_cell(row[name]) if name in row else "-" for name in names)]
        for count, row in result["counts"].items()
    ]
    fitted = result["saturation"]
    gained = fitted["gained"].get(str(result["set"]))
    share = "" if gained is None else f"; {result['set']} instructions gain {_cell(gained)} of it"
    unknown = f"the data does not bound {', '.join(fitted['open'])}" if fitted["open"] else ""
    if fitted["endless"]:
        fit = f"no end of the fall is seen: {unknown}"
    else:
        fit = (
            f"perplexity falls to {_cell(fitted['floor_perplexity'])}, half of the way after "
            f"{_cell(fitted['half'])} instructions{share}{unknown and f' ({unknown})'}"
        )
    table = text_table(["instructions", *(n.split("/")[1] for n in names)], rows)
    return f"{table}\n{fit}; residuals {fitted['rms']:.3f} nats"


def _cell(entry: Mapping[str, Any]) -> str:
    bounds = "" if entry["low"] is None else f" [{entry['low']:.3g}, {entry['high']:.3g}]"
    return f"{entry['value']:.3g}{bounds}"


def draw(result: dict[str, Any], panel: Any) -> None:
    """The runs and the fitted curve, perplexity over the number of instructions."""
    curve = result["saturation"]["curve"]
    x = [point["instructions"] for point in curve]
    panel.plot(x, [point["value"] for point in curve], color="#0072B2", label="fit")
    panel.fill_between(
        x,
        [point["low"] for point in curve],
        [point["high"] for point in curve],
        color="#0072B2",
        alpha=0.15,
        lw=0,
    )
    for place, (count, row) in enumerate(result["counts"].items()):
        values = row["held_out/perplexity"]["values"]
        label = "runs" if place == 0 else None
        panel.plot([int(count)] * len(values), values, "o", color="#D55E00", ms=4, label=label)
    panel.axvline(result["set"], color="#666666", ls="--", lw=1, label="LLMXRec's set")
    panel.set_xscale("symlog", linthresh=10)
    ticks = sorted(
        {0, 10, 20, 50, 100, 500, 1000, 2000} & {int(count) for count in result["counts"]}
    )
    panel.set_xticks([*ticks, result["set"]], [str(tick) for tick in (*ticks, result["set"])])
    panel.minorticks_off()
    # Room beside the first and the last runs.
    panel.set_xlim(-2, 1.3 * max(int(count) for count in result["counts"]))
    panel.set(xlabel="instructions tuned on", ylabel="held-out perplexity")
    panel.legend(frameon=False)


def main() -> None:
    """Parses the command line."""
    parser = sweep.parser_of(__doc__)
    parser.add_argument("--counts", default="", help=f"with commas; default: {COUNTS}")
    parser.add_argument("--judge", default="", help="finished run of stage judge on the same base")
    parser.add_argument("--published", default="", help="folder of prompts and explanations")
    parser.add_argument("--seeds_beyond", default="", help="of counts beyond the set: as --seeds")
    parser.add_argument("--epochs", type=int, default=2, help="at least")
    parser.add_argument("--updates", type=int, default=20, help="at least, for small counts")
    parser.add_argument("--max_prompt_tokens", type=int, default=600, help="of a prompt")
    parser.add_argument("--resamples", type=int, default=300, help="of the fit")
    args = parser.parse_args()
    try:
        sweep.check_plot(args.plot)
        result = experiment(args)
        write_json(sweep.output_of(args, "instruction_curve"), result)
        if args.plot:
            sweep.save_plot(args.plot, lambda panel: draw(result, panel), size=(6.5, 4.2))
    except UserError as error:
        sys.exit(f"error: {error}")
    print(show(result))


if __name__ == "__main__":
    main()
