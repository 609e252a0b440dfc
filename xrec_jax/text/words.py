"""Words in every script: boundaries, counts, and optional diacritics.

Most scripts put blanks between words. Chinese, Japanese, Thai, Lao, Khmer and Burmese do not; there
each character, with its combining marks, counts as a word, as is usual in the evaluation of Chinese
texts (the tokenizer "zh" of sacrebleu). Korean has blanks, but attaches particles to names, so each
of its syllables counts as a word when names are matched.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import regex

# Scripts without blanks between words; the prolonged sound mark belongs to kana.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ーｰ"
# Variants of the apostrophe.
APOSTROPHES = "'\u2019\u2018\u02bc`\u00b4"


def _word(unspaced: str, letters: str = r"\p{L}\p{N}", joining: str = "") -> str:
    """Pattern of a word of `letters`; each letter of the scripts `unspaced` is a word."""
    alone = rf"[[{letters}]&&[{unspaced}]]\p{{M}}*"
    letter = rf"[[{letters}]--[{unspaced}]]"
    # Zero-width joiners occur within words (Persian), never at their ends.
    inner = rf"{letter}|\p{{M}}|[\u200c\u200d](?={letter})"
    if joining:
        inner += rf"|[{joining}]+(?={letter})"
    return rf"(?:{alone}|{letter}(?:{inner})*)"


WORD = _word(_UNSPACED)
WORD_OR_LINE = _word(_UNSPACED, r"\p{L}\p{N}_")  # the underscore too, as in Python's \w
NAME_WORD = _word(_UNSPACED + r"\p{Hangul}")
# With apostrophes inside: beside a character that is a word by itself they are quotes.
NAME_WORD_JOINED = _word(_UNSPACED + r"\p{Hangul}", joining=APOSTROPHES)
_ALONE = regex.compile(rf"[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*", regex.V1)
_WORDS = regex.compile(WORD, regex.V1)
_ASCII_SPELT = re.compile(r"[a-zA-Z]+(?:'[a-zA-Z]+)*")
_SPELT_WORD = _word(_UNSPACED, r"\p{L}")
_SPELT = regex.compile(rf"{_SPELT_WORD}(?:['\u2019]{_SPELT_WORD})*", regex.V1)
_FREE = regex.compile(rf"[{_UNSPACED}\p{{Hangul}}]", regex.V1)
_NO_STOP = regex.compile(r"[\p{Thai}\p{Lao}]")
_LATIN, _LETTER = regex.compile(r"\p{Latin}"), regex.compile(r"\p{L}")
_PART = regex.compile(r"[\p{L}\p{M}\p{N}]")
_APART = regex.compile(
    rf"[[{_UNSPACED}]&&[\p{{L}}\p{{N}}\p{{S}}]]\p{{M}}*|[\u3000-\u303f\uff00-\uffef]", regex.V1
)
# Zero-width characters that control line breaks or text direction.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
# Marks that writers may omit without changing the word: accents of Latin and Greek, stress and the
# dots of "ё" in Cyrillic, vowel points of Arabic and Hebrew.
_OPTIONAL = regex.compile(
    r"(?<=[\p{Latin}\p{Greek}]\p{M}*)\p{Mn}|(?<=[\u0415\u0435])\u0308"
    r"|(?<=[\u0430\u0435\u0438\u043e\u0443\u044b\u044d-\u044f]"
    r"|[\u0410\u0415\u0418\u041e\u0423\u042b\u042d-\u042f])[\u0300\u0301]"
    r"|[\u0640\u064b-\u0652\u0670\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7]"
)
# Korean particles that are attached to a name, such as the subject marker.
_PARTICLES = regex.compile(
    "(?:은|는|이|가|을|를|의|에|에서|에게|께|와|과|랑|이랑|도|만|로|으로|처럼|보다|까지|부터|마다|"
    "조차|밖에|이나|나|이라|라|이란|란|이다|다|입니다|인|이고|고|이며|며|요|이에요|예요|하고|같은|"
    "같이|씨|님|들|한테|라는|라고){0,3}"
)
_HANGUL, _KATAKANA = regex.compile(r"\p{Hangul}"), regex.compile(r"[\p{Katakana}ーｰ]", regex.V1)
_HANGUL_RUN = regex.compile(r"\p{Hangul}{0,10}")  # one more than the longest particles
_SURE = 4  # least characters of a name that may match inside a longer run of katakana


def words(text: str) -> list[str]:
    """Words in lower case: runs of letters and digits, or characters of scripts without blanks."""
    return _WORDS.findall(composed(text).lower())


def spelt_words(text: str) -> list[str]:
    """Words of letters only, with their case; an apostrophe does not split a word."""
    return (_ASCII_SPELT if text.isascii() else _SPELT).findall(composed(text))


def composed(text: str) -> str:
    """Normalises a text to NFC, without invisible characters.

    Invisible characters, such as soft hyphens, are removed, since they do not separate words.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", _INVISIBLE.sub("", text))


