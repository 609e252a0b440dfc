"""The `pretrain` stage: a tokenizer and a small base from nothing, on plain text.

Leaves `base/` in the run directory, a Hugging Face directory that any tool loads.
"""

from __future__ import annotations

from typing import Any

from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.statistics.intervals import exact
from xrec_jax.inference import judges
from xrec_jax.joint.states.file_texts import plain_texts
from xrec_jax.llm import run_base
from xrec_jax.llm.io.bpe import SMALLEST, train_bpe
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.hf_export import save_params
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.stages import attributes, instruct, judge
from xrec_jax.tasks import attributes as attribute_cases
from xrec_jax.tasks import instructions, pretraining
from xrec_jax.tasks.judgements import judgements
from xrec_jax.training import language as train_language
from xrec_jax.training.held_out import perplexity
from xrec_jax.training.language import LanguageTask, packed

STAGE = "pretrain"


def check(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    asked = config.pretrain
    if config.llm.path:
        raise UserError(
            "stage 'pretrain' makes a base from nothing, but llm.path names one; drop either"
        )
    run_base.check(config, mesh, rundir)
    if asked.source == "world":
        need_world(data, "pretrain.source")
    elif asked.source not in ("files", "joint"):
        raise UserError(
            f"pretrain.source={asked.source!r} is not valid; valid: world, files, joint"
        )
    elif asked.source == "files" and not asked.files:
        raise UserError("pretrain.source='files' needs pretrain.files: one JSONL file or more")
    if asked.length < 2 or asked.length > config.llm.max_positions:
        raise UserError(
            f"pretrain.length={asked.length} must be from 2 to llm.max_positions="
            f"{config.llm.max_positions}"
        )
    if not 0.0 < asked.held_out < 1.0:
        raise UserError(f"pretrain.held_out={asked.held_out} must be above 0 and below 1")
    for key in ("copies", "described", "talk"):
        if asked[key] < 0:
            raise UserError(f"pretrain.{key}={asked[key]} must not be negative")
    if config.llm.vocab_size < SMALLEST:
        raise UserError(
            f"llm.vocab_size={config.llm.vocab_size}: bytes and special tokens alone take "
            f"{SMALLEST}"
        )
    run_base.shardings(
        run_base.functions(config, run_base.model_config(config, vocab_size=SMALLEST)), mesh
    )
    train_language.check(asked.train, "pretrain.train", mesh)
    pretraining.split_texts(_texts(config, data), asked.held_out, seed=config.seeds[0])


def _texts(config: Any, data: RunData) -> list[pretraining.Text]:
    if config.pretrain.source == "world":
        return pretraining.world_texts(config, data)
    if config.pretrain.source == "joint":
        return [*plain_texts(config, data)]
    # What a user is asked about later must not stand beside the user's history here.
    return [*attribute_cases.without_held_out(pretraining.file_texts(config), config, data)[0]]


def run(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir, writer: MetricWriter) -> None:
    """Trains what is not trained yet."""
    if (rundir.path / "base").exists():
        return
    asked, seed = config.pretrain, config.seeds[0]
    texts, left_out = _texts(config, data), 0
    if "instruct" in config.stages:
        held = instructions.instructions(config, data, seed=seed).held_out
        texts, left_out = instructions.without_held_out(texts, held)
    train_texts, held_texts = pretraining.split_texts(texts, asked.held_out, seed=seed)
    folder = rundir.path / "tokenizer"
    if is_primary() and not folder.exists():
        train_bpe(map(pretraining.plain, train_texts), folder, vocab_size=config.llm.vocab_size)
    barrier("tokenizer")
    tokenizer = load_tokenizer(folder)
    shape = run_base.model_config(config, vocab_size=len(tokenizer))
    if "instruct" in config.stages:  # what does not fit there should not be found out later
        found = instructions.instructions(config, data, seed=seed, tokenizer=tokenizer)
        instruct.check_rows(config, found, tokenizer, shape)
        # Prompts that were cut to the budget are other texts.
        parts = [
            instructions.without_held_out(p, found.held_out) for p in (train_texts, held_texts)
        ]
        (train_texts, cut), (held_texts, also_cut) = parts
        left_out += cut + also_cut
    _check_later(config, data, tokenizer, shape)
    made = [
        pretraining.text_examples(tokenizer, part, asked.length)
        for part in (train_texts, held_texts)
    ]
    too_long = sum(count for _, count in made)
    rows, held_out = (
        packed(part, length=asked.length, together=True, what=f"pretrain, {what} texts")
        for what, (part, _) in zip(("training", "held-out"), made, strict=True)
    )
    if is_primary():
        tokens = sum(len(example.ids) for example in rows.examples)
        note = f", {left_out} left out that hold a held-out instruction" if left_out else ""
        note += f", {too_long} readings left out that no row holds" if too_long else ""
        log(
            f"pretrain: {len(train_texts):,} texts, {tokens:,} tokens of {len(tokenizer):,}; "
            f"{shape.num_parameters:,} parameters{note}"
        )
    task = LanguageTask(
        STAGE,
        model=run_base.functions(config, shape),
        lora=None,
        base=None,
        train=asked.train,
        rows=rows,
        held_out=held_out,
        mesh=mesh,
        rundir=rundir,
    )
    params = task.fit(seed, writer)
    loss = task.loss(params, None, None)
    rundir.write_evaluation(
        STAGE,
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


def _check_later(config: Any, data: RunData, tokenizer: Tokenizer, shape: LlamaConfig) -> None:
    """Refuses what would not fit the later stages, now that there is a tokenizer to count by.

    Raises:
      UserError: see `judge.check_rows` and `attributes.check_rows`.
    """
    if "judge" in config.stages and config.judge.source != judges.PLANTED:
        found = judgements(config, data, seed=config.seeds[0], tokenizer=tokenizer)
        judge.check_rows(config, found, tokenizer, shape)
    if "attributes" in config.stages:
        asked = attribute_cases.questions(config, data, tokenizer=tokenizer)
        attributes.check_rows(config, asked, tokenizer, shape)


def left(config: Any, rundir: RunDir) -> Left:
    """What the finished stage leaves."""
    del config
    return Left([rundir.path / "base", rundir.path / "tokenizer"])


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Nothing to evaluate again: the held-out loss is part of the training."""
    del config, data, mesh, rundir
