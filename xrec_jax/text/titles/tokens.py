"""The tokeniser of titles and of the texts they stand in.

A text is folded first: marks that writers may leave out, trade marks and what cannot be seen go,
variants of a letter become one. Then it is cut into words; in scripts without blanks each character
is one, in Korean each syllable. Words keep their places, and places lead back to the text.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any, NamedTuple

import regex

from xrec_jax.text.words import APOSTROPHES, NAME_WORD_JOINED, without_marks

Words = tuple[str, ...]
_TRADE_MARKS = re.compile("[\u00ae\u00a9\u2122\u2120]")
# Runs of ASCII but for a character that marks may follow, and whole characters with their marks.
_CLUSTER = regex.compile(r"[\x00-\x7f]+(?![^\x00-\x7f])|\X")
# Single letters with full stops: "L.A.", "G.I. Jane"; without the dots it is the same word.
_INITIALS = r"(?:[^\W\d_]\.){2,}(?:[^\W\d_](?![^\W_]))?"
_ASCII_WORD = r"[^\W_]+(?:['`]+[^\W_]+)*|&"
_ANY_WORD = rf"{NAME_WORD_JOINED}|&"
# By whether initials are one word, and whether the text is ASCII.
_PATTERNS: dict[tuple[bool, bool], Any] = {
    (False, True): re.compile(_ASCII_WORD),
    (False, False): regex.compile(_ANY_WORD, regex.V1),
    (True, True): re.compile(f"{_INITIALS}|{_ASCII_WORD}"),
    (True, False): regex.compile(f"{_INITIALS}|{_ANY_WORD}", regex.V1),
}


class Word(NamedTuple):
    """A word of a text.

    Attributes:
      start: its first character in the folded text.
      end: behind its last one.
      form: what is compared: no case, marks or apostrophes; "&" is "and".
      bare: `form` without the s of a possessive.
      capital: does not begin with a small letter.
    """

    start: int
    end: int
    form: str
    bare: str
    capital: bool


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A text cut into words.

    Attributes:
      text: as it was.
      folded: what words and places are of.
      words: in order; initials are one word.
    """

    text: str
    folded: str
    words: list[Word]
    _starts: list[int] | None = None  # of each folded character in the text; None: the same
    _ends: list[int] | None = None

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Place of `folded[start:end]`, one character or more, in the text."""
        if self._starts is None or self._ends is None:
            return start, end
        return self._starts[start], self._ends[end - 1]


def tokenize(text: str) -> Tokens:
    """Cuts a text into words."""
    if text.isascii():
        return Tokens(text, text, _words(text))
    pieces, starts, ends, place = [], list[int](), list[int](), 0
    # Cluster by cluster, so that each folded character leads back to its place in the text.
    for cluster in _CLUSTER.findall(text):
        piece, behind = _folded_cluster(cluster), place + len(cluster)
        if len(piece) == len(cluster):
            starts.extend(range(place, behind))
            ends.extend(range(place + 1, behind + 1))
        else:  # every character of the piece stands for the whole cluster
            starts.extend([place] * len(piece))
            ends.extend([behind] * len(piece))
        pieces.append(piece)
        place = behind
    folded = "".join(pieces)
    return Tokens(text, folded, _words(folded), starts, ends)


def fold(text: str) -> str:
    """The text that words are cut from."""
    if text.isascii():
        return text
    return "".join(map(_folded_cluster, _CLUSTER.findall(text)))


def forms_of(text: str, *, initials: bool = True) -> Words:
    """The words of a text as they are compared.

    Args:
      text: any text.
      initials: "L.A." is one word; else two, as where words are counted.
    """
    folded = fold(text)
    return tuple(map(form_of, _PATTERNS[initials, folded.isascii()].findall(folded)))


@functools.lru_cache(maxsize=1 << 16)
def form_of(raw: str) -> str:
    """The form of a folded word that is compared; of signs, what is left of them."""
    if raw == "&":
        return "and"
    for char in "." + APOSTROPHES:
        raw = raw.replace(char, "")
    return raw.casefold()


@functools.lru_cache(maxsize=1 << 16)
def _folded_cluster(cluster: str) -> str:
    if cluster.isascii():
        return cluster
    # Decomposed, an acute accent that stands alone would be a blank with a mark.
    return without_marks(_TRADE_MARKS.sub("", cluster).replace("\u00b4", "'"))


def _words(folded: str) -> list[Word]:
    words = []
    for match in _PATTERNS[True, folded.isascii()].finditer(folded):
        raw = match.group()
        form = bare = form_of(raw)
        # Both forms are kept: only a title tells whether the s is its own or that of a possessive.
        if len(raw) > 2 and raw[-1] in "sS" and raw[-2] in APOSTROPHES:
            bare = form[:-1]
        words.append(Word(match.start(), match.end(), form, bare, not raw[0].islower()))
    return words
