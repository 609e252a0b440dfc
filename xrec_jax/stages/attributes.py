"""The `attributes` stage: profile and item attributes predicted from prompts that lack them.

Leaves in the run directory `attributes/adapter/`, in PEFT's format, and `attributes/answers.jsonl`.
Base and tuned model answer questions about held-out users; see `inference.attribute_answers`.
"""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from xrec_jax.core import identity
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.packing import PackedRows
from xrec_jax.inference import attribute_answers
from xrec_jax.llm import run_base
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
from xrec_jax.text.records.attributes import answer_text
from xrec_jax.text.records.explanations import prompt_hash
from xrec_jax.training import defaults
from xrec_jax.training import language as train_language
from xrec_jax.training.language import LanguageTask, packed

NAME = attributes.STAGE


def section() -> ConfigDict:
    """Prediction of profile and item attributes from prompts that lack them."""
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
    check_rows(ctx.config, _questions(ctx, tokenizer), tokenizer, shape)


def _questions(ctx: Context, tokenizer: Tokenizer) -> Questions:
    return attributes.questions(ctx.config, ctx.data, tokenizer=tokenizer)


def check_rows(
    config: Any, questions: Questions, tokenizer: Tokenizer, shape: LlamaConfig
) -> tuple[PackedRows, PackedRows]:
    """Rows to train on and to choose by.

    Raises:
      UserError: if rows, a question, or a prompt with its answer are longer than they may be.
    """
    cfg, template = config.attributes, run_base.template(config)
    if cfg.length > shape.max_positions:
        raise UserError(
            f"attributes.length={cfg.length}, but the model takes {shape.max_positions}"
        )
    parts = [
        [question.instruction for question in part] for part in (questions.train, questions.valid)
    ]
    rows, valid = (
        packed(
            instructions.examples(tokenizer, part, template=template),
            length=cfg.length,
            together=True,
            what=f"attributes, {what} questions",
        )
        for what, part in zip(("training", "validation"), parts, strict=True)
    )
    # Held-out prompts are in no row: they need room for a whole answer.
    most = max(
        len(tokenizer.prompt(question.prompt, template=template)) for question in questions.held_out
    )
    if most + cfg.max_new_tokens > shape.max_positions:
        raise UserError(
            f"a held-out prompt has {most} tokens, and attributes.max_new_tokens="
            f"{cfg.max_new_tokens} more do not fit the {shape.max_positions} that the model takes"
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
    questions = _questions(ctx, base.tokenizer)
    rows, valid = check_rows(config, questions, base.tokenizer, base.model.config)
    if is_primary():
        users = [len({question.user for question in part}) for part in questions[:3]]
        log(
            f"attributes: {len(questions.train)} questions to tune on ({users[0]} users), "
            f"{len(questions.valid)} to choose by ({users[1]}), {len(questions.held_out)} held out "
            f"({users[2]}); {'; '.join(questions.notes) or 'nothing left out'}"
        )
    if not path.exists():
        _same_as_before(questions, base, rundir)
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
    _finish(ctx, questions, base)


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
    _finish(ctx, _questions(ctx, base.tokenizer), base)


def saved_adapter(rundir: RunDir, base: LoadedBase) -> Adapter:
    """The adapter of a finished `attributes` stage.

    Raises:
      UserError: if there is none, or it was tuned on other weights.
    """
    return run_base.adapter_of(rundir.path / NAME / "adapter", base, stage=NAME)


def _same_as_before(questions: Questions, base: LoadedBase, rundir: RunDir) -> None:
    """Keeps what base and questions a run was started with; refuses to go on with others.

    Raises:
      UserError: names which of the two is another one.
    """
    texts = [[(q.prompt, answer_text(q.truth)) for q in part] for part in questions[:3]]
    now = {"base": base.identity().fingerprint, "questions": identity.digest(texts)}
    rundir.keep_identity(rundir.path / NAME / "identity.json", now, started=NAME)


def _finish(ctx: Context, questions: Questions, base: LoadedBase) -> None:
    """Answers the held-out questions with base and tuned model, compares and writes."""
    rundir = ctx.rundir
    adapter = saved_adapter(rundir, base)
    answers = {
        "base": attribute_answers.answer(ctx.config, base, None, questions),
        "tuned": attribute_answers.answer(ctx.config, base, adapter, questions),
    }
    table = attribute_answers.figures(ctx.config, questions, answers)
    if is_primary():
        records = [
            {
                "prompt_hash": prompt_hash(question.prompt),
                "user": question.user,
                "truth": question.truth,
                **{name: model.texts[place] for name, model in answers.items()},
                "parsed": {name: model.read[place] for name, model in answers.items()},
                "readout": {name: model.chosen[place] for name, model in answers.items()},
            }
            for place, question in enumerate(questions.held_out)
        ]
        rundir.reopen(NAME)
        files.write_text(rundir.path / NAME / "answers.jsonl", files.json_lines(records))
        rundir.write_evaluation(NAME, table)
        log(attribute_answers.figures_table(questions, table))
    barrier("attributes")


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
