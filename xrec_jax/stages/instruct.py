"""The `instruct` stage: LoRA on explanations, and what it changes.

Leaves `adapter/` in the run directory, in PEFT's format; `instructions/train.jsonl` and
`held_out.jsonl`, the set as it was used; and `explanations/held_out.jsonl`, the answers of the base
and of the tuned model to held-out prompts.
"""

from __future__ import annotations

import functools
import textwrap
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core import identity
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.packing import PackedRows
from xrec_jax.data.run_data import need_world
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.tables import figures_table, side_by_side
from xrec_jax.evaluation.texts.prompt_grounding import ITEM_NAMED, PromptGrounder
from xrec_jax.evaluation.texts.text_metrics import text_figures
from xrec_jax.inference import run_records
from xrec_jax.llm import run_base
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.peft_io import save_adapter
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.language_model import LanguageModel, Record
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import gather
from xrec_jax.stages.base import Context, Stage, steps_before
from xrec_jax.tasks import instructions
from xrec_jax.tasks.instructions import Instructions
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.instructions import write_instructions
from xrec_jax.training import defaults
from xrec_jax.training import language as train_language
from xrec_jax.training.held_out import perplexity
from xrec_jax.training.language import LanguageTask, packed
from xrec_jax.training.state import TrainState

NAME = "instruct"
REFERENCE = "reference"  # the answers of the set itself, beside those of base and tuned model


def section() -> ConfigDict:
    """LoRA on explanations."""
    return ConfigDict(
        dict(
            source="world",  # world (its planted reasons) or file
            path="",  # JSONL: prompt and completion, or messages
            examples=240,  # to tune on; 0: all of the file
            held_out=0.1,  # share of the prompts of a file; of `examples` in a world, beside them
            held_out_path="",  # JSONL of a file's held-out examples instead of that share
            stratify="",  # key of a file's records whose values are split and chosen alike
            balance="",  # user column (world) or key (file): groups equal in number and length
            template="places",  # of a world's prompts
            named=True,  # whether a world's explanations name places; the smallest bases cannot
            history=10,  # entries in a prompt
            max_prompt_tokens=384,  # of a world's prompts; older entries are cut; 0: no limit
            length=512,  # tokens of a row
            pack=True,  # several examples a row
            lora=defaults.lora(),
            train=defaults.language_training(batch_size=8, epochs=5, learning_rate=1e-3),
            samples=dict(
                during=2,  # held-out prompts answered at every evaluation
                final=100,  # held-out prompts answered by base and tuned model at the end, at most
                max_new_tokens=128,
                temperature=0.0,
                top_k=0,
                top_p=1.0,
            ),
        )
    )


def shrink(config: ConfigDict) -> None:
    """As small as `:tiny` wants it, where the run has a language model."""
    if "pretrain" not in config.stages:
        return
    config.instruct.update(
        dict(
            source="world",
            path="",
            held_out_path="",
            examples=12,
            stratify="",
            template="places",
            held_out=0.2,
            history=3,
            max_prompt_tokens=400,
            length=640,
        )
    )
    config.instruct.train.update(dict(batch_size=8, epochs=2))
    config.instruct.samples.update(dict(during=1, final=2, max_new_tokens=16, temperature=0.0))


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    config = ctx.config
    cfg = config.instruct
    run_base.check(config, ctx.mesh, ctx.rundir)
    run_base.need_base(config, ctx.rundir, NAME)
    if cfg.source == "world":
        need_world(ctx.data, "instruct.source")
        template_from(cfg.template)
    if cfg.max_prompt_tokens < 0:
        raise UserError(
            f"instruct.max_prompt_tokens={cfg.max_prompt_tokens} must not be negative; 0: no limit"
        )
    train_language.lora_config(cfg.lora)
    samples = cfg.samples
    Sampling(samples.temperature, samples.top_k, samples.top_p)
    if samples.max_new_tokens < 1:
        raise UserError(
            f"instruct.samples.max_new_tokens={samples.max_new_tokens} must be positive"
        )
    for key in ("during", "final"):
        if samples[key] < 0:
            raise UserError(f"instruct.samples.{key}={samples[key]} must not be negative")
    train_language.check(cfg.train, "instruct.train", ctx.mesh)
    if config.llm.path:
        tokenizer = load_tokenizer(config.llm.path)
        check_tokenized(ctx, tokenizer, open_model(config.llm.path).config)
        return
    # What `pretrain` makes has no tokenizer yet, so only what needs none is looked at.
    instructions.instructions(config, ctx.data, seed=config.seeds[0])
    if cfg.length > config.llm.max_positions:
        raise UserError(
            f"instruct.length={cfg.length}, but llm.max_positions={config.llm.max_positions}"
        )


