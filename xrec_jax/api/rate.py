"""`xrec rate make` and `xrec rate collect`: blind rating forms for people, and their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from xrec_jax.core import outputs
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime import memory
from xrec_jax.core.storage import files
from xrec_jax.data import run_identity
from xrec_jax.evaluation.audit.findings import plural
from xrec_jax.evaluation.ratings import copies as rating_copies
from xrec_jax.evaluation.ratings.raters import GoldCheck, quality
from xrec_jax.evaluation.ratings.ratings import read_ratings
from xrec_jax.evaluation.ratings.summary import summary
from xrec_jax.rating import answers as rating_answers
from xrec_jax.rating import forms, items, tables
from xrec_jax.run_config import read_config
from xrec_jax.text.words import finder


def make(
    workdir: epath.PathLike = "",
    *,
    output: epath.PathLike,
    explanations: Sequence[str] = (),
    systems: Sequence[str] = (),
    pairs: int = 20,
    raters: int = 1,
    gold: int = 2,
    preferences: int = -1,
    seed: int = 0,
    allow_imports: bool = False,
) -> None:
    """Writes a blind form for every rater, and the key to all of them.

    All raters get the same recommendations, each in an order of their own. The folder `sheets`
    holds the forms; `KEY.json` beside it says which system wrote which text and must stay with the
    researcher. The same arguments give the same files.

    Args:
      workdir: run with a finished stage `explain`; or give `explanations`.
      output: new or empty directory.
      explanations: files instead of a run, see `rating_cases.of_files`.
      systems: whose explanations; none for all.
      pairs: recommendations to rate.
      raters: sheets.
      gold: further recommendations in which one text is broken on purpose.
      preferences: comparisons of two texts for each recommendation; -1 for every two systems, 0 for
        none.
      seed: of all draws.
      allow_imports: import the modules that the run's config names; the templates that they
        register read its prompts, which stand whole in the sheets otherwise.

    Raises:
      UserError: for a number that is too small or too large, an unknown system, or an output that
        is in use.
    """
    # Everything that can be refused is refused before a file is written.
    for name, value, least in (
        ("pairs", pairs, 1),
        ("raters", raters, 1),
        ("gold", gold, 0),
        ("preferences", preferences, -1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"--{name}={value} must be {least} or more")
    if bool(workdir) == bool(explanations):
        raise UserError("give either --workdir, a run with explanations, or --explanations, files")
    folder = files.absolute(output)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--output={output} exists and is not an empty directory")
    rated_items = (
        items.of_files(explanations, systems)
        if explanations
        else _of_run(workdir, systems, allow_imports=allow_imports)
    )
    form_items = forms.choose(rated_items, pairs=pairs, gold=gold, seed=seed)

    # All forms are about as large as the first one, and are in memory at once.
    rating_forms = [forms.form(form_items, preferences=preferences, seed=seed, number=1)]
    memory.require(raters * len(rating_forms[0].html), f"--raters={raters}: the sheets")
    rating_forms += [
        forms.form(form_items, preferences=preferences, seed=seed, number=number + 1)
        for number in range(1, raters)
    ]

    # The key first: forms without one are worthless.
    files.write_json(folder / "KEY.json", _key(form_items, rating_forms, seed=seed))
    for number, form in enumerate(rating_forms, start=1):
        files.write_text(folder / "sheets" / f"rater-{number}.html", form.html)
    names, steps = list(form_items[0].rated.texts), len(rating_forms[0].steps)
    log(
        f"{plural(raters, 'sheet')}, each with {plural(pairs, 'recommendation')}, "
        f"{plural(gold, 'gold check')} and {plural(steps, 'screen')}: {folder / 'sheets'}\n"
        f"systems, hidden in the sheets: {', '.join(names)}\n"
        f"keep {folder / 'KEY.json'} to yourself; collect with\n"
        f"  xrec rate collect FILES --key={folder / 'KEY.json'}"
    )
    for warning in _revealing_words(form_items, names):
        log(warning)


def _key(
    form_items: Sequence[forms.FormItem], rating_forms: Sequence[forms.Form], *, seed: int
) -> Any:
    """Content of `KEY.json`: writers of the texts, gold checks, and the screens."""
    return {
        "format": rating_answers.KEY_FORMAT,
        "version": 1,
        "seed": seed,
        "systems": list(form_items[0].rated.texts),
        "questions": [question["id"] for question in forms.QUESTIONS],
        "low": forms.LOW,
        "high": forms.HIGH,
        "cases": [
            {
                "item": item.rated.item,
                "group": item.rated.group,
                "title": item.rated.title,
                "gold": item.gold,
                "broken": item.broken,
                "texts": dict(item.rated.texts),
            }
            for item in form_items
        ],
        "sheets": {
            form.id: {"number": number, "steps": form.steps}
            for number, form in enumerate(rating_forms, start=1)
        },
    }


def _revealing_words(form_items: Sequence[forms.FormItem], names: Sequence[str]) -> list[str]:
    """Warnings about names of systems in texts, which could tell a rater who wrote them."""
    texts = [text for item in form_items for text in item.rated.texts.values()]
    revealed = [name for name in names if any(map(finder([name]).search, texts))]
    return [
        f"warning: the word {name!r} stands in a text, and is a system's name" for name in revealed
    ]


def _of_run(
    workdir: epath.PathLike, systems: Sequence[str], *, allow_imports: bool
) -> list[items.RatedItem]:
    """Rated items of a run; where it has a config, its data must be as when it was started."""
    rundir = RunDir(workdir, allow_imports=allow_imports)
    if rundir.config_path.exists():
        config = read_config(rundir, need_extensions=allow_imports)
        run_identity.check_unread(config, rundir)
    return items.of_run(rundir, systems)


def collect(
    answer_files: Sequence[epath.PathLike] = (),
    *,
    key: epath.PathLike = "",
    ratings: epath.PathLike = "",
    workdir: epath.PathLike = "",
    output: epath.PathLike = "",
    partial: bool = False,
    exclude: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
    allow_imports: bool = False,
) -> dict[str, Any]:
    """Merges the answers of raters and computes means, win ratios and agreement.

    Bootstrap intervals resample whole items. Where a table repeats one row of marks for many items,
    far more often than by chance, these items are resampled as one, with a warning.

    Args:
      answer_files: files of answers that the forms saved.
      key: the `KEY.json` of their forms.
      ratings: a table of published ratings instead, see `evaluation.ratings.read_ratings`.
      workdir: run that gets the result as `ratings.json`, where its report finds it.
      output: JSON file to write it to instead.
      partial: take files with unanswered screens too.
      exclude: raters to leave out.
      resamples: bootstrap samples.
      seed: seed of the resamples.
      allow_imports: import the modules that the run's config names; nothing here needs them.

    Returns:
      The written result: `["rate"]` (or `["rate/GROUP"]` for each of several data sets) holds
      systems with `QUESTION/mean`, `win/ratio`, `win/ties` and `bradley_terry/strength`, pairs
      "A vs B" with `QUESTION/difference`, `QUESTION/p`, `win/ratio` and `win/ties`, and "agreement"
      with `QUESTION/alpha_LEVEL`. `["raters"]` holds raters, see `evaluation.raters.quality`.

    Raises:
      UserError: for a file that is damaged, unfinished, or belongs to another key; names the file.
    """
    if bool(answer_files) == bool(ratings):
        raise UserError("give either the files that raters saved, with --key, or --ratings=TABLE")
    if answer_files and not key:
        raise UserError("--key is missing: the KEY.json that was made with the sheets")
    # The target is checked first: a result that cannot be written would be computed in vain.
    if output:
        reads = {"--key": [key], "--ratings": [ratings], "the command": answer_files}
        target = _output_file(output, reads)
    else:
        target = _file_of_run(workdir, allow_imports=allow_imports) if workdir else None

    # Answers to forms, with gold checks and times, or a table of published ratings without
    gold: list[GoldCheck] = []
    seconds: dict[str, list[float]] = {}
    if ratings:
        answers = read_ratings(ratings)
        for note in answers.notes:
            log(note)
    else:
        answers, gold, seconds = rating_answers.read(answer_files, key=key, partial=partial)
    for name in exclude:
        if name not in answers.raters:
            known = ", ".join(filter(None, answers.raters)) or "none is named"
            raise UserError(f"--exclude={name}: no such rater; raters: {known}")

    # The figures count the raters that are kept; copied rows count once in the intervals.
    kept = answers.only(without=exclude)
    if not kept.ratings and not kept.preferences:
        raise UserError("--exclude: nobody is left")
    rows = rating_copies.rows_of_answers(kept)
    copies = rating_copies.copies(rows)
    clusters = rating_copies.clusters(rows, copies)
    # A single data set needs no name in its key; several are summarised apart, never pooled.
    result = {
        f"rate/{group}" if len(kept.groups) > 1 else "rate": summary(
            kept.only(group=group), clusters=clusters, resamples=resamples, seed=seed
        )
        for group in kept.groups
    }
    if any(answers.raters):  # excluded raters too: their figures are the reason
        result["raters"] = quality(answers, gold=gold, seconds=seconds)
    log(tables.text(result, exclude=exclude))
    for group, repeated in copies.items():
        if repeated.copied:
            log(
                f"warning: {group + ': ' if group else ''}{repeated}; items with equal rows are "
                "drawn as one, and what counts is the number of distinct rows"
            )
    if target is not None:
        files.write_json(target, result)
        log(f"written to {target}")
    return result


def _output_file(
    output: epath.PathLike, reads: Mapping[str, Sequence[epath.PathLike]]
) -> epath.Path:
    """The JSON file of `--output`.

    Raises:
      UserError: if it has another ending, cannot be written, or is a file that is read too.
    """
    target = files.absolute(output)
    if target.suffix != ".json":
        raise UserError(f"--output={output}: the name must end in .json")
    outputs.check_output(output, reads=reads)
    return target


def _file_of_run(workdir: epath.PathLike, *, allow_imports: bool) -> epath.Path:
    """The file of a run that takes the result.

    Raises:
      UserError: if this is no run directory, or its data has changed.
    """
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = read_config(rundir, need_extensions=False)
    run_identity.check_unread(config, rundir)
    return rundir.path / "ratings.json"
