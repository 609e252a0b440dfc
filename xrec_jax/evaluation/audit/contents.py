"""Contents of prompts: history and recommended item read back from the text, and their equality."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.text.prompts.parsing import Parsed, read_prompt
from xrec_jax.text.titles.normal import normal_title

LOOSE = "(numbered lines)"  # template name of prompts read by their numbered lines
_ENTRY = re.compile(r"\s*(\d+)\s*[:.)]\s+(\S.*)")
_ASKS = re.compile(r"recommend|suggest|title", re.IGNORECASE)
_TITLES = ("title", "name")
_ENOUGH = 3  # latest entries in common that two histories of unequal length need


@dataclasses.dataclass(frozen=True)
class PromptContent:
    """Content of a prompt.

    Attributes:
      text: the prompt with normalised white space.
      dataset: `dataset` of the record, or "".
      system: recommender named by the record, or "".
      template: name of the template that fits, or `LOOSE`; "" if the prompt could not be read.
      title: title of the recommended item as in the prompt; "" if it could not be read.
      history: titles of the history in order.
      user: texts of the profile; None without a profile.
      unseen: whether ids tell that the item is not in the history, whatever the titles.
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
        """True if item and history could be read."""
        return bool(self.title)

    @functools.cached_property
    def target(self) -> str:
        """Title of the item, normalised for comparisons."""
        return normal_title(self.title, year=True)

    @functools.cached_property
    def shown(self) -> tuple[str, ...]:
        """Titles of the history, normalised for comparisons."""
        return tuple(normal_title(title, year=True) for title in self.history)


def level(text: str) -> str:
    """Normalises every run of white space to one blank."""
    return " ".join(text.split())


def read_content(prompt: str, *, dataset: str = "", system: str = "") -> PromptContent:
    """Reads a prompt by the registered template that fits, or by its numbered lines.

    Args:
      prompt: text of the prompt.
      dataset: data set to store with the content.
      system: recommender to store with the content.
    """
    content = PromptContent(level(prompt), dataset, system)
    match = read_prompt(prompt)
    return _of_template(content, match[0].name, match[1]) if match else _loose(content, prompt)


def read_contents(records: Iterable[Mapping[str, Any]]) -> list[PromptContent]:
    """Reads records with a `prompt`, and optionally `dataset` and `recommender`.

    Equal prompts are read once. Records of a run's pairs also have `item` and `history`.
    """
    known: dict[tuple[str, str, str], PromptContent] = {}
    contents = []
    for record in records:
        key = (
            str(record["prompt"]),
            str(record.get("dataset") or ""),
            str(record.get("recommender") or record.get("system") or ""),
        )
        if key not in known:
            known[key] = read_content(key[0], dataset=key[1], system=key[2])
        content = known[key]
        contents.append(
            dataclasses.replace(content, unseen=True) if _is_unseen(record) else content
        )
    return contents


def _is_unseen(record: Mapping[str, Any]) -> bool:
    """True if a record has ids of item and history, and the item is not in the history."""
    history = record.get("history")
    if not isinstance(history, list) or "item" not in record:
        return False
    # An entry without an id could be the item, so it leaves the question open.
    shown = [entry.get("item") for entry in history if isinstance(entry, Mapping)]
    return len(shown) == len(history) > 0 and None not in shown and record["item"] not in shown


def _of_template(content: PromptContent, name: str, parsed: Parsed) -> PromptContent:
    """Fills in the fields of a prompt that a template has parsed."""

    def title(row: Mapping[str, str | None]) -> str:
        key = next((key for key in _TITLES if key in row), next(iter(row), ""))
        return row.get(key) or ""

    return dataclasses.replace(
        content,
        template=name,
        title=title(parsed.item),
        history=tuple(title(entry) for entry in parsed.history),
        user=tuple(parsed.user.values()) if parsed.user else None,
    )


def _loose(content: PromptContent, prompt: str) -> PromptContent:
    """Reads the history from numbered lines, and the item after a line that introduces it.

    Text after a semicolon counts as details.
    """
    history, behind = _parts(prompt)
    if not history or not behind:
        return content
    title = behind[0].split("; ")[0].removesuffix(".")
    return dataclasses.replace(content, template=LOOSE, title=title, history=tuple(history))


def recommended_lines(prompt: str) -> list[str]:
    """Lines of a prompt from the recommended item on; empty if no line introduces it."""
    return _parts(prompt)[1]


def _parts(prompt: str) -> tuple[list[str], list[str]]:
    """Titles of the numbered lines, and the lines after the one that introduces the item."""
    lines = [line.strip() for line in prompt.split("\n") if line.strip()]
    history: list[str] = []
    last = 0
    for place, line in enumerate(lines):
        match = _ENTRY.fullmatch(line)
        # Entries count up from 1; any other number (a year, a price) begins none.
        if match and int(match[1]) == len(history) + 1:
            history.append(match[2].split("; ")[0])
            last = place
    # The item stands below a line such as "We recommend:", somewhere after the history.
    for place in range(last + 1, len(lines) - 1):
        if lines[place].endswith(":") and _ASKS.search(lines[place]):
            return history, lines[place + 1 :]
    return history, []


def same_request(first: PromptContent, second: PromptContent) -> bool:
    """True if two prompts ask about the same recommendation, whatever their wording.

    That is, the item is the same, the profile too if both show one, and the shorter history is the
    end of the longer one, as histories may have been cut.
    """
    if first.text == second.text:
        return True
    if not (first.read and second.read) or first.target != second.target:
        return False
    if first.user is not None and second.user is not None and first.user != second.user:
        return False
    length = min(len(first.shown), len(second.shown))
    # Two users may share one or two latest entries by chance.
    if len(first.shown) != len(second.shown) and length < _ENOUGH:
        return False
    return first.shown[len(first.shown) - length :] == second.shown[len(second.shown) - length :]


class ContentIndex:
    """Index of prompts to find one with the same request.

    Args:
      contents: prompts of the set.
    """

    def __init__(self, contents: Sequence[PromptContent]):
        self._contents = contents
        # Reversed, so that of equal prompts the first one stays.
        self._texts = {
            content.text: place for place, content in reversed(list(enumerate(contents)))
        }
        self._alike: dict[tuple[str, str], list[int]] = defaultdict(list)
        for place, content in enumerate(contents):
            if content.read:
                self._alike[self._key(content)].append(place)

    @staticmethod
    def _key(content: PromptContent) -> tuple[str, str]:
        # Equal requests agree in this key (see `same_request`), so few candidates are compared.
        return content.target, content.shown[-1] if content.shown else ""

    def find(self, content: PromptContent) -> int | None:
        """Index of the first prompt with the same request; None without one."""
        if content.text in self._texts:
            return self._texts[content.text]
        for place in self._alike.get(self._key(content), ()) if content.read else ():
            if same_request(self._contents[place], content):
                return place
        return None
