"""Names in running text: words with their places, the ways a title may be written, a trie of them.

Case, punctuation, quotes, diacritics and possessives do not matter to what matches; articles may
lead, trail ("Matrix, The") or be missing; a year behind ("(1999)") and an alternative title in
brackets may be left out. Whether a match may stand is decided by whoever looks for it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import regex

from xrec_jax.text.words import NAME_WORD, without_marks

Words = tuple[str, ...]
QUOTES = (
    "\"'\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb\u2039\u203a`*"
    "\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f"  # Chinese and Japanese
)
ARTICLES = ("the", "a", "an")
# Words that titles keep small, and that say nothing by themselves.
SMALL = frozenset(
    "a an and are as at but by de der des di du for from how i if in into is it la le les me my no "
    "not of off on or our out so that the their them they this to up us was we were what when "
    "where which who why will with you your she he her him his one two three four five six seven "
    "eight nine ten be been do does go all any more most very can could may might should would "
    "have has had here there then than now only also just like".split()
)
_FOREIGN = "la le les l' il lo gli i el los las der die das den det een het o os um".split()
_END = ""  # no word is empty
_INITIALS = r"(?:[^\W\d_]\.){2,}(?:[^\W\d_](?![^\W_]))?|&"  # L.A., G.I.
_WORD = re.compile(rf"{_INITIALS}|[^\W_](?:[^\W_]|['\u2019\u02bc](?=[^\W_]))*")
_ANY_WORD = regex.compile(
    rf"{_INITIALS}|{NAME_WORD}(?:['\u2019\u02bc]{NAME_WORD})*", regex.V1
)  # the same in every script
# Full-width brackets and colons, and the sign of a year, are those of Chinese and Japanese.
_YEAR = re.compile(r"\s*[(\[\uff08](?:1[89]|20)\d\d(?:/\w+|\u5e74)?[)\]\uff09]\s*$")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_REPR = re.compile(r"^u([\"'])(.*)\1$")
_BRACKETS = re.compile(r"\s*[(\[\uff08]([^()\[\]\uff08\uff09]*)[)\]\uff09]")
_SUBTITLE = re.compile(r":\s|\uff1a|\s[-\u2013\u2014]\s")
_BREAK = re.compile(r"(?:[.!?:\n\u2022\u3002\uff01\uff1f\uff1a]|^)[\s\"'\u201c\u2018(*\-]*$")


class Word(NamedTuple):
    """A word of a text.

    Attributes:
      start: its first character.
      end: behind its last one.
      form: what is compared: no case, marks or apostrophes.
      bare: `form` without the s of a possessive.
      capital: begins with a capital letter or a digit.
    """

    start: int
    end: int
    form: str
    bare: str
    capital: bool


def words_of(text: str) -> list[Word]:
    """The words of a text, in order; "&" is "and", initials are one word."""
    words = []
    for match in (_WORD if text.isascii() else _ANY_WORD).finditer(text):
        raw = match.group()
        form = bare = _form(raw)
        if len(raw) > 2 and raw[-2] in "'\u2019\u02bc" and raw[-1] in "sS":
            bare = form[:-1]
        words.append(Word(match.start(), match.end(), form, bare, not raw[0].islower()))
    return words


@functools.lru_cache(maxsize=1 << 16)
def _form(raw: str) -> str:
    if raw == "&":
        return "and"
    raw = without_marks(raw)
    for char in ".'\u2019\u02bc":
        raw = raw.replace(char, "")
    return raw.casefold()


def forms_of(text: str) -> Words:
    """The words of a text as they are compared."""
    return tuple(word.form for word in words_of(text))


def begins_sentence(text: str, start: int) -> bool:
    """Whether the word at `start` opens a sentence, a line, or what stands behind a colon."""
    return bool(_BREAK.search(text, max(0, start - 12), start)) or not text[:start].strip(
        QUOTES + " (-"
    )


def quoted(text: str, start: int, end: int) -> bool:
    """Whether quotes stand right around a span; a comma or full stop may precede the last one."""
    if start == 0 or text[start - 1] not in QUOTES:
        return False
    while end < len(text) and text[end] in ".,!?;:\u3001\u3002\uff01\uff0c\uff1f":
        end += 1
    return end < len(text) and text[end] in QUOTES


class Alias(NamedTuple):
    """A way to write a title.

    Attributes:
      words: without an English article in front.
      short: only what stands before the subtitle: it may be another title, or a series.
    """

    words: Words
    short: bool


@functools.lru_cache(maxsize=1 << 16)
def aliases(title: str) -> tuple[Alias, ...]:
    r"""The ways to write a title, without repetition.

    "Matrix, The (1999)" and "The Matrix" give ("matrix",); "Seven (Se7en)" gives ("seven",
    "se7en"), ("seven",) and ("se7en",); "Terminator 2: Judgment Day" gives all its words, and as a
    short form of two words or more ("terminator", "2"). Escapes that a file kept by mistake
    (`Just Cause\u2122 3`, `u"Mirrors Edge"`) are read as what they stand for.
    """
    title = _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), title)
    plain = _YEAR.sub("", _REPR.sub(r"\2", title))
    outside = _BRACKETS.sub("", plain)
    inside = [part for part in _BRACKETS.findall(plain) if len(forms_of(part)) and len(part) > 2]
    found: dict[Words, bool] = {}
    for part in (plain, outside, *inside):
        for words in _with_articles(part):
            found.setdefault(words, False)
    for words in _with_articles(_SUBTITLE.split(outside)[0]):
        if len(words) > 1:
            found.setdefault(words, True)
    return tuple(Alias(words, short) for words, short in found.items() if words)


def _with_articles(title: str) -> list[Words]:
    words = list(forms_of(title))
    found = []
    head, _, tail = title.rpartition(",")
    if head and (tail := tail.strip().lower().replace("\u2019", "'")) in (*ARTICLES, *_FOREIGN):
        words = list(forms_of(head))
        if tail not in ARTICLES:
            found.append((*forms_of(tail), *words))
    elif len(words) > 1 and words[-1] == "the":
        words = words[:-1]  # some files drop the comma
    if len(words) > 1 and words[0] in ARTICLES:
        words = words[1:]
    return [*found, tuple(words)]


class Trie:
    """Sequences of words, found at any place of a text in time that does not grow with them."""

    def __init__(self) -> None:
        self._root: dict[str, Any] = {}

    def add(self, words: Iterable[str]) -> None:
        """Adds a sequence of one word or more."""
        words, node = tuple(words), self._root
        for word in words:
            node = node.setdefault(word, {})
        node[_END] = words

    def at(self, words: Sequence[Word], place: int) -> Iterator[tuple[Words, int]]:
        """Sequences that begin at a place, the longest first, with the place behind each."""
        found: list[tuple[Words, int]] = []
        node: Any = self._root
        for end in range(place, len(words)):
            word = words[end]
            if word.bare is not word.form and _END in (bare := node.get(word.bare, {})):
                found.append((bare[_END], end + 1))
            node = node.get(word.form)
            if node is None:
                break
            if _END in node:
                found.append((node[_END], end + 1))
        return reversed(found)
