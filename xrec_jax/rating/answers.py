"""Answer files saved by raters: validated against the key, and unblinded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_json
from xrec_jax.evaluation.ratings.raters import GoldCheck
from xrec_jax.evaluation.ratings.ratings import PREFERENCE, Answers, Preference, Rating
from xrec_jax.rating.forms import SHARES

KEY_FORMAT = "xrec-ratings-key"
EXPORT_FORMAT = "xrec-ratings"
GOLD_QUESTION = "reasonability"


def read_key(path: epath.PathLike) -> dict[str, Any]:
    """Reads a `KEY.json`.

    Raises:
      UserError: if the file is not a key, or damaged.
    """
    key = read_json(path)
    if not isinstance(key, dict) or key.get("format") != KEY_FORMAT:
        raise UserError(f"--key={path}: not a KEY.json of `xrec rate make`")
    if not _whole(key):
        raise UserError(f"--key={path}: damaged; make the same sheets again for another one")
    return key


def _whole(key: Mapping[str, Any]) -> bool:
    """True if a key has all entries that reading answers needs."""
    try:
        cases, systems, questions = key["cases"], key["systems"], key["questions"]
        marks = key["low"], key["high"]
        steps = [step for sheet in key["sheets"].values() for step in sheet["steps"].values()]
        texts = [case[name] for case in cases for name in ("item", "group", "gold", "broken")]
        return (
            all(isinstance(values, list) and values for values in (cases, systems, questions))
            and all(isinstance(text, str) for text in (*systems, *questions, *texts))
            # In Python `True` is a number, but not an end of a scale.
            and all(isinstance(mark, (int, float)) and mark is not True for mark in marks)
            and marks[0] < marks[1]
            and all(_is_step(step, len(cases), systems) for step in steps)
        )
    except (AttributeError, KeyError, TypeError):
        return False


def _is_step(step: Mapping[str, Any], cases: int, systems: Sequence[str]) -> bool:
    """True if a step of the key names an existing case and one or two different systems."""
    named = [step[name] for name in (("system",) if "system" in step else ("first", "second"))]
    return (
        type(step["case"]) is int
        and 0 <= step["case"] < cases
        and all(name in systems for name in named)
        and len(set(named)) == len(named)
    )


def read(
    paths: Sequence[epath.PathLike], *, key: epath.PathLike, partial: bool = False
) -> tuple[Answers, list[GoldCheck], dict[str, list[float]]]:
    """Merges the answer files of several raters.

    Args:
      paths: paths of the files, one per rater.
      key: path of the key to their forms.
      partial: whether to accept unfinished files.

    Returns:
      The answers without gold checks, the gold checks, and each rater's seconds per screen.

    Raises:
      UserError: if a file belongs to another key, is damaged or unfinished, or if a rater has two
        files. Names the file.
    """
    opened = read_key(key)
    ratings: list[Rating] = []
    preferences: list[Preference] = []
    gold: list[GoldCheck] = []
    seconds: dict[str, list[float]] = {}
    seen: dict[str, epath.PathLike] = {}
    for path in paths:
        record = _export(path, opened, key)
        # Two files of one rater would be counted as two people, however the name is spaced.
        rater = " ".join(record["rater"].split())
        if rater.casefold() in seen:
            raise UserError(
                f"{path}: rater {rater!r} is also in {seen[rater.casefold()]}; keep the one that "
                "counts, or give two people different names in 'rater'"
            )
        seen[rater.casefold()] = path
        steps = opened["sheets"][record["sheet"]]["steps"]
        answers = _values(record["answers"], steps, opened, path)
        screens = sum(not missing for _, _, missing in answers)
        if screens < len(steps) and not partial:
            raise UserError(
                f"{path}: rater {rater!r} answered {screens} of {len(steps)} screens; wait for the "
                "rest, or take what is there with --partial"
            )
        unblinded = _unblind(rater, answers, opened)
        ratings += unblinded.ratings
        preferences += unblinded.preferences
        gold += _gold(rater, answers, opened)
        # Times are kept for a median only, so single bad values are dropped.
        times = [answer.get("seconds") for answer in record["answers"].values()]
        if known := [float(time) for time in times if isinstance(time, (int, float)) and time > 0]:
            seconds[rater] = known
    if not ratings and not preferences:
        raise UserError(f"{', '.join(map(str, paths))}: nobody has answered anything yet")
    return Answers(tuple(ratings), tuple(preferences)), gold, seconds


def _export(path: epath.PathLike, key: Mapping[str, Any], key_path: epath.PathLike) -> dict:
    """Reads an answer file and checks that it belongs to a form of the key."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != EXPORT_FORMAT:
        raise UserError(f"{path}: not a file that a rating sheet saved")
    if not isinstance(record.get("sheet"), str) or record["sheet"] not in key["sheets"]:
        raise UserError(
            f"{path}: it belongs to sheet {record.get('sheet')!r}, which {key_path} does not know; "
            f"its sheets: {', '.join(key['sheets'])}"
        )
    if not isinstance(record.get("rater"), str) or not record["rater"].strip():
        raise UserError(f"{path}: it does not say who rated ('rater')")
    if not isinstance(record.get("answers"), dict):
        raise UserError(f"{path}: it holds no 'answers'")
    return record


