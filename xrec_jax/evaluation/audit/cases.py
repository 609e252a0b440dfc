"""Prompts read back into cases: whose history, which item; and whether two prompts ask the same."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.text.prompts.parsing import Parsed, read_prompt
from xrec_jax.text.titles.normal import normal_title

LOOSE = "(numbered lines)"  # read without a template
_ENTRY = re.compile(r"\s*(\d+)\s*[:.)]\s+(\S.*)")
_ASKS = re.compile(r"recommend|suggest|title", re.IGNORECASE)
_TITLES = ("title", "name")
_ENOUGH = 3  # equal latest entries of two histories of unequal length


@dataclasses.dataclass(frozen=True)
class Case:
    """What a prompt asks about.

    Attributes:
      text: the prompt, white space levelled.
      dataset: the record's `dataset`, "" without.
      system: the recommender that the record names, "" without.
      template: what it was read by: a template's name or `LOOSE`; "" where it could not be read.
      title: of the recommended item, as it stands; "" where it could not be read.
      history: titles shown, in order.
      user: texts of the profile; None where the prompt shows none.
      unseen: whether the item is known, by its id, to be none of the history, whatever the titles.
    """

    text: str
    dataset: str = ""
    system: str = ""
    template: str = ""
    title: str = ""
    history: tuple[str, ...] = ()
    user: tuple[str | None, ...] | None = None
    unseen: bool = False

    @property
    def read(self) -> bool:
        """Whether item and history are known."""
        return bool(self.title)

    @functools.cached_property
    def target(self) -> str:
        """The item's title in the form in which titles are compared."""
        return normal_title(self.title, year=True)

    @functools.cached_property
    def shown(self) -> tuple[str, ...]:
        """The history's titles in the form in which titles are compared."""
        return tuple(normal_title(title, year=True) for title in self.history)


def level(text: str) -> str:
    """A text with every run of white space as one blank."""
    return " ".join(text.split())


def read_case(prompt: str, *, dataset: str = "", system: str = "") -> Case:
    """Reads a prompt: by the registered template that fits, else by its numbered lines.

    Args:
      prompt: the text.
      dataset: kept with the case.
      system: kept with the case.
    """
    about = Case(level(prompt), dataset, system)
    found = read_prompt(prompt)
    return _of_template(about, found[0].name, found[1]) if found else _loose(about, prompt)


def read_cases(records: Iterable[Mapping[str, Any]]) -> list[Case]:
    """Reads records with a `prompt`, and `dataset` and `recommender` where they have them.

    A prompt that comes again is read once. Records of a run's pairs also have `item` and `history`.
    """
    known: dict[tuple[str, str, str], Case] = {}
    cases = []
    for record in records:
        key = (
            str(record["prompt"]),
            str(record.get("dataset") or ""),
            str(record.get("recommender") or record.get("system") or ""),
        )
        if key not in known:
            known[key] = read_case(key[0], dataset=key[1], system=key[2])
        case = known[key]
        cases.append(dataclasses.replace(case, unseen=True) if _is_unseen(record) else case)
    return cases


def _is_unseen(record: Mapping[str, Any]) -> bool:
    """Whether a record gives the ids of item and history, and the item is none of the history."""
    history = record.get("history")
    if not isinstance(history, list) or "item" not in record:
        return False
    shown = [entry.get("item") for entry in history if isinstance(entry, Mapping)]
    return len(shown) == len(history) > 0 and None not in shown and record["item"] not in shown


def _of_template(about: Case, name: str, found: Parsed) -> Case:
    def title(row: Mapping[str, str | None]) -> str:
        key = next((key for key in _TITLES if key in row), next(iter(row), ""))
        return row.get(key) or ""

    return dataclasses.replace(
        about,
        template=name,
        title=title(found.item),
        history=tuple(title(entry) for entry in found.history),
        user=tuple(found.user.values()) if found.user else None,
    )


def _loose(about: Case, prompt: str) -> Case:
    """History from lines numbered from 1; the item behind a line that recommends and ends in ":".

    What follows a semicolon is taken for details.
    """
    history, behind = _parts(prompt)
    if not history or not behind:
        return about
    title = behind[0].split("; ")[0].removesuffix(".")
    return dataclasses.replace(about, template=LOOSE, title=title, history=tuple(history))


def recommended_lines(prompt: str) -> list[str]:
    """Lines of a prompt from the recommended item on; none where no line introduces it."""
    return _parts(prompt)[1]


def _parts(prompt: str) -> tuple[list[str], list[str]]:
    """Titles of the numbered lines, and the lines behind the one that introduces the item."""
    lines = [line.strip() for line in prompt.split("\n") if line.strip()]
    history: list[str] = []
    last = 0
    for place, line in enumerate(lines):
        found = _ENTRY.fullmatch(line)
        if found and int(found[1]) == len(history) + 1:
            history.append(found[2].split("; ")[0])
            last = place
    for place in range(last + 1, len(lines) - 1):
        if lines[place].endswith(":") and _ASKS.search(lines[place]):
            return history, lines[place + 1 :]
    return history, []


def same_case(first: Case, second: Case) -> bool:
    """Whether two prompts ask about the same recommendation, whatever their wording.

    The item is the same, the profile too where both show one, and the shorter history is the end of
    the longer one: a history may have been cut.
    """
    if first.text == second.text:
        return True
    if not (first.read and second.read) or first.target != second.target:
        return False
    if first.user is not None and second.user is not None and first.user != second.user:
        return False
    length = min(len(first.shown), len(second.shown))
    if len(first.shown) != len(second.shown) and length < _ENOUGH:
        return False
    return first.shown[len(first.shown) - length :] == second.shown[len(second.shown) - length :]


class CaseIndex:
    """Finds the case of a set that asks the same as another one.

    Args:
      cases: the set.
    """

    def __init__(self, cases: Sequence[Case]):
        self._cases = cases
        self._texts = {case.text: place for place, case in reversed(list(enumerate(cases)))}
        self._alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, case in enumerate(cases):
            if case.read:
                self._alike[self._key(case)].append(place)

    @staticmethod
    def _key(case: Case) -> tuple[str, str]:
        return case.target, case.shown[-1] if case.shown else ""

    def find(self, case: Case) -> int | None:
        """Place in the set of the first case that is the same; None without one."""
        if case.text in self._texts:
            return self._texts[case.text]
        for place in self._alike.get(self._key(case), ()) if case.read else ():
            if same_case(self._cases[place], case):
                return place
        return None
