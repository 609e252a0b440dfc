"""Titles compared as a reader does: case, accents, articles and punctuation do not count."""

from __future__ import annotations

import functools
import re

import regex

from xrec_jax.text.words import NAME_WORD, without_marks

# A catalogue puts the article behind a comma: "Matrix, The". A lone "I" or "O" is more often a part
# of a name than an article, so those of Portuguese and Italian are left out.
_ARTICLES = (
    "the a an "  # English
    "le la les un une "  # French
    "il lo gli uno una i "  # Italian
    "el los las "  # Spanish
    "der die das ein eine "  # German
    "den det en ett"  # Scandinavian
).split()
# In front of a title a foreign article is often a word of the title ("Die Hard"), so it stays.
_LEADING = ("the", "a", "an")
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_YEAR = re.compile(r"[(\[\uff08]\s*(?:1[89]|20)\d\d\u5e74?\s*[)\]\uff09]\s*$")
_BEHIND = re.compile(rf",\s*(?:{'|'.join(_ARTICLES)}|l')(?=\s*(?:$|[(\[]))", re.IGNORECASE)
_MARKS = re.compile("[\u00ae\u00a9\u2122\u2120]")
_APOSTROPHES = re.compile("['\u2019\u2018\u02bc`\u00b4]")
_NO_WORD = re.compile(r"[^\w]+|_+")
_ANY_WORD = regex.compile(NAME_WORD, regex.V1)  # the same in every script


@functools.lru_cache(maxsize=1 << 16)
def normal_title(title: str, *, year: bool = False) -> str:
    r"""A title in the form in which two spellings of it are equal.

    Case, accents (see `words.without_marks`), punctuation, white space, an English article in
    front, an article behind a comma ("Matrix, The"), trade marks and a year in brackets at the end
    do not count; "&" is "and".
    Escapes that some file left in a text (`\u2122`) are read as what they mean.

    Args:
      title: any text.
      year: keep the year in brackets, where it tells two items of the same name apart.

    Returns:
      Words in lower case with single blanks, of scripts without blanks each character, of Korean
      each syllable; empty for a title without a letter or digit. A title that is nothing but an
      article is kept ("The The" is "the").
    """
    text = _ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), title).strip()
    if not year:
        text = _YEAR.sub("", text).strip() or text
    text = _BEHIND.sub("", text) or text
    text = _MARKS.sub("", text).replace("&", " and ")
    text = _APOSTROPHES.sub("", text)  # "dog's" is "dogs", not "dog s"
    text = without_marks(text).casefold()
    words = _NO_WORD.sub(" ", text).split() if text.isascii() else _ANY_WORD.findall(text)
    if len(words) > 1 and words[0] in _LEADING:
        words = words[1:]
    return " ".join(words)


def same_title(first: str, second: str) -> bool:
    """Whether two titles name the same thing; an empty one names nothing."""
    one, other = normal_title(first), normal_title(second)
    return bool(one) and one == other