def check_tokenized(ctx: Context, tokenizer: Tokenizer, shape: LlamaConfig) -> None:
    """Refuses examples that do not fit; see `check_rows`."""
    check_rows(ctx.config, _instruction_set(ctx, tokenizer), tokenizer, shape)


def _instruction_set(ctx: Context, tokenizer: Tokenizer) -> Instructions:
    seed = ctx.config.seeds[0]
    return instructions.instructions(ctx.config, ctx.data, seed=seed, tokenizer=tokenizer)


def run(ctx: Context, writer: MetricWriter) -> None:
    """Tunes the adapter if that is not done yet, then compares it with the base."""
    config, rundir = ctx.config, ctx.rundir
    adapter_dir = run_base.adapter_path(rundir)
    if adapter_dir.exists() and NAME in rundir.evaluation():
        return
    base = run_base.load_base(config, rundir, ctx.mesh)
    instruction_set = _instruction_set(ctx, base.tokenizer)
    lora = train_language.lora_config(config.instruct.lora)
    task = make_task(ctx, instruction_set, base, lora)
    if is_primary():
        folder = rundir.path / "instructions"
        folder.mkdir(parents=True, exist_ok=True)
        write_instructions(folder / "train.jsonl", instruction_set.train)
        write_instructions(folder / "held_out.jsonl", instruction_set.held_out)
        rows = task.rows
        log(
            f"instruct: {len(instruction_set.train)} examples to tune on, "
            f"{len(instruction_set.held_out)} held out; {rows.num_rows} rows of {rows.length} "
            f"tokens, {100 * rows.fill:.0f} % full; {'; '.join(instruction_set.notes)}"
        )
    if not adapter_dir.exists():
        # A resume on other weights or another set would mix two trainings.
        _same_as_before(instruction_set, base, rundir)
        lm = run_base.language_model(config, base)
        during = functools.partial(_sample_during, config, lm, lora, instruction_set, rundir)
        params = task.fit(config.seeds[0], writer, evaluate_also=during)
        save_adapter(adapter_dir, Adapter(gather(params), lora), base=base.identity())
    _finish(config, instruction_set, base, task, rundir)


def _same_as_before(instruction_set: Instructions, base: LoadedBase, rundir: RunDir) -> None:
    """Keeps what base and set a run was started with; refuses to go on with others.

    Raises:
      UserError: names which of the two is another one.
    """
    texts = [
        [example.messages for example in part]
        for part in (instruction_set.train, instruction_set.held_out)
    ]
    now = {"base": base.identity().fingerprint, "instructions": identity.digest(texts)}
    path = rundir.path / "instructions" / "identity.json"
    rundir.keep_identity(path, now, started="tuning")


def make_task(
    ctx: Context, instruction_set: Instructions, base: LoadedBase, lora: LoraConfig
) -> LanguageTask:
    """The training of the adapter."""
    rows, held_out = check_rows(ctx.config, instruction_set, base.tokenizer, base.model.config)
    return LanguageTask(
        NAME,
        model=base.model,
        lora=lora,
        base=base.params,
        train=ctx.config.instruct.train,
        rows=rows,
        held_out=held_out,
        mesh=ctx.mesh,
        rundir=ctx.rundir,
        steps_before=steps_before(NAME),
    )


