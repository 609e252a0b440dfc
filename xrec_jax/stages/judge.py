"""The `judge` stage: who compares two explanations, and what comes out.

The judge is an adapter trained on judgements (`judge.source` world or file). In a planted world the
truth can judge too (planted): the text that gives the true reasons better wins, by F1. Any other
judge is one that a module of the user's registers, see `inference.judges`.

Leaves `judge/` in the run directory: the adapter in PEFT's format, `split.json` (which prompts were
learned from and which held out) and `verdicts.jsonl` (what the judge says about each pair of
explanations). Every figure stands beside answers that never look at the texts.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from xrec_jax.core import identity
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.evaluation import judging
from xrec_jax.evaluation.statistics.intervals import Estimate
from xrec_jax.evaluation.tables import cell, text_table
from xrec_jax.inference import comparisons, judges
from xrec_jax.inference.judges import explanations_of, judge_path, load_judge
from xrec_jax.llm import run_base
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.peft_io import save_adapter
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.lora import Adapter, LoraConfig
from xrec_jax.llm.run_base import LoadedBase
from xrec_jax.parallel.mesh import batch_divisor, gather
from xrec_jax.stages.base import Context, Stage, steps_before
from xrec_jax.tasks.judgements import JudgementSet, judge_prompts, judgements
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.explanations import prompt_hash
from xrec_jax.text.records.judgements import Judgement
from xrec_jax.training import defaults
from xrec_jax.training import language as train_language
from xrec_jax.training.language import LanguageTask, packed

NAME = judges.STAGE

Figures = dict[str, dict[str, Estimate]]


def section() -> ConfigDict:
    """An adapter that compares two explanations, and what it says."""
    return ConfigDict(
        dict(
            # world: learned from true reasons against others; file: from judgements; planted: no
            # adapter, the planted reasons themselves judge; or one of your own
            source="world",
            path="",  # JSONL: prompt, first, second, better (1 or 2); further keys are kept
            pair="",  # key of a file's records that names the two systems compared
            block=0,  # or: so many rows in turn are of one pair; for the pair-identity baseline
            stratify="",  # key of a file's records whose values are split alike
            explanations=(),  # PROMPTS+EXPLANATIONS files to compare, beside those of the run
            by="",  # key of the prompts' file whose values get win ratios of their own
            prompts=0,  # at most, drawn from the run's and from each file's; 0: all
            examples=400,  # pairs of a world
            held_out=0.2,  # share of the prompts
            max_prompt_tokens=0,  # older history entries of longer prompts are cut; 0: no limit
            length=1024,  # tokens of a row: prompt, both explanations and the answer
            margin=0.0,  # a pair is a tie where the mean probability is nearer to 1/2 than this
            batch=16,  # pairs that are judged at once
            lora=defaults.lora(),
            train=defaults.language_training(batch_size=16, epochs=3, learning_rate=1e-3),
        )
    )


def shrink(config: Any) -> None:
    """As small as `:tiny` wants it."""
    config.judge.update(
        dict(source="world", path="", pair="", block=0, stratify="", explanations=(), by="")
    )
    config.judge.update(dict(examples=12, prompts=0, max_prompt_tokens=0, length=1024, batch=8))
    config.judge.train.update(dict(batch_size=8, epochs=1))


def check(ctx: Context) -> None:
    """Refuses what the stage could not run to its end, before anything is written.

    Raises:
      UserError: names the key, the value and what is valid.
    """
    config, mesh, rundir = ctx.config, ctx.mesh, ctx.rundir
    cfg = config.judge
    if not judges.of(config).trained:
        judges.check_untrained(config, ctx.data, rundir)
        return
    run_base.check(config, mesh, rundir)
    run_base.need_base(config, rundir, NAME)
    if cfg.source == "world":
        template_from(config.instruct.template)
    for key in ("max_prompt_tokens", "prompts"):
        if cfg[key] < 0:
            raise UserError(f"judge.{key}={cfg[key]} must not be negative; 0: no limit")
    if not 0.0 <= cfg.margin < 0.5:
        raise UserError(f"judge.margin={cfg.margin} must be at least 0 and below 0.5")
    parts = batch_divisor(mesh)
    if cfg.batch < 1 or cfg.batch % parts:
        raise UserError(
            f"judge.batch={cfg.batch} must be positive and divisible by the {parts} devices "
            "along the batch"
        )
    train_language.lora_config(cfg.lora)
    train_language.check(cfg.train, "judge.train", mesh)
    comparisons.check(config)
    if config.llm.path:
        tokenizer = load_tokenizer(config.llm.path)
        check_tokenized(ctx, tokenizer, open_model(config.llm.path).config)
        return
    # What `pretrain` makes has no tokenizer yet, so only what needs none is looked at.
    judgements(config, ctx.data, seed=config.seeds[0])
    if not 0 < cfg.length <= config.llm.max_positions:
        raise UserError(
            f"judge.length={cfg.length}, but llm.max_positions={config.llm.max_positions}"
        )


def check_tokenized(ctx: Context, tokenizer: Tokenizer, shape: LlamaConfig) -> None:
    """Refuses judgements that do not fit; see `check_rows`."""
    if judges.of(ctx.config).trained:
        check_rows(ctx.config, _judgement_set(ctx, tokenizer), tokenizer, shape)


def _judgement_set(ctx: Context, tokenizer: Tokenizer) -> JudgementSet:
    return judgements(ctx.config, ctx.data, seed=ctx.config.seeds[0], tokenizer=tokenizer)


def check_rows(
    config: Any, judgement_set: JudgementSet, tokenizer: Tokenizer, shape: LlamaConfig
) -> None:
    """Raises a `UserError` if a judgement does not fit a row, or a row the model."""
    for part in judgement_set:
        judge_prompts(config, tokenizer, max_positions=shape.max_positions).examples(part)


def run(ctx: Context, writer: MetricWriter) -> None:
    """Trains the judge if that is not done yet, then lets it compare explanations."""
    config, rundir = ctx.config, ctx.rundir
    path = judge_path(rundir)
    if (path / "verdicts.jsonl").exists() and NAME in rundir.evaluation():
        return
    if not judges.of(config).trained:
        _compare(config, _untrained(ctx), {}, rundir=rundir)
        return
    # A resume on other weights or other judgements would mix two trainings.
    base = run_base.load_base(config, rundir, ctx.mesh)
    judgement_set = _judgement_set(ctx, base.tokenizer)
    _same_as_before(judgement_set, base, rundir)
    if not path.exists():
        lora = train_language.lora_config(config.judge.lora)
        task = make_task(ctx, judgement_set, base, lora)
        params = task.fit(config.seeds[0], writer)
        save_adapter(path, Adapter(gather(params), lora), base=base.identity())
    _finish(ctx, judgement_set, base)


def left(ctx: Context) -> Left:
    """What the finished stage leaves."""
    return Left([judge_path(ctx.rundir), ctx.rundir.path / "judgements"])


def evaluate(ctx: Context) -> None:
    """Lets the saved judge compare again.

    Raises:
      UserError: if its training is not finished; nothing is changed then.
    """
    config, rundir = ctx.config, ctx.rundir
    if not judges.of(config).trained:
        _compare(config, _untrained(ctx), {}, rundir=rundir)
        return
    base = run_base.load_base(config, rundir, ctx.mesh)
    _finish(ctx, _judgement_set(ctx, base.tokenizer), base)


def _untrained(ctx: Context) -> judging.Judge:
    """A judge that needs no training, such as the planted reasons."""
    pairs = explanations_of(ctx.rundir)
    setup = judges.Setup(ctx.config, ctx.rundir, ctx.mesh, pairs=pairs, label=NAME)
    return judges.of(ctx.config).build(setup)


def _same_as_before(judgement_set: JudgementSet, base: LoadedBase, rundir: RunDir) -> None:
    """Keeps what base and judgements a run was started with; refuses to go on with others.

    Raises:
      UserError: names which of the two is another one.
    """
    texts = [[(j.prompt, j.first, j.second, j.better) for j in part] for part in judgement_set]
    now = {"base": base.identity().fingerprint, "judgements": identity.digest(texts)}
    path = rundir.path / "judgements" / "identity.json"
    rundir.keep_identity(path, now, started="the judge")


def make_task(
    ctx: Context, judgement_set: JudgementSet, base: LoadedBase, lora: LoraConfig
) -> LanguageTask:
    """The training of the judge: both orders of every judgement, only the answer is trained."""
    cfg = ctx.config.judge
    ask = judge_prompts(ctx.config, base.tokenizer, max_positions=base.model.config.max_positions)
    rows, held_out = (
        packed(ask.examples(part), length=cfg.length, together=True, what=f"judge, {what}")
        for what, part in zip(("training", "held out"), judgement_set, strict=True)
    )
    if is_primary():
        log(
            f"judge: {len(judgement_set.train)} judgements to train on, "
            f"{len(judgement_set.held_out)} held out, each in both orders; {rows.num_rows} rows of "
            f"{rows.length} tokens, {100 * rows.fill:.0f} % full; {ask.describe()}"
        )
    return LanguageTask(
        NAME,
        model=base.model,
        lora=lora,
        base=base.params,
        train=cfg.train,
        rows=rows,
        held_out=held_out,
        mesh=ctx.mesh,
        rundir=ctx.rundir,
        steps_before=steps_before(NAME),
    )


def _finish(ctx: Context, judgement_set: JudgementSet, base: LoadedBase) -> None:
    """Measures the judge on held-out judgements, then lets it compare explanations."""
    config, rundir = ctx.config, ctx.rundir
    judge = load_judge(config, rundir, base, ctx.mesh, label="judge")
    table: Figures = {
        "judge": held_out_figures(judge, judgement_set, resamples=config.ranking.resamples)
    }
    rundir.reopen(NAME)
    if is_primary():
        files.write_json(judge_path(rundir) / "split.json", _split(judgement_set, config))
        log(judge_lines(table["judge"]))
    # What the judge was trained on is left out of the comparisons.
    learned = {judgement.prompt for judgement in judgement_set.train}
    _compare(
        config, judge, table, rundir=rundir, learned=learned, describe=judge.judge_prompts.describe
    )


def _compare(
    config: Any,
    judge: judging.Judge,
    table: Figures,
    *,
    rundir: RunDir,
    learned: AbstractSet[str] = frozenset(),
    describe: Callable[[], str] | None = None,
) -> None:
    """Lets a judge compare what a run has to compare, and writes all figures."""
    verdicts: list[dict[str, Any]] = []
    for comparison_set in comparisons.load(config, rundir, learned=learned):
        result = comparisons.compare(judge, comparison_set, config)
        # Figures are keyed by the names of explainers, so two sources may not share one.
        overlap = table.keys() & result.figures.keys()
        if overlap:
            raise UserError(
                f"judge: {comparison_set.source} and other explanations have one name: "
                f"{', '.join(sorted(overlap))}"
            )
        table |= result.figures
        verdicts += result.verdicts
        if is_primary():
            more = f"; {describe()}" if describe is not None else ""
            log(f"judge: {comparison_set.source}: {result.note}{more}")
            log(comparisons.comparison_table(result))
    # All verdicts are there before the first file changes.
    rundir.reopen(NAME)
    if is_primary():
        judge_path(rundir).mkdir(exist_ok=True)
        files.write_text(judge_path(rundir) / "verdicts.jsonl", files.json_lines(verdicts))
        rundir.write_evaluation(NAME, table)
    barrier("judge evaluated")


def _split(judgement_set: JudgementSet, config: Any) -> dict[str, Any]:
    record: dict[str, Any] = {"share": config.judge.held_out, "seed": config.seeds[0]}
    for name, part in zip(("train", "held_out"), judgement_set, strict=True):
        hashes = list(dict.fromkeys(prompt_hash(judgement.prompt) for judgement in part))
        record[name] = {"judgements": len(part), "prompts": hashes}
    return record


def held_out_figures(
    judge: judging.Judge, judgement_set: JudgementSet, *, resamples: int
) -> dict[str, Estimate]:
    """A judge on held-out judgements in both orders, beside the two baselines.

    `test/accuracy` counts each judgement in both orders; `_shown` and `_swapped` are the two by
    themselves, `_averaged` is that of the mean probability. The constant answer and the
    pair-identity prior are learned in the shown order, where labels are as unbalanced as the file
    has them; over both orders any constant answer is right in one half.

    Args:
      judge: any.
      judgement_set: the judgements that it was trained on, and those that were held out.
      resamples: bootstrap samples over prompts.
    """
    # One call for both orders, so that the judge fills its batches.
    held, train = judgement_set.held_out, judgement_set.train
    prompts = [judgement.prompt for judgement in held]
    first = [judgement.first for judgement in held]
    second = [judgement.second for judgement in held]
    both = np.asarray(judge(prompts * 2, first + second, second + first), np.float64)
    label = np.array([judgement.better for judgement in held])
    shown, swapped = both[: len(held)], both[len(held) :]
    # Only judgements that the judge could read in both orders count.
    read = ~(np.isnan(shown) | np.isnan(swapped))
    if not read.any():
        raise UserError("the judge could read none of the held-out judgements")
    shown, swapped, label = shown[read], swapped[read], label[read]
    groups = np.array([judgement.group for judgement in held])[read]
    mean = (shown + 1.0 - swapped) / 2.0

    def average(values: np.ndarray) -> Estimate:
        return judging.clustered_mean(values, groups, resamples=resamples)

    turned = 3 - label
    in_both = judging.calibration(
        np.concatenate([shown, swapped]),
        np.concatenate([label, turned]),
        np.concatenate([groups, groups]),
        resamples=resamples,
    )
    # What guessing reaches without a look at the texts.
    guesses = {
        "constant": judging.constant([judgement.better for judgement in train], len(held))[read],
        "pair_prior": judging.pair_prior(
            [_pair(judgement) for judgement in train],
            [judgement.better for judgement in train],
            [_pair(judgement) for judgement in held],
        )[read],
    }
    return {
        **{f"test/{name}": value for name, value in in_both.items()},
        "test/accuracy_shown": average(judging.right(shown, label)),
        "test/accuracy_swapped": average(judging.right(swapped, turned)),
        "test/accuracy_averaged": average(judging.right(mean, label)),
        "test/position_consistency": average(
            (np.sign(shown - 0.5) == np.sign(0.5 - swapped)) * 1.0
        ),
        "test/position_bias": average((np.sign(shown - 0.5) + np.sign(swapped - 0.5)) / 4.0),
        **{f"baseline/{name}": average((guess == label) * 1.0) for name, guess in guesses.items()},
        "baseline/constant_both_orders": average(np.full(len(label), 0.5)),
    }


def _pair(judgement: Judgement) -> str | None:
    pair = judgement.meta.get("pair")
    return None if pair is None else str(pair)


def judge_lines(figures: dict[str, Estimate]) -> str:
    """The judge on held-out judgements as text."""
    rows = [[name, cell(value), str(value["count"])] for name, value in figures.items()]
    return text_table(["held-out judgements", "value [95 %]", "prompts"], rows)


STAGE = Stage(
    name=NAME,
    section=section,
    shrink=shrink,
    check=check,
    check_tokenized=check_tokenized,
    run=run,
    left=left,
    evaluate=evaluate,
    paths=("path", "explanations"),
    trains=True,
    needs_base=True,
)