# A step's entry in the key, its answers by question, and the questions left open.
_Step = tuple[dict[str, Any], dict[str, Any], list[str]]


def _values(
    answers: Mapping[str, Any], steps: Mapping[str, Any], key: Mapping[str, Any], path: Any
) -> list[_Step]:
    """Validates the answers to all steps of a form, in the order of the key."""
    for step in answers:
        if step not in steps:
            raise UserError(f"{path}: screen {step!r} is not on its sheet; was the file edited?")
    result = []
    for step, meaning in steps.items():
        # A screen without an answer is unfinished, not damaged; `read` decides what to do.
        answer = answers.get(step, {})
        values = answer.get("values", {}) if isinstance(answer, dict) else None
        if not isinstance(values, dict):
            raise UserError(f"{path}, screen {step}: no 'values' in it; was the file edited?")
        questions = key["questions"] if "system" in meaning else [PREFERENCE]
        for question, value in values.items():
            where = f"{path}, screen {step}: {question} is {value!r}"
            if question not in questions:
                raise UserError(f"{where}, which was not asked; asked: {', '.join(questions)}")
            if question == PREFERENCE:
                if not isinstance(value, str) or value not in SHARES:
                    raise UserError(f"{where}, not one of {', '.join(SHARES)}")
            elif (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(value)
                or not key["low"] <= value <= key["high"]
            ):
                raise UserError(f"{where}, not a number from {key['low']} to {key['high']}")
        result.append((meaning, values, [q for q in questions if q not in values]))
    return result


def _unblind(rater: str, answers: Iterable[_Step], key: Mapping[str, Any]) -> Answers:
    """Ratings and preferences of one rater with the systems' names; without gold checks."""
    ratings, preferences = [], []
    place = {name: number for number, name in enumerate(key["systems"])}
    for meaning, values, _ in answers:
        case = key["cases"][meaning["case"]]
        if case["gold"]:
            continue
        item, group = case["item"], case["group"]
        for question, value in values.items():
            if question == PREFERENCE:
                first, second, share = meaning["first"], meaning["second"], SHARES[value]
                if place[first] > place[second]:
                    first, second, share = second, first, 1 - share
                preferences.append(Preference(rater, item, first, second, share, group))
            else:
                system = meaning["system"]
                ratings.append(Rating(rater, item, system, question, float(value), group))
    # In the order of the key, which does not depend on the order of the form.
    ratings.sort(key=lambda rating: place[rating.system])
    preferences.sort(key=lambda preference: (place[preference.first], place[preference.second]))
    return Answers(tuple(ratings), tuple(preferences))


def _gold(rater: str, answers: Iterable[_Step], key: Mapping[str, Any]) -> list[GoldCheck]:
    """Gold checks whose broken text was rated or compared."""
    values: dict[int, float | None] = {}
    shares: dict[int, list[float]] = {}
    for meaning, marks, _ in answers:
        number, case = meaning["case"], key["cases"][meaning["case"]]
        if not case["gold"] or not marks:
            continue
        if meaning.get("system") == case["broken"]:
            values[number] = marks.get(GOLD_QUESTION)
        elif case["broken"] in (meaning.get("first"), meaning.get("second")):
            share = SHARES[marks[PREFERENCE]]
            # Shares speak of the first text, a gold check of the broken one.
            shares.setdefault(number, []).append(
                share if meaning["first"] == case["broken"] else 1 - share
            )
    return [
        GoldCheck(
            rater, key["cases"][number]["gold"], values.get(number), tuple(shares.get(number, ()))
        )
        for number in sorted(values.keys() | shares.keys())
    ]