def check_rows(
    config: Any, instruction_set: Instructions, tokenizer: Tokenizer, shape: LlamaConfig
) -> tuple[PackedRows, PackedRows]:
    """The set as rows to train on and to hold out.

    Raises:
      UserError: if rows, an example, or a prompt with its answer are longer than they may be.
    """
    cfg, template = config.instruct, run_base.template(config)
    if cfg.length > shape.max_positions:
        raise UserError(f"instruct.length={cfg.length}, but the model takes {shape.max_positions}")
    examples = [
        instructions.examples(tokenizer, part, template=template)
        for part in (instruction_set.train, instruction_set.held_out)
    ]
    rows, held_out = (
        packed(part, length=cfg.length, together=cfg.pack, what=f"instruct, {what} examples")
        for what, part in zip(("training", "held-out"), examples, strict=True)
    )
    # Behind the last token that is not the answer's, the answer begins.
    most, longest = max(
        (int(np.flatnonzero(~example.trained).max(initial=-1)) + 1, example.name)
        for example in examples[1]
    )
    if most + cfg.samples.max_new_tokens > shape.max_positions:
        raise UserError(
            f"{longest}: the held-out prompt has {most} tokens, and "
            f"instruct.samples.max_new_tokens={cfg.samples.max_new_tokens} more do not fit the "
            f"{shape.max_positions} that the model takes; lower it"
        )
    return rows, held_out


def _prompts(instruction_set: Instructions, count: int) -> list[Any]:
    """Prompts of held-out instructions, as texts or as conversations."""
    prompts: list[Any] = []
    for example in instruction_set.held_out[:count]:
        turns = [{"role": role, "content": text} for role, text in example.messages[:-1]]
        prompts.append(example.prompt if len(turns) == 1 else turns)
    return prompts


def _sample_during(
    config: Any,
    lm: LanguageModel,
    lora: LoraConfig,
    instruction_set: Instructions,
    rundir: RunDir,
    state: TrainState,
) -> dict[str, float]:
    """Answers a few held-out prompts with the adapter as it is; shows one, keeps all in a file."""
    count = config.instruct.samples.during
    if not count:
        return {}
    lm.adapters["now"] = Adapter(state.params, lora)
    records = run_base.answer(config, lm, _prompts(instruction_set, count), "now")
    if is_primary():
        path = rundir.path / "explanations" / "during_training.jsonl"
        step = int(state.step)
        kept = [r for r in run_records.answers_during_training(rundir) if r["step"] < step]
        new = [
            {"step": step, "prompt": example.prompt, "text": record["text"], "stop": record["stop"]}
            for example, record in zip(instruction_set.held_out, records, strict=False)
        ]
        files.write_text(path, files.json_lines(kept + new))
        log(f"instruct: sample at step {step}: {textwrap.shorten(records[0]['text'], 160)}")
    del lm.adapters["now"]
    ended = [record["stop"] == "eos" for record in records]
    return {"samples/ended": float(np.mean(ended))}


