"""Mentions: titles and attribute values that a text names, and where they come from.

A mention counts easily in favour of a text and hardly against it. Titles of the item and of the
history are found by the policy `LENIENT`, titles of the catalogue that are neither are held against
the text by `STRICT`, where capitals or quotes show that a title is meant (`titles.policy`). Titles
that are values of an attribute too ("Drama") need quotes; in quotes any beginning of a title counts
for the item and the history; a title that names a series ("the Star Wars saga") counts for them
alone. The longest match wins. Phrases in quotes and capitals that are in no catalogue are `unknown`
titles. Synonyms are not known, and negation is not understood.

Most scripts know no capitals. There a title of the catalogue is held against a text only in quotes
or where it is long, and a phrase is an unknown title only in the quotes that mark titles. For what
a word is in scripts without blanks, and where a name may end in Korean, see `text.words`. Endings
that change the name itself, as in Russian, are not undone.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from xrec_jax.text.synthetic.grammar import plural
from xrec_jax.text.titles.match import SMALL, Matcher, Trie, has_case
from xrec_jax.text.titles.normal import ARTICLES
from xrec_jax.text.titles.policy import LENIENT, QUOTED, STRICT, Policy
from xrec_jax.text.titles.tokens import Tokens, Words, forms_of, tokenize
from xrec_jax.text.words import has_blanks, stands_alone

Kind = Literal[
    "item",
    "history",
    "catalogue",
    "unknown",
    "item_attribute",
    "history_attribute",
    "absent_attribute",
]
_QUOTED = (
    # Quotes that mark titles in Chinese and Japanese; the last two stand around speech as well.
    re.compile("\u300a([^\u300a\u300b\n]{1,90})\u300b"),
    re.compile("\u3008([^\u3008\u3009\n]{1,90})\u3009"),
    re.compile("\u300e([^\u300e\u300f\n]{1,90})\u300f"),
    re.compile("\u300c([^\u300c\u300d\n]{1,90})\u300d"),
    re.compile("\u00ab([^\u00ab\u00bb\n]{2,90})\u00bb"),
    re.compile("\u201e([^\u201c-\u201e\n]{2,90})[\u201c\u201d]"),
    re.compile(r"\"([^\"\n]{2,90})\""),
    re.compile("\u201c([^\u201c\u201d\n]{2,90})\u201d"),
    re.compile("\u2018((?:[^\u2018\u2019\n]|\u2019(?=\\w)){2,90})\u2019(?!\\w)"),
    re.compile(r"(?<!\w)'((?:[^'\n]|'(?=\w)){2,90})'(?!\w)"),
)
_MARKS = "\u300a\u3008\u300e"  # open what is a title, in scripts without capitals
_MOST_WORDS = 10  # of an unknown title: longer quotations are speech
_MOST_CHARACTERS = 25  # and where each character is a word
_SERIES = frozenset("saga series franchise universe trilogy".split())
_NO_VALUE = ("", "none", "nan", "null", "unknown")


class Span(NamedTuple):
    """A mention.

    Attributes:
      start: first character.
      end: behind the last one.
      kind: where it comes from.
      name: the title or value, as the tables have it; an unknown title as it stands.
    """

    start: int
    end: int
    kind: Kind
    name: str


@dataclasses.dataclass(frozen=True)
class Grounding:
    """What a text mentions, in order of place; spans do not overlap."""

    spans: tuple[Span, ...]

    def names(self, *kinds: Kind) -> set[str]:
        """Distinct titles or values of some kinds."""
        return {span.name for span in self.spans if span.kind in kinds}

    @property
    def features(self) -> set[str]:
        """The attribute values that are mentioned, of whatever kind: features of a text."""
        return self.names("item_attribute", "history_attribute", "absent_attribute")

    def highlights(self) -> list[tuple[int, int, str]]:
        """`[start, end, kind]` of every mention, to mark it."""
        return [(span.start, span.end, span.kind) for span in self.spans]


def cell_values(cell: Any) -> list[str]:
    """The values of a table cell as texts: of a list each one, of a number without ".0"."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return []
    if not isinstance(cell, str) and isinstance(cell, Iterable):
        return [value for member in cell for value in cell_values(member)]
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    text = str(cell).strip()
    return [] if text.lower() in _NO_VALUE else [text]


