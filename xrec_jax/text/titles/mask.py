"""Names of items inside texts: where they stand, and the text without them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import regex

from xrec_jax.text.titles.normal import normal_title
from xrec_jax.text.words import NAME_WORD, is_dense, stands_alone

_APOSTROPHE = r"['\u2019\u2018\u02bc`\u00b4]"
_TOKEN = re.compile(rf"[^\W_]+(?:{_APOSTROPHE}[^\W_]+)*|&")
_ANY_TOKEN = regex.compile(rf"{NAME_WORD}(?:{_APOSTROPHE}{NAME_WORD})*|&", regex.V1)
_SHORTEST = 3  # letters of a title of one word; shorter ones stand in any text


class TitleMasks:
    """Finds titles in texts.

    A title counts where its words stand in a row, spelt as `normal_title` compares them. A title of
    one word must begin with a capital or a digit there: "friendly" is no mention of "Friendly". It
    must also have three letters, and not be a number. In scripts without blanks each character is a
    word, in Korean each syllable, and there a title must not be part of a longer word as far as can
    be seen (`words.stands_alone`).

    Args:
      titles: of the items; those that name nothing are passed over.
    """

    def __init__(self, titles: Iterable[str]):
        self._by_first: dict[str, list[tuple[str, ...]]] = {}
        for title in sorted({normal_title(title) for title in titles}):
            words = tuple(title.split())
            short = len(title) < _SHORTEST and not is_dense(title)
            if len(words) == 1 and (short or title.isdigit()):
                continue
            if words:
                self._by_first.setdefault(words[0], []).append(words)
        for found in self._by_first.values():
            found.sort(key=len, reverse=True)  # the longest title that fits is the one meant

    def found(self, text: str) -> list[str]:
        """Titles in a text in the form of `normal_title`, in order; a repeated one comes again."""
        return [title for title, _, _ in self._spans(text)]

    def mask(self, text: str, *, keep: str = "", by: str = "a place") -> str:
        """A text with other words in place of titles.

        Args:
          text: any text.
          keep: a title that stays.
          by: what stands for the others, and for an article in front of them.
        """
        kept, parts, end = normal_title(keep), [], 0
        for title, start, stop in self._spans(text):
            if title != kept:
                parts += [text[end:start], by]
                end = stop
        return "".join([*parts, text[end:]])

    def _spans(self, text: str) -> Sequence[tuple[str, int, int]]:
        found = (_TOKEN if text.isascii() else _ANY_TOKEN).finditer(text)
        tokens = [(normal_title(t[0]), t.start(), t.end()) for t in found]
        words = [word for word, _, _ in tokens]
        spans, place = [], 0
        while place < len(words):
            start = tokens[place][1]
            for title in self._by_first.get(words[place], ()):
                stop = tokens[min(place + len(title), len(words)) - 1][2]
                if (
                    words[place : place + len(title)] == list(title)
                    and (len(title) > 1 or not text[start].islower())
                    and stands_alone(text, start, stop)
                ):
                    if place and words[place - 1] in ("the", "a", "an"):
                        start = tokens[place - 1][1]
                    spans.append((" ".join(title), start, stop))
                    place += len(title)
                    break
            else:
                place += 1
        return spans
