"""The `instruct` stage: LoRA on explanations, and what it changes.

Leaves `adapter/` in the run directory, in PEFT's format; `instructions/train.jsonl` and
`held_out.jsonl`, the set as it was used; and `explanations/held_out.jsonl`, the answers of the base
and of the tuned model to held-out prompts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import textwrap
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.packing import PackedRows
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.tables import figures_table, side_by_side
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
from xrec_jax.tasks import instructions
from xrec_jax.tasks.instructions import Instructions
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.instructions import write_instructions
from xrec_jax.training import language as train_language
from xrec_jax.training.held_out import perplexity
from xrec_jax.training.language import LanguageTask, packed
from xrec_jax.training.state import TrainState

STAGE = "instruct"


def check(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    asked = config.instruct
    run_base.check(config, mesh, rundir)
    run_base.need_base(config, rundir, STAGE)
    if asked.source == "world":
        need_world(data, "instruct.source")
        template_from(asked.template)
    if asked.max_prompt_tokens < 0:
        raise UserError(
            f"instruct.max_prompt_tokens={asked.max_prompt_tokens} must not be negative; 0: no "
            "limit"
        )
    train_language.lora_config(config.instruct.lora)
    samples = asked.samples
    Sampling(samples.temperature, samples.top_k, samples.top_p)
    if samples.max_new_tokens < 1:
        raise UserError(
            f"instruct.samples.max_new_tokens={samples.max_new_tokens} must be positive"
        )
    for key in ("during", "final"):
        if samples[key] < 0:
            raise UserError(f"instruct.samples.{key}={samples[key]} must not be negative")
    train_language.check(asked.train, "instruct.train", mesh)
    tokenizer = load_tokenizer(config.llm.path) if config.llm.path else None
    found = instructions.instructions(config, data, seed=config.seeds[0], tokenizer=tokenizer)
    if tokenizer is not None:
        check_rows(config, found, tokenizer, open_model(config.llm.path).config)
    elif asked.length > config.llm.max_positions:
        raise UserError(
            f"instruct.length={asked.length}, but llm.max_positions={config.llm.max_positions}"
        )


def run(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir, writer: MetricWriter) -> None:
    """Tunes the adapter if that is not done yet, then compares it with the base."""
    adapter_dir = run_base.adapter_path(rundir)
    if adapter_dir.exists() and STAGE in rundir.evaluation():
        return
    base = run_base.load_base(config, rundir, mesh)
    found = instructions.instructions(config, data, seed=config.seeds[0], tokenizer=base.tokenizer)
    lora = train_language.lora_config(config.instruct.lora)
    task = make_task(config, found, base, lora, mesh=mesh, rundir=rundir)
    if is_primary():
        folder = rundir.path / "instructions"
        folder.mkdir(parents=True, exist_ok=True)
        write_instructions(folder / "train.jsonl", found.train)
        write_instructions(folder / "held_out.jsonl", found.held_out)
        log(
            f"instruct: {len(found.train)} examples to tune on, {len(found.held_out)} held out; "
            f"{task.rows.num_rows} rows of {task.rows.length} tokens, "
            f"{100 * task.rows.fill:.0f} % full; {'; '.join(found.notes)}"
        )
    if not adapter_dir.exists():
        _same_as_before(found, base, rundir)
        lm = run_base.language_model(config, base)
        during = functools.partial(_sample_during, config, lm, lora, found, rundir)
        params = task.fit(config.seeds[0], writer, evaluated=during)
        save_adapter(adapter_dir, Adapter(gather(params), lora), base=base.identity())
    _finish(config, found, base, task, rundir)


def _same_as_before(found: Instructions, base: LoadedBase, rundir: RunDir) -> None:
    """Keeps what base and set a run was started with; refuses to go on with others.

    Raises:
      UserError: names which of the two is another one.
    """
    texts = [[one.messages for one in part] for part in (found.train, found.held_out)]
    now = {
        "base": base.identity().fingerprint,
        "instructions": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
    }
    path = rundir.path / "instructions" / "identity.json"
    rundir.keep_identity(path, now, started="tuning")


def make_task(
    config: Any,
    found: Instructions,
    base: LoadedBase,
    lora: LoraConfig,
    *,
    mesh: Mesh,
    rundir: RunDir,
) -> LanguageTask:
    """The training of the adapter."""
    rows, held_out = check_rows(config, found, base.tokenizer, base.model.config)
    asked = config.instruct
    return LanguageTask(
        STAGE,
        model=base.model,
        lora=lora,
        base=base.params,
        train=asked.train,
        rows=rows,
        held_out=held_out,
        mesh=mesh,
        rundir=rundir,
    )


def check_rows(
    config: Any, found: Instructions, tokenizer: Tokenizer, shape: LlamaConfig
) -> tuple[PackedRows, PackedRows]:
    """The set as rows to train on and to hold out.

    Raises:
      UserError: if rows, an example, or a prompt with its answer are longer than they may be.
    """
    asked, template = config.instruct, run_base.template(config)
    if asked.length > shape.max_positions:
        raise UserError(
            f"instruct.length={asked.length}, but the model takes {shape.max_positions}"
        )
    made = [
        instructions.examples(tokenizer, part, template=template)
        for part in (found.train, found.held_out)
    ]
    rows, held_out = (
        packed(part, length=asked.length, together=asked.pack, what=f"instruct, {what} examples")
        for what, part in zip(("training", "held-out"), made, strict=True)
    )
    # Behind the last token that is not the answer's, the answer begins.
    most, longest = max(
        (int(np.flatnonzero(~example.trained).max(initial=-1)) + 1, example.name)
        for example in made[1]
    )
    if most + asked.samples.max_new_tokens > shape.max_positions:
        raise UserError(
            f"{longest}: the held-out prompt has {most} tokens, and "
            f"instruct.samples.max_new_tokens={asked.samples.max_new_tokens} more do not fit the "
            f"{shape.max_positions} that the model takes; lower it"
        )
    return rows, held_out


def _prompts(found: Instructions, count: int) -> list[Any]:
    """Prompts of held-out instructions, as texts or as conversations."""
    prompts: list[Any] = []
    for one in found.held_out[:count]:
        turns = [{"role": role, "content": text} for role, text in one.messages[:-1]]
        prompts.append(one.prompt if len(turns) == 1 else turns)
    return prompts


def _sample_during(
    config: Any,
    lm: LanguageModel,
    lora: LoraConfig,
    found: Instructions,
    rundir: RunDir,
    state: TrainState,
) -> dict[str, float]:
    """Answers a few held-out prompts with the adapter as it is; shows one, keeps all in a file."""
    count = config.instruct.samples.during
    if not count:
        return {}
    lm.adapters["now"] = Adapter(state.params, lora)
    records = run_base.answer(config, lm, _prompts(found, count), "now")
    if is_primary():
        path = rundir.path / "explanations" / "during_training.jsonl"
        step = int(state.step)
        kept = [r for r in run_records.answers_during_training(rundir) if r["step"] < step]
        new = [
            {"step": step, "prompt": one.prompt, "text": record["text"], "stop": record["stop"]}
            for one, record in zip(found.held_out, records, strict=False)
        ]
        files.write_text(path, files.json_lines(kept + new))
        log(f"instruct: sample at step {step}: {textwrap.shorten(records[0]['text'], 160)}")
    del lm.adapters["now"]
    ended = [record["stop"] == "eos" for record in records]
    return {"samples/ended": float(np.mean(ended))}


def _finish(
    config: Any, found: Instructions, base: LoadedBase, task: LanguageTask, rundir: RunDir
) -> None:
    """Compares base and tuned model on the held-out prompts."""
    adapter = run_base.tuned_adapter(rundir, base)
    lora = adapter.config
    lm = run_base.language_model(config, base, {"tuned": adapter})
    prompts = _prompts(found, config.instruct.samples.final)
    # A fresh adapter changes nothing, so the base is measured by the very same function.
    plain = jax.tree.map(np.zeros_like, adapter.params)
    table: dict[str, dict[str, Estimate]] = {}
    texts: dict[str, list[Record]] = {}
    for name, params, which in (("base", plain, None), ("tuned", adapter.params, "tuned")):
        loss = task.loss(params, base.params, lora)
        table[name] = {
            "held_out/loss": exact(loss, len(found.held_out)),
            "held_out/perplexity": exact(perplexity(loss), len(found.held_out)),
        }
        if prompts:
            texts[name] = run_base.answer(config, lm, prompts, which)
            table[name] |= text_figures(texts[name], resamples=config.ranking.resamples)
    if is_primary():
        records = [
            {"prompt": one.prompt, "reference": one.completion, **one.meta}
            | {name: found_texts[number]["text"] for name, found_texts in texts.items()}
            | {f"{name}_stop": rows[number]["stop"] for name, rows in texts.items()}
            for number, one in enumerate(found.held_out[: len(prompts)])
        ]
        path = rundir.path / "explanations" / "held_out.jsonl"
        rundir.reopen(STAGE)
        files.write_text(path, files.json_lines(records))
        rundir.write_evaluation(STAGE, table)
        log(figures_table(table))
        for record in records[:1]:
            log(side_by_side(record))


def left(config: Any, rundir: RunDir) -> Left:
    """What the finished stage leaves."""
    del config
    answers = rundir.path / "explanations"
    return Left(
        [
            run_base.adapter_path(rundir),
            rundir.path / "instructions",
            answers / "during_training.jsonl",
            answers / "held_out.jsonl",
        ]
    )


def evaluate(config: Any, *, data: RunData, mesh: Mesh, rundir: RunDir) -> None:
    """Compares the saved adapter with the base again.

    Raises:
      UserError: if tuning is not finished; nothing is changed then.
    """
    base = run_base.load_base(config, rundir, mesh)
    lora = run_base.tuned_adapter(rundir, base).config
    found = instructions.instructions(config, data, seed=config.seeds[0], tokenizer=base.tokenizer)
    task = make_task(config, found, base, lora, mesh=mesh, rundir=rundir)
    _finish(config, found, base, task, rundir)
