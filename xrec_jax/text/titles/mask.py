"""Names of items inside texts: where they stand, and the text without them."""

from __future__ import annotations

from collections.abc import Iterable

from xrec_jax.text.titles.match import Match, Matcher
from xrec_jax.text.titles.normal import normal_title
from xrec_jax.text.titles.policy import MASK
from xrec_jax.text.titles.tokens import Tokens, Words, tokenize
from xrec_jax.text.words import APOSTROPHES


class TitleMasks:
    """Finds titles in texts and takes them out, by the policy `MASK`.

    Args:
      titles: of the items; those that name nothing are passed over.
    """

    def __init__(self, titles: Iterable[str]):
        self._matcher = Matcher()
        self._names: dict[Words, str] = {}
        spelt = [
            (number, spelling.words, normal_title(title))
            for title in set(titles)
            for number, spelling in enumerate(MASK.spellings(title))
        ]
        # A title comes before those that are so called without their brackets.
        for _, words, name in sorted(spelt):
            self._matcher.add(words)
            self._names.setdefault(words, name)

    def found(self, text: str) -> list[str]:
        """Titles in a text in the form of `normal_title`, in order; a repeated one comes again."""
        return [self._names[match.title] for match in self._matcher.find(tokenize(text), MASK)]

    def mask(self, text: str, *, keep: str = "", by: str = "a place") -> str:
        """A text with other words in place of titles.

        Args:
          text: any text.
          keep: a title that stays.
          by: what stands for the others, and for an article in front of them.
        """
        kept = {spelling.words for spelling in MASK.spellings(keep)}
        tokens, parts, end = tokenize(text), [], 0
        for match in self._matcher.find(tokens, MASK):
            if match.title not in kept:
                start, stop = tokens.span(match.start, _name_end(tokens, match))
                parts += [text[end:start], by]
                end = stop
        return "".join([*parts, text[end:]])


def _name_end(tokens: Tokens, match: Match) -> int:
    """End of a title, without the s of a possessive, which stays behind the replacement."""
    if not match.possessive:
        return match.end
    word = tokens.words[match.behind - 1]
    return word.start + len(tokens.folded[word.start : word.end - 1].rstrip(APOSTROPHES))
