"""Titles compared as a reader does: case, accents, articles and punctuation do not count."""

from __future__ import annotations

import functools
import re

from xrec_jax.text.titles.tokens import Words, forms_of

# In front of a title a foreign article is often a word of the title ("Die Hard"), so it stays.
ARTICLES = ("the", "a", "an")
# A catalogue puts the article behind a comma: "Matrix, The". A lone "I" or "O" is more often a part
# of a name than an article, so those of Portuguese and Italian are left out.
_TRAILING = (
    "the a an "  # English
    "le la les un une "  # French
    "il lo gli uno una i "  # Italian
    "el los las "  # Spanish
    "der die das ein eine "  # German
    "den det en ett"  # Scandinavian
).split()
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})|\\x([0-9a-fA-F]{2})")
_YEAR = re.compile(r"[(\[\uff08]\s*(?:1[89]|20)\d\d\u5e74?\s*[)\]\uff09]\s*$")
_BEHIND = re.compile(rf",\s*(?:{'|'.join(_TRAILING)}|l')(?=\s*(?:$|[(\[]))", re.IGNORECASE)


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
    return " ".join(without_article(forms_of(_main_part(title, year=year), initials=False)))


def same_title(first: str, second: str) -> bool:
    """True if two titles name the same thing; an empty one names nothing."""
    one, other = normal_title(first), normal_title(second)
    return bool(one) and one == other


def title_words(title: str) -> Words:
    """The words of `normal_title` as the tokeniser of texts has them: "L.A." is one."""
    return without_article(forms_of(_main_part(title)))


def unescaped(title: str) -> str:
    r"""A title with what a file kept as escapes by mistake (`Just Cause\u2122 3`) as meant."""
    return _ESCAPE.sub(lambda match: chr(int(match[1] or match[2], 16)), title)


def without_article(words: Words) -> Words:
    """Words of a title without an English article in front, if that leaves any."""
    return words[1:] if len(words) > 1 and words[0] in ARTICLES else words


def _main_part(title: str, *, year: bool = False) -> str:
    """A title without its year and the article behind a comma."""
    text = unescaped(title).strip()
    if not year:
        # A title that is nothing but a year in brackets stays.
        text = _YEAR.sub("", text).strip() or text
    return _BEHIND.sub("", text) or text
