"""The ways in which a title may be written."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from xrec_jax.text.titles.normal import ARTICLES, title_words, unescaped, without_article
from xrec_jax.text.titles.tokens import Words, forms_of

_FOREIGN = "la le les l' il lo gli i el los las der die das den det een het o os um".split()
# Full-width brackets and colons, and the sign of a year, are those of Chinese and Japanese.
_YEAR = re.compile(r"\s*[(\[\uff08](?:1[89]|20)\d\d(?:/\w+|\u5e74)?[)\]\uff09]\s*$")
_REPR = re.compile(r"^u([\"'])(.*)\1$")
_BRACKETS = re.compile(r"\s*[(\[\uff08]([^()\[\]\uff08\uff09]*)[)\]\uff09]")
_SUBTITLE = re.compile(r":\s|\uff1a|\s[-\u2013\u2014]\s")


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
    plain = _YEAR.sub("", _REPR.sub(r"\2", unescaped(title)))
    outside = _BRACKETS.sub("", plain)
    inside = [part for part in _BRACKETS.findall(plain) if len(forms_of(part)) and len(part) > 2]
    short_of: dict[Words, bool] = {}
    for part in (plain, outside, *inside):
        for words in _with_articles(part):
            short_of.setdefault(words, False)
    # The short form comes last, so that a spelling that is whole is never marked as short.
    for words in _with_articles(_SUBTITLE.split(outside)[0]):
        # One word of a longer title is more often a word of the text than the title.
        if len(words) > 1:
            short_of.setdefault(words, True)
    return tuple(Alias(words, short) for words, short in short_of.items() if words)


def long_aliases(title: str) -> tuple[Alias, ...]:
    """The ways to write a title that are short of nothing but articles, brackets and a year."""
    return tuple(alias for alias in aliases(title) if not alias.short)


@functools.lru_cache(maxsize=1 << 16)
def main_aliases(title: str) -> tuple[Alias, ...]:
    """A title with and without what stands in brackets."""
    spelt = dict.fromkeys((title_words(title), title_words(_BRACKETS.sub(" ", title))))
    return tuple(Alias(words, False) for words in spelt if words)


def _with_articles(title: str) -> list[Words]:
    words = forms_of(title)
    spelt = []
    # Behind a comma, a foreign article is put in front as a further spelling; an English one is
    # dropped.
    head, _, tail = title.rpartition(",")
    if head and (tail := tail.strip().lower().replace("\u2019", "'")) in (*ARTICLES, *_FOREIGN):
        words = forms_of(head)
        if tail not in ARTICLES:
            spelt.append((*forms_of(tail), *words))
    elif len(words) > 1 and words[-1] == "the":
        words = words[:-1]  # some files drop the comma
    return [*spelt, without_article(words)]