class Grounder:
    """Finds mentions; built once for a catalogue.

    Args:
      titles: of all items.
      vocabulary: column to all its values. A plain number is found behind its column's name or
        "level" ("price level 3", "a price of 3"), a number of four digits, a year, anywhere;
        a value's plural counts too.
    """

    def __init__(
        self, titles: Iterable[str], vocabulary: Mapping[str, Iterable[str]] | None = None
    ):
        self._matcher, self._values = Matcher(), Trie()
        self._known: set[str] = set()
        self._accusing: dict[Words, str] = {}  # whole titles: the first that is so called
        self._said: dict[Words, set[tuple[str, str]]] = collections.defaultdict(set)
        for title in dict.fromkeys(titles):
            self._add(title)
            for spelling in STRICT.spellings(title):
                self._accusing.setdefault(spelling.words, title)
        for column, values in (vocabulary or {}).items():
            for value in values:
                for words in _ways_to_say(column, value):
                    self._values.add(words)
                    self._said[words].add((column, value))

    def _add(self, title: str) -> None:
        self._known.add(title)
        for spelling in LENIENT.spellings(title):
            self._matcher.add(spelling.words)

    def ground(
        self,
        text: str,
        *,
        item: str = "",
        history: Sequence[str] = (),
        item_attributes: Mapping[str, Any] | None = None,
        history_attributes: Iterable[Mapping[str, Any]] = (),
    ) -> Grounding:
        """Finds what a text mentions.

        Args:
          text: the explanation.
          item: title of the recommended item.
          history: titles that the prompt shows.
          item_attributes: row of the item; columns outside the vocabulary do not matter.
          history_attributes: rows of the history.
        """
        allowed: list[tuple[Kind, str]] = [("history", title) for title in history]
        allowed += [("item", item)] if item else []
        for _, title in allowed:
            if title not in self._known:  # it can be found, but never held against a text
                self._add(title)
        # Of two that are called alike the whole title counts, then the item.
        own = {
            words: source
            for shortened in (True, False)
            for source in allowed
            for words, short in LENIENT.spellings(source[1])
            if short == shortened
        }
        tokens = tokenize(text)
        rows = [item_attributes or {}], history_attributes
        sources = [
            {
                (column, value)
                for row in part
                for column in row
                for value in cell_values(row[column])
            }
            for part in rows
        ]
        true = sources[0] | sources[1]
        spans, taken = self._title_spans(tokens, own, true)
        said, covered = self._attribute_spans(tokens, taken, *sources)
        spans += self._in_quotes(tokens, taken, covered, own)
        # A value inside an unknown title is part of it.
        free = {word.start for word, used in zip(tokens.words, taken, strict=True) if not used}
        spans += [span for span in said if span.start in free]
        return Grounding(tuple(sorted(_in_text(tokens, span) for span in spans)))

    def _title_spans(
        self, tokens: Tokens, own: Mapping[Words, tuple[Kind, str]], true: set[tuple[str, str]]
    ) -> tuple[list[Span], list[bool]]:
        """Titles of the item, the history and the catalogue, and which words they take."""

        def policy(title: Words) -> Policy | None:
            values = self._said.get(title, set())
            if title in own:
                return QUOTED if values and len(title) == 1 else LENIENT
            # An attribute that is so called speaks for the text.
            if title not in self._accusing or values & true:
                return None
            return QUOTED if values else STRICT

        spans: list[Span] = []
        words, taken = tokens.words, [False] * len(tokens.words)
        for match in self._matcher.find(tokens, policy):
            kind, name = own.get(match.title) or ("catalogue", self._accusing[match.title])
            series = match.behind < len(words) and words[match.behind].form in _SERIES
            if kind != "catalogue" or not series:
                spans.append(Span(match.start, match.end, kind, name))
            taken[match.first : match.behind] = [True] * (match.behind - match.first)
        return spans, taken

    def _in_quotes(
        self,
        tokens: Tokens,
        taken: list[bool],
        covered: list[bool],
        own: Mapping[Words, tuple[Kind, str]],
    ) -> list[Span]:
        """Phrases in quotes and capitals: beginnings of own titles, or unknown titles."""
        spans = []
        text, words = tokens.folded, tokens.words
        for pattern in _QUOTED:
            for match in pattern.finditer(text):
                low = bisect.bisect_left(words, match.start(), key=lambda word: word.start)
                high = bisect.bisect_right(words, match.end(), key=lambda word: word.end)
                inside = words[low:high]
                most = _MOST_WORDS if has_blanks(match[1]) else _MOST_CHARACTERS
                if not 0 < len(inside) <= most or any(taken[low:high]):
                    continue
                names = [place for place in range(low, high) if words[place].form not in SMALL]
                if not names or not all(words[place].capital for place in (low, *names)):
                    continue
                if all(covered[place] for place in names):
                    continue
                start, end = inside[0].start, inside[-1].end
                kind: Kind = "unknown"
                name = tokens.text[slice(*tokens.span(start, end))]
                said = tuple(word.form for word in inside)
                if said[0] in ARTICLES:
                    said = said[1:]
                for whole, (source, title) in own.items():
                    if whole[: len(said)] == said:
                        kind, name = source, title
                        break
                if kind == "unknown" and not has_case(inside) and match[0][0] not in _MARKS:
                    continue  # capitals cannot show that a title is meant
                spans.append(Span(start, end, kind, name))
                taken[low:high] = [True] * (high - low)
        return spans

    def _attribute_spans(
        self,
        tokens: Tokens,
        taken: list[bool],
        item: set[tuple[str, str]],
        history: set[tuple[str, str]],
    ) -> tuple[list[Span], list[bool]]:
        """Values of attributes, and which words they take."""
        text, words = tokens.folded, tokens.words
        spans, place = [], 0
        covered = [False] * len(words)
        while place < len(words):
            for matches, behind in self._values.at(words, place):
                ends = words[place].start, words[behind - 1].end
                if any(taken[place:behind]) or not stands_alone(text, *ends):
                    continue
                said = self._said[matches]
                if own := said & item:
                    kind: Kind = "item_attribute"
                elif own := said & history:
                    kind = "history_attribute"
                else:
                    own, kind = said, "absent_attribute"
                name = min(value for _, value in own)
                spans.append(Span(*ends, kind, name))
                covered[place:behind] = [True] * (behind - place)
                place = behind - 1
                break
            place += 1
        return spans, covered


def _in_text(tokens: Tokens, span: Span) -> Span:
    """A span of the folded text as one of the text."""
    start, end = tokens.span(span.start, span.end)
    return span._replace(start=start, end=end)


def _ways_to_say(column: str, value: str) -> list[Words]:
    words = forms_of(value)
    if not words or value.lower() in _NO_VALUE:
        return []
    if all(word.isdigit() for word in words):
        if len(words) == 1 and len(words[0]) == 4:
            return [words]
        heads = (forms_of(column.replace("_", " ")), ("level",), (*forms_of(column), "level"))
        return [(*head, *link, *words) for head in heads for link in ((), ("of",))]
    return [words, forms_of(plural(value))]