def word_count(text: str) -> int:
    """Number of words: tokens between white space, and characters of scripts without blanks.

    Punctuation surrounded by white space counts as a word.
    """
    pieces = text.split()
    if text.isascii():
        return len(pieces)
    return sum(len(_WORDS.findall(piece)) if _ALONE.search(piece) else 1 for piece in pieces)


def has_blanks(text: str) -> bool:
    """True if the text has no characters of scripts without blanks between words."""
    return text.isascii() or not _ALONE.search(text)


def is_dense(word: str) -> bool:
    """True if one or two characters can be a whole word: in scripts without blanks, and Korean."""
    return (
        not word.isascii() and bool(_FREE.match(word)) and (len(word) > 1 or not has_blanks(word))
    )


def ends_sentences(letter: str) -> bool:
    """True if the script of a letter marks the ends of sentences; Thai and Lao do not."""
    return not _NO_STOP.match(letter)


def spaced(text: str) -> str:
    """Puts blanks around every character of a script without blanks, and around its punctuation."""
    return text if text.isascii() else _APART.sub(r" \g<0> ", composed(text))


def is_latin(text: str) -> bool:
    """True if at least half of the letters are Latin, or there are no letters."""
    return text.isascii() or 2 * len(_LATIN.findall(text)) >= len(_LETTER.findall(text))


@functools.lru_cache(maxsize=1 << 16)
def without_marks(text: str) -> str:
    """Removes optional marks and unifies variants of letters.

    "Amélie" becomes "Amelie", "ёлка" becomes "елка", full-width letters become half-width; "й" and
    "и", "が" and "か", and the vowels of Indic and Thai words remain distinct.
    """
    if text.isascii():
        return text
    text = _OPTIONAL.sub("", unicodedata.normalize("NFKD", _INVISIBLE.sub("", text)))
    return unicodedata.normalize("NFC", text)


def finder(names: Iterable[str]) -> Any:
    """Compiles a pattern that finds names as separate words, ignoring case; earlier names win.

    Next to a letter of a script without blanks, or of Korean, no word boundary is required.

    Args:
      names: one or more names, longer ones first.

    Returns:
      A compiled pattern.
    """
    names = list(names)
    # Without other scripts the word boundaries of the standard library are right.
    if all(map(str.isascii, names)):
        return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, names))})(?!\w)", re.IGNORECASE)

    def bounded(name: str) -> str:
        before = "" if _FREE.match(name) else r"(?<![\w\p{M}])"
        behind = "" if _FREE.match(name[-1:]) else r"(?![\w\p{M}])"
        return f"{before}{re.escape(name)}{behind}"

    return regex.compile("|".join(map(bounded, names)), regex.IGNORECASE)


def stands_alone(text: str, start: int, end: int) -> bool:
    """True if the name `text[start:end]` does not look like part of a longer word.

    Only for scripts without clear boundaries; ASCII names are not checked here. A Korean name may
    be followed by particles. A single character must have no letter beside it, and a short name in
    katakana no further katakana: both would match inside other words.
    """
    first, last = text[start], text[end - 1]
    if first.isascii() and last.isascii():
        return True
    before, behind = text[max(start - 1, 0) : start], text[end : end + 1]
    if _HANGUL.match(last):
        suffix = _HANGUL_RUN.match(text, end)[0]
        if not _PARTICLES.fullmatch(suffix):
            return False
    if _HANGUL.match(first):
        return not _HANGUL.match(before)
    short = end - start < _SURE
    for edge, beside in ((first, before), (last, behind)):
        if short and _KATAKANA.match(edge) and _KATAKANA.match(beside):
            return False
    if _ALONE.fullmatch(text, start, end):
        return not (_PART.match(before) or _PART.match(behind))
    return True
