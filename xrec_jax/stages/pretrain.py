"""The `pretrain` stage: a tokenizer and a small base from nothing, on plain text.

Leaves `base/` in the run directory, a Hugging Face directory that any tool loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.packing import PackedRows
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.statistics.intervals import exact
from xrec_jax.joint.states.file_texts import plain_texts
from xrec_jax.llm import run_base
from xrec_jax.llm.io.bpe import SMALLEST, train_bpe
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.hf_export import save_params
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.stages.base import Context, Stage, later, steps_before
from xrec_jax.tasks import attributes as attribute_cases
from xrec_jax.tasks import instructions, pretraining
from xrec_jax.training import defaults
from xrec_jax.training import language as train_language
from xrec_jax.training.held_out import perplexity
from xrec_jax.training.language import LanguageTask, packed

NAME = "pretrain"


def section() -> ConfigDict:
    """A small base on plain text."""
    return ConfigDict(
        dict(
            # world (its training events, no explanations), files, or joint (texts of joint.states)
            source="world",
            files=(),  # JSONL; of each line its fields, joined by a blank line
            fields=("prompt", "completion"),
            keep=dict(field="", among=()),  # of the files only lines with one of these values
            copies=1,  # wordings of everything in the world
            described=2,  # prompts of each user that are followed by a description
            talk=2000,  # paragraphs on places and tastes in general
            held_out=0.02,  # share of the texts
            length=256,  # tokens of a row
            train=defaults.language_training(batch_size=16, epochs=4, learning_rate=2e-3),
        )
    )


def shrink(config: Any) -> None:
    """As small as `:tiny` wants it, where the run makes a base."""
    if NAME not in config.stages:
        return
    config.pretrain.update(
        dict(source="world", copies=1, described=0, talk=0, held_out=0.05, length=64)
    )
    config.pretrain.train.update(dict(batch_size=64, epochs=1))


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    config, mesh = ctx.config, ctx.mesh
    cfg = config.pretrain
    if config.llm.path:
        raise UserError(
            "stage 'pretrain' makes a base from nothing, but llm.path names one; drop either"
        )
    run_base.check(config, mesh, ctx.rundir)
    if cfg.source == "world":
        need_world(ctx.data, "pretrain.source")
    elif cfg.source not in ("files", "joint"):
        raise UserError(f"pretrain.source={cfg.source!r} is not valid; valid: world, files, joint")
    elif cfg.source == "files" and not cfg.files:
        raise UserError("pretrain.source='files' needs pretrain.files: one JSONL file or more")
    if cfg.length < 2 or cfg.length > config.llm.max_positions:
        raise UserError(
            f"pretrain.length={cfg.length} must be from 2 to llm.max_positions="
            f"{config.llm.max_positions}"
        )
    if not 0.0 < cfg.held_out < 1.0:
        raise UserError(f"pretrain.held_out={cfg.held_out} must be above 0 and below 1")
    for key in ("copies", "described", "talk"):
        if cfg[key] < 0:
            raise UserError(f"pretrain.{key}={cfg[key]} must not be negative")
    if config.llm.vocab_size < SMALLEST:
        raise UserError(
            f"llm.vocab_size={config.llm.vocab_size}: bytes and special tokens alone take "
            f"{SMALLEST}"
        )
    run_base.shardings(
        run_base.functions(config, run_base.model_config(config, vocab_size=SMALLEST)), mesh
    )
    train_language.check(cfg.train, "pretrain.train", mesh)
    pretraining.split_texts(_texts(config, ctx.data), cfg.held_out, seed=config.seeds[0])


def _texts(config: Any, data: RunData) -> list[pretraining.Text]:
    if config.pretrain.source == "world":
        return pretraining.world_texts(config, data)
    if config.pretrain.source == "joint":
        return [*plain_texts(config, data)]
    # What a user is asked about later must not stand beside the user's history here.
    return [*attribute_cases.without_held_out(pretraining.file_texts(config), config, data)[0]]


def run(ctx: Context, writer: MetricWriter) -> None:
    """Trains what is not trained yet."""
    if (ctx.rundir.path / "base").exists():
        return
    config, data, rundir = ctx.config, ctx.data, ctx.rundir
    cfg, seed = config.pretrain, config.seeds[0]
    # The tokenizer, from the training texts alone.
    texts, left_out = _texts(config, data), 0
    if "instruct" in config.stages:
        held = instructions.instructions(config, data, seed=seed).held_out
        texts, left_out = instructions.without_held_out(texts, held)
    train_texts, held_texts = pretraining.split_texts(texts, cfg.held_out, seed=seed)
    folder = rundir.path / "tokenizer"
    if is_primary() and not folder.exists():
        train_bpe(map(pretraining.plain, train_texts), folder, vocab_size=config.llm.vocab_size)
    barrier("tokenizer")
    tokenizer = load_tokenizer(folder)
    shape = run_base.model_config(config, vocab_size=len(tokenizer))
    # Now that tokens can be counted: what fits no later stage is refused before hours of training.
    for stage in later(config, NAME):
        stage.check_tokenized(ctx, tokenizer, shape)
    if "instruct" in config.stages:
        # Prompts that were cut to the budget are other texts.
        held = instructions.instructions(config, data, seed=seed, tokenizer=tokenizer).held_out
        (train_texts, cut), (held_texts, also_cut) = (
            instructions.without_held_out(part, held) for part in (train_texts, held_texts)
        )
        left_out += cut + also_cut
    rows, held_out = _rows(ctx, tokenizer, shape, (train_texts, held_texts), left_out=left_out)
    task = LanguageTask(
        NAME,
        model=run_base.functions(config, shape),
        lora=None,
        base=None,
        train=cfg.train,
        rows=rows,
        held_out=held_out,
        mesh=ctx.mesh,
        rundir=rundir,
        steps_before=steps_before(NAME),
    )
    params = task.fit(seed, writer)
    # First the figures, then the base: the directory says that the stage is through.
    loss = task.loss(params, None, None)
    rundir.write_evaluation(
        NAME,
        {
            "base": {
                "held_out/loss": exact(loss, held_out.num_rows),
                "held_out/perplexity": exact(perplexity(loss), held_out.num_rows),
            }
        },
    )
    generation = Generation(
        bos_id=tokenizer.bos_id, eos_ids=tokenizer.eos_ids, pad_id=tokenizer.pad_id
    )
    save_params(rundir.path / "base", params, shape, generation=generation, tokenizer_dir=folder)
    if is_primary():
        log(f"pretrain: held-out perplexity {perplexity(loss):.2f}; base in {rundir.path / 'base'}")


def _rows(
    ctx: Context,
    tokenizer: Tokenizer,
    shape: LlamaConfig,
    texts: tuple[Sequence[pretraining.Text], Sequence[pretraining.Text]],
    *,
    left_out: int,
) -> tuple[PackedRows, PackedRows]:
    """Training and held-out texts as rows of tokens; says how many there are.

    Args:
      ctx: of the run.
      tokenizer: of the base.
      shape: of the base.
      texts: to train on, and held out.
      left_out: texts that are not among them as they hold a held-out instruction.
    """
    length = ctx.config.pretrain.length
    tokenized = [pretraining.text_examples(tokenizer, part, length) for part in texts]
    too_long = sum(count for _, count in tokenized)
    rows, held_out = (
        packed(part, length=length, together=True, what=f"pretrain, {what} texts")
        for what, (part, _) in zip(("training", "held-out"), tokenized, strict=True)
    )
    if is_primary():
        tokens = sum(len(example.ids) for example in rows.examples)
        note = f", {left_out} left out that hold a held-out instruction" if left_out else ""
        note += f", {too_long} readings left out that no row holds" if too_long else ""
        log(
            f"pretrain: {len(texts[0]):,} texts, {tokens:,} tokens of {len(tokenizer):,}; "
            f"{shape.num_parameters:,} parameters{note}"
        )
    return rows, held_out


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    return Left([ctx.rundir.path / "base", ctx.rundir.path / "tokenizer"])


# Nothing is evaluated again: the held-out loss is part of the training.
STAGE = Stage(
    name=NAME,
    section=section,
    shrink=shrink,
    check=check,
    run=run,
    left=left,
    paths=("files",),
    trains=True,
    shapes_explanations=True,
)