def _finish(
    config: Any, instruction_set: Instructions, base: LoadedBase, task: LanguageTask, rundir: RunDir
) -> None:
    """Compares base and tuned model on the held-out prompts."""
    adapter = run_base.tuned_adapter(rundir, base)
    lora = adapter.config
    lm = run_base.language_model(config, base, {"tuned": adapter})
    prompts = _prompts(instruction_set, config.instruct.samples.final)
    # A fresh adapter changes nothing, so the base is measured by the very same function.
    plain = jax.tree.map(np.zeros_like, adapter.params)
    table: dict[str, dict[str, Estimate]] = {}
    texts: dict[str, list[Record]] = {}
    for name, params, which in (("base", plain, None), ("tuned", adapter.params, "tuned")):
        loss = task.loss(params, base.params, lora)
        table[name] = {
            "held_out/loss": exact(loss, len(instruction_set.held_out)),
            "held_out/perplexity": exact(perplexity(loss), len(instruction_set.held_out)),
        }
        if prompts:
            texts[name] = run_base.answer(config, lm, prompts, which)
            table[name] |= text_figures(texts[name], resamples=config.ranking.resamples)
    if prompts:
        _add_grounding(config, instruction_set, texts, table)
    if is_primary():
        records = [
            {"prompt": example.prompt, "reference": example.completion, **example.meta}
            | {name: column[number]["text"] for name, column in texts.items()}
            | {f"{name}_stop": rows[number]["stop"] for name, rows in texts.items()}
            for number, example in enumerate(instruction_set.held_out[: len(prompts)])
        ]
        path = rundir.path / "explanations" / "held_out.jsonl"
        rundir.reopen(NAME)
        files.write_text(path, files.json_lines(records))
        rundir.write_evaluation(NAME, table)
        log(figures_table(table))
        for record in records[:1]:
            log(side_by_side(record))


def _add_grounding(
    config: Any,
    instruction_set: Instructions,
    texts: dict[str, list[Record]],
    table: dict[str, dict[str, Estimate]],
) -> None:
    """Adds what the answers name that their prompts show, and the references' own figures."""
    world = config.instruct.source == "world"
    grounder = PromptGrounder(
        [example.prompt for part in instruction_set[:2] for example in part],
        template_from(config.instruct.template) if world else None,
    )
    count = len(next(iter(texts.values())))
    held_out = instruction_set.held_out[:count]
    # The references are no ceiling, but they show what a good answer's figures look like.
    answers = {name: [record["text"] for record in rows] for name, rows in texts.items()}
    answers[REFERENCE] = [example.completion for example in held_out]
    whole: list[Record] = [{"text": text, "stop": "eos"} for text in answers[REFERENCE]]
    table[REFERENCE] = text_figures(whole, resamples=config.ranking.resamples)
    prompts = [example.prompt for example in held_out]
    for name, column in answers.items():
        table[name] |= grounder.figures(prompts, column, resamples=config.ranking.resamples)
    # Answers of one set may name what they recommend, and those of another paraphrase it.
    by = config.instruct.stratify
    for value in dict.fromkeys(str(example.meta[by]) for example in held_out) if by else ():
        of_group = [place for place, e in enumerate(held_out) if str(e.meta[by]) == value]
        for name, column in answers.items():
            named = grounder.figures(
                [prompts[place] for place in of_group],
                [column[place] for place in of_group],
                resamples=config.ranking.resamples,
            )
            if ITEM_NAMED in named:
                table[name][f"{ITEM_NAMED}_{value}"] = named[ITEM_NAMED]


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    answers = ctx.rundir.path / "explanations"
    return Left(
        [
            run_base.adapter_path(ctx.rundir),
            ctx.rundir.path / "instructions",
            answers / "during_training.jsonl",
            answers / "held_out.jsonl",
        ]
    )


def evaluate(ctx: Context) -> None:
    """Compares the saved adapter with the base again.

    Raises:
      UserError: if tuning is not finished; nothing is changed then.
    """
    base = run_base.load_base(ctx.config, ctx.rundir, ctx.mesh)
    lora = run_base.tuned_adapter(ctx.rundir, base).config
    instruction_set = _instruction_set(ctx, base.tokenizer)
    task = make_task(ctx, instruction_set, base, lora)
    _finish(ctx.config, instruction_set, base, task, ctx.rundir)


STAGE = Stage(
    name=NAME,
    section=section,
    shrink=shrink,
    check=check,
    check_tokenized=check_tokenized,
    run=run,
    left=left,
    evaluate=evaluate,
    paths=("path", "held_out_path"),
    trains=True,
    needs_base=True,
    shapes_explanations=True,
)
