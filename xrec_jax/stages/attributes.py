"""The `attributes` stage: profile and item attributes told from prompts that do not hold them.

Leaves in the run directory `attributes/adapter/`, in PEFT's format, and `attributes/answers.jsonl`.
Base and tuned model answer held-out users freely, which is read strictly, and by a constrained
readout, the allowed answer of the highest probability, which never fails to be read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core import identity
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.packing import PackedRows
from xrec_jax.evaluation import attributes as scoring
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.tables import text_table
from xrec_jax.llm import run_base
from xrec_jax.llm.generation.readout import Readout
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.peft_io import save_adapter
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import gather
from xrec_jax.stages.base import Context, Stage, steps_before
from xrec_jax.tasks import attributes, instructions
from xrec_jax.tasks.attributes import Questions
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.attributes import Attribute, Question, Value, answer_text
from xrec_jax.text.records.explanations import prompt_hash
from xrec_jax.training import defaults
from xrec_jax.training import language as train_language
from xrec_jax.training.language import LanguageTask, packed

NAME = attributes.STAGE

Told = dict[str, scoring.Answer]


class Answers(NamedTuple):
    """What a model answered, one entry a question.

    Attributes:
      texts: free answers.
      read: as values, None where that failed.
      chosen: of the constrained readout.
    """

    texts: list[str]
    read: list[Told]
    chosen: list[Told]


def section() -> ConfigDict:
    """Profile and item attributes told from prompts that lack them."""
    return ConfigDict(
        dict(
            source="world",  # world (its tables), or file
            path="",  # JSONL: prompt, completion (one JSON object); of a file
            only=(),  # of a file the questions for nothing but these keys; empty: all
            entry=r"^\d+[:.] (.+)$",  # line of a prompt that tells users of a file apart
            user=("gender", "age_band"),  # columns of the user table to predict
            item=("kind", "price"),  # and of the item table
            profile=("occupation", "home_district"),  # columns of the user that prompts show
            template="places",  # of a world's prompts, up to the item
            history=10,  # entries in a prompt
            max_prompt_tokens=448,  # of a world's prompts; older entries are cut; 0: no limit
            examples=0,  # to tune on; 0: all
            held_out=0.2,  # share of the users, to measure on
            valid=0.1,  # share of the other users, to choose the adapter by
            evaluated=200,  # held-out prompts that are answered, at most; 0: all
            within=5.0,  # a number this near is near
            length=512,  # tokens of a row
            max_new_tokens=64,
            lora=defaults.lora(),
            train=defaults.language_training(batch_size=16, epochs=5, learning_rate=1e-3),
        )
    )


def shrink(config: Any) -> None:
    """As small as `:tiny` wants it."""
    config.attributes.update(
        dict(source="world", path="", only=(), history=3, examples=12, evaluated=4, length=640)
    )
    config.attributes.update(dict(max_prompt_tokens=400, max_new_tokens=8))
    config.attributes.train.update(dict(batch_size=8, epochs=1))


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    config = ctx.config
    cfg = config.attributes
    run_base.check(config, ctx.mesh, ctx.rundir)
    run_base.need_base(config, ctx.rundir, NAME)
    for key, least in (
        ("history", 0),
        ("max_prompt_tokens", 0),
        ("examples", 0),
        ("evaluated", 0),
        ("within", 0),
        ("max_new_tokens", 1),
        ("length", 2),
    ):
        if not cfg[key] >= least:  # nor NaN
            raise UserError(f"attributes.{key}={cfg[key]} must be at least {least}")
    if cfg.source == "world":
        template_from(cfg.template)
    train_language.lora_config(cfg.lora)
    train_language.check(cfg.train, "attributes.train", ctx.mesh)
    if config.llm.path:
        tokenizer = load_tokenizer(config.llm.path)
        check_tokenized(ctx, tokenizer, open_model(config.llm.path).config)
        return
    # What `pretrain` makes has no tokenizer yet, so only what needs none is looked at.
    attributes.questions(config, ctx.data)
    for key in ("length", "max_new_tokens"):
        if cfg[key] > config.llm.max_positions:
            raise UserError(
                f"attributes.{key}={cfg[key]}, but llm.max_positions={config.llm.max_positions}"
            )


def check_tokenized(ctx: Context, tokenizer: Tokenizer, shape: LlamaConfig) -> None:
    """Refuses questions that do not fit; see `check_rows`."""
    found = attributes.questions(ctx.config, ctx.data, tokenizer=tokenizer)
    check_rows(ctx.config, found, tokenizer, shape)


def check_rows(
    config: Any, found: Questions, tokenizer: Tokenizer, shape: LlamaConfig
) -> tuple[PackedRows, PackedRows]:
    """Rows to train on and to choose by.

    Raises:
      UserError: if rows, a question, or a prompt with its answer are longer than they may be.
    """
    asked, template = config.attributes, run_base.template(config)
    if asked.length > shape.max_positions:
        raise UserError(
            f"attributes.length={asked.length}, but the model takes {shape.max_positions}"
        )
    parts = [[one.instruction for one in part] for part in (found.train, found.valid)]
    rows, valid = (
        packed(
            instructions.examples(tokenizer, part, template=template),
            length=asked.length,
            together=True,
            what=f"attributes, {what} questions",
        )
        for what, part in zip(("training", "validation"), parts, strict=True)
    )
    most = max(len(tokenizer.prompt(one.prompt, template=template)) for one in found.held_out)
    if most + asked.max_new_tokens > shape.max_positions:
        raise UserError(
            f"a held-out prompt has {most} tokens, and attributes.max_new_tokens="
            f"{asked.max_new_tokens} more do not fit the {shape.max_positions} that the model takes"
        )
    return rows, valid


def run(ctx: Context, writer: MetricWriter) -> None:
    """Tunes the adapter if that is not done yet, then compares it with the base."""
    config, rundir = ctx.config, ctx.rundir
    folder = rundir.path / NAME
    path = folder / "adapter"
    done = path.exists() and (folder / "answers.jsonl").exists()
    if done and NAME in rundir.evaluation():
        return
    base = run_base.load_base(config, rundir, ctx.mesh)
    found = attributes.questions(config, ctx.data, tokenizer=base.tokenizer)
    rows, valid = check_rows(config, found, base.tokenizer, base.model.config)
    if is_primary():
        users = [len({one.user for one in part}) for part in found[:3]]
        log(
            f"attributes: {len(found.train)} questions to tune on ({users[0]} users), "
            f"{len(found.valid)} to choose by ({users[1]}), {len(found.held_out)} held out "
            f"({users[2]}); {'; '.join(found.notes) or 'nothing left out'}"
        )
    if not path.exists():
        _same_as_before(found, base, rundir)
        lora = train_language.lora_config(config.attributes.lora)
        task = LanguageTask(
            NAME,
            model=base.model,
            lora=lora,
            base=base.params,
            train=config.attributes.train,
            rows=rows,
            held_out=valid,
            mesh=ctx.mesh,
            rundir=rundir,
            steps_before=steps_before(NAME),
        )
        params = task.fit(config.seeds[0], writer)
        save_adapter(path, Adapter(gather(params), lora), base=base.identity())
    _finish(config, found, base, rundir)


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    return Left([ctx.rundir.path / NAME])


def evaluate(ctx: Context) -> None:
    """Answers the held-out questions again, with the saved adapter.

    Raises:
      UserError: if tuning is not finished; nothing is changed then.
    """
    base = run_base.load_base(ctx.config, ctx.rundir, ctx.mesh)
    saved_adapter(ctx.rundir, base)
    found = attributes.questions(ctx.config, ctx.data, tokenizer=base.tokenizer)
    _finish(ctx.config, found, base, ctx.rundir)


def saved_adapter(rundir: RunDir, base: LoadedBase) -> Adapter:
    """The adapter of a finished `attributes` stage.

    Raises:
      UserError: if there is none, or it was tuned on other weights.
    """
    return run_base.adapter_of(rundir.path / NAME / "adapter", base, stage=NAME)


def _same_as_before(found: Questions, base: LoadedBase, rundir: RunDir) -> None:
    """Keeps what base and questions a run was started with; refuses to go on with others.

    Raises:
      UserError: names which of the two is another one.
    """
    texts = [[(one.prompt, answer_text(one.truth)) for one in part] for part in found[:3]]
    now = {"base": base.identity().fingerprint, "questions": identity.digest(texts)}
    rundir.keep_identity(rundir.path / NAME / "identity.json", now, started=NAME)


def _answers(config: Any, base: LoadedBase, adapter: Adapter | None, found: Questions) -> Answers:
    """What one model answers, freely and constrained."""
    adapters = {} if adapter is None else {"tuned": adapter}
    lm = run_base.language_model(config, base, adapters)
    records = lm.generate(
        [one.prompt for one in found.held_out],
        max_new_tokens=config.attributes.max_new_tokens,
        adapter=None if adapter is None else "tuned",
        template=run_base.template(config),
    )
    texts = [record["text"] for record in records]
    read = [
        scoring.parse_answer(text, one.attributes)
        for text, one in zip(texts, found.held_out, strict=True)
    ]
    readout = Readout(
        base.model, base.params, base.tokenizer, adapter=adapter, template=run_base.template(config)
    )
    options = {one.key: allowed(one, found.known(one.key)) for one in found.attributes}
    chosen = [choose(readout, one, options) for one in found.held_out]
    return Answers(texts, read, chosen)


def allowed(attribute: Attribute, known: Sequence[Value]) -> list[Value]:
    """What a readout chooses from: the allowed values, of any number those of the training part."""
    if attribute.values:
        return [float(v) if attribute.numeric else v for v in attribute.values]
    return sorted(set(known), key=float)


def choose(readout: Readout, question: Question, options: dict[str, list[Value]]) -> Told:
    """Fills in the values of an answer, one key after the other, each the most likely one.

    A value counts with the text that must follow it, so that one that is the beginning of another
    has no advantage.

    Raises:
      UserError: if a log-probability is NaN.
    """
    opened = readout.open(question.prompt)
    told: dict[str, Value] = {}
    keys = [attribute.key for attribute in question.attributes]
    for place, key in enumerate(keys):
        texts = []
        for value in options[key]:
            text = answer_text({**told, key: value})
            if place + 1 < len(keys):  # the text up to the next value
                text = f"{text[:-1]}, {json.dumps(keys[place + 1])}:"
            texts.append(text)
        log_probs = opened.log_probs(texts)
        if np.isnan(log_probs).any():
            raise UserError(
                f"attributes: the log-probability of an answer for {key!r} is NaN: the weights of "
                "the model or its adapter are broken"
            )
        told[key] = options[key][int(np.argmax(log_probs))]
    return dict(told)


def _finish(config: Any, found: Questions, base: LoadedBase, rundir: RunDir) -> None:
    """Answers, compares, writes."""
    adapter = saved_adapter(rundir, base)
    answers = {
        "base": _answers(config, base, None, found),
        "tuned": _answers(config, base, adapter, found),
    }
    table = compared(config, found, answers)
    if is_primary():
        records = [
            {
                "prompt_hash": prompt_hash(one.prompt),
                "user": one.user,
                "truth": one.truth,
                **{name: made.texts[place] for name, made in answers.items()},
                "parsed": {name: made.read[place] for name, made in answers.items()},
                "readout": {name: made.chosen[place] for name, made in answers.items()},
            }
            for place, one in enumerate(found.held_out)
        ]
        rundir.reopen(NAME)
        files.write_text(rundir.path / NAME / "answers.jsonl", files.json_lines(records))
        rundir.write_evaluation(NAME, table)
        log(figures_table(found, table))
    barrier("attributes")


def compared(
    config: Any, found: Questions, answers: dict[str, Answers]
) -> dict[str, dict[str, Estimate]]:
    """Figures of base, tuned model and constant, and paired tests; see `evaluation.attributes`."""
    within, resamples = float(config.attributes.within), config.ranking.resamples
    table: dict[str, dict[str, Estimate]] = {name: {} for name in (*answers, "majority")}
    tests: dict[str, dict[str, Estimate]] = {"tuned vs base": {}, "tuned vs majority": {}}
    for attribute in found.attributes:
        key, known = attribute.key, found.known(attribute.key)
        places = [n for n, one in enumerate(found.held_out) if key in one.truth]
        if not places:
            continue
        truth = [found.held_out[n].truth[key] for n in places]
        users = scoring.Users([found.held_out[n].user for n in places], resamples=resamples)
        told = {
            ("", name): [made.read[n][key] for n in places] for name, made in answers.items()
        } | {
            ("readout_", name): [made.chosen[n][key] for n in places]
            for name, made in answers.items()
        }
        for (prefix, name), given in told.items():
            table[name] |= scoring.figures(
                attribute, truth, given, users, known=known, within=within, prefix=prefix
            )
            if not prefix:
                table[name] |= scoring.parse_failures(attribute, given, users)
        table["majority"] |= scoring.constant_figures(
            attribute, truth, users, known=known, within=within
        )
        for prefix in ("", "readout_"):
            tuned = told[prefix, "tuned"]
            tests["tuned vs base"] |= scoring.compare(
                attribute, truth, tuned, told[prefix, "base"], users, known=known, prefix=prefix
            )
            tests["tuned vs majority"] |= scoring.compare_constant(
                attribute, truth, tuned, users, known=known, prefix=prefix
            )
    data = {
        "data/train_questions": len(found.train),
        "data/held_out_questions": len(found.held_out),
        "data/held_out_users": len({one.user for one in found.held_out}),
        "data/malformed_completions": found.malformed,
    }
    return table | tests | {"data": {name: exact(value, value) for name, value in data.items()}}


def figures_table(found: Questions, table: dict[str, dict[str, Estimate]]) -> str:
    """Base, tuned model and constant as text, a row an attribute and metric."""
    systems = ("base", "tuned", "majority")
    names = list(dict.fromkeys(name for system in systems for name in table[system]))
    rows = []
    for name in names:
        cells = []
        for system in systems:
            one = table[system].get(name)
            cells.append("-" if one is None else _cell(one))
        rows.append([name, *cells])
    counts = ", ".join(
        f"{attribute.key}: {sum(attribute.key in one.truth for one in found.held_out)} asked"
        for attribute in found.attributes
    )
    return f"{text_table(['attribute', *systems], rows)}\n({counts})"


def _cell(one: Estimate) -> str:
    if one["low"] is None or one["high"] is None:
        return f"{one['value']:.3f}"
    return f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


STAGE = Stage(
    name=NAME,
    section=section,
    shrink=shrink,
    check=check,
    check_tokenized=check_tokenized,
    run=run,
    left=left,
    evaluate=evaluate,
    paths=("path",),
    trains=True,
    needs_base=True,
)
