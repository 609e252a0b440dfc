"""The one matcher of titles in running text.

Titles and texts are cut into words by one tokeniser (`titles.tokens`), the spellings of all titles
stand in one trie, and of those that begin at a word the longest that counts as a mention wins; no
two mentions overlap. What counts is said by `titles.policy`. With one catalogue the time is linear
in the length of a text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from xrec_jax.text.titles.normal import ARTICLES
from xrec_jax.text.titles.policy import Policy
from xrec_jax.text.titles.tokens import Tokens, Word, Words
from xrec_jax.text.words import has_blanks, is_dense, stands_alone

QUOTES = (
    "\"'\u201c\u201d\u2018\u2019\u201e\u00ab\u00bb\u2039\u203a`*"
    "\u3008\u3009\u300a\u300b\u300c\u300d\u300e\u300f"  # Chinese and Japanese
)
# Words that titles keep small, and that say nothing by themselves.
SMALL = frozenset(
    "a an and are as at but by de der des di du for from how i if in into is it la le les me my no "
    "not of off on or our out so that the their them they this to up us was we were what when "
    "where which who why will with you your she he her him his one two three four five six seven "
    "eight nine ten be been do does go all any more most very can could may might should would "
    "have has had here there then than now only also just like".split()
)
_END = ""  # no word is empty
_LONG_WORDS, _LONG_CHARACTERS = 3, 5  # of a title that is meant though nothing marks it as one
_BREAK = re.compile(r"(?:[.!?:\n\u2022\u3002\uff01\uff1f\uff1a]|^)[\s\"'\u201c\u2018(*\-]*$")
_BREAK_WINDOW = 12  # characters in front of a word that are looked at
_STOPS = ".,!?;:\u3001\u3002\uff01\uff0c\uff1f"
_YEAR_BEHIND = re.compile(r"\s*\((?:1[89]|20)\d\d\)")


class Match(NamedTuple):
    """A mention of a title; places are those of the folded text.

    Attributes:
      title: words of the spelling that stands there.
      start: its first character, of an article in front if there is one.
      end: behind its last one, with an article and a year behind.
      first: number of the first word, of an article in front if there is one.
      behind: number of the word behind the title.
      possessive: whether the title's last word has the s of a possessive there.
    """

    title: Words
    start: int
    end: int
    first: int
    behind: int
    possessive: bool


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
        ends: list[tuple[Words, int]] = []
        node: Any = self._root
        for end in range(place, len(words)):
            word = words[end]
            # Only the last word of a sequence may be a possessive.
            if word.bare is not word.form and _END in (bare := node.get(word.bare, {})):
                ends.append((bare[_END], end + 1))
            node = node.get(word.form)
            if node is None:
                break
            if _END in node:
                ends.append((node[_END], end + 1))
        return reversed(ends)


def is_small(title: Words) -> bool:
    """True if no word of a title says something by itself, as in "It" and "One on One"."""
    return all(word in SMALL or word.isdigit() for word in title)


class Matcher:
    """Finds mentions of titles; built once for a catalogue.

    Args:
      common: whether the words of a title are such as stand in texts that name no title.
    """

    def __init__(self, *, common: Callable[[Words], bool] = is_small):
        self._trie, self._common = Trie(), common

    def add(self, spelling: Words) -> None:
        """Adds a way to write a title."""
        self._trie.add(spelling)

    def find(
        self, tokens: Tokens, policy: Policy | Callable[[Words], Policy | None]
    ) -> list[Match]:
        """Mentions in a text, in order.

        Args:
          tokens: of the text.
          policy: what counts; or what counts for a title, None where it does not count at all.
        """
        chosen = (lambda _: policy) if isinstance(policy, Policy) else policy
        words, matches = tokens.words, list[Match]()
        place = taken = 0  # the next word, and the first that is part of no mention
        while place < len(words):
            # The longest that counts wins: a shorter one is tried only where the longer ones do
            # not.
            for title, behind in self._trie.at(words, place):
                rule = chosen(title)
                if rule is None:
                    continue
                match = _whole(tokens, title, place, behind, taken)
                if self._counts(tokens, match, place, rule):
                    # In "Matrix, The Game" the article is that of the next title.
                    if matches and match.start < matches[-1].end:
                        end = words[matches[-1].behind - 1].end
                        matches[-1] = matches[-1]._replace(end=end)
                    matches.append(match)
                    taken = behind
                    break
            # No word is part of two mentions.
            place = max(place + 1, taken)
        return matches

    def _counts(self, tokens: Tokens, match: Match, place: int, policy: Policy) -> bool:
        """True if the words of a title, the first at `place`, count as a mention of it."""
        text, part = tokens.folded, tokens.words[place : match.behind]
        bounds = part[0].start, part[-1].end
        # Quotes show a title whatever its words, with or without the article inside of them.
        if quoted(text, match.start, match.end) or quoted(text, *bounds):
            return True
        needs = policy.single if len(part) == 1 else policy.several
        if needs == "quotes" or not stands_alone(text, *bounds):
            return False
        if len(part) == 1:
            return self._counts_single(tokens, match, place, policy)
        if needs == "any case":
            return True
        common = self._common(match.title)
        if needs == "capitals":
            return not common and _in_capitals(part) and (has_case(part) or _is_long(text, part))
        # A row of numbers and common words begins with a digit in any case.
        return not common or (_in_capitals(part) and not match.title[0].isdigit())

    def _counts_single(self, tokens: Tokens, match: Match, place: int, policy: Policy) -> bool:
        """The same for a title of one word that is not in quotes."""
        word = tokens.words[place]
        [form] = match.title
        short = len(form) < policy.shortest and not is_dense(form)
        if not word.capital or short or form.isdigit():
            return False
        if policy.single == "capital":
            return True
        common = self._common(match.title)
        if policy.single == "uncommon":
            return not common
        # The capital of a sentence's first word says nothing, nor does the want of capitals.
        inside = has_case([word]) and not begins_sentence(tokens, place)
        if policy.single == "inside if common":
            return inside or not common
        return inside and not common and not _beside_capital(tokens, match)


def begins_sentence(tokens: Tokens, place: int) -> bool:
    """True if a word opens a sentence, a line, or the text behind a colon."""
    text, start = tokens.folded, tokens.words[place].start
    if _BREAK.search(text, max(0, start - _BREAK_WINDOW), start):
        return True
    return place == 0 and not text[:start].strip(QUOTES + " (-")


def quoted(text: str, start: int, end: int) -> bool:
    """True if quotes stand right around a span; a comma or full stop may precede the last one."""
    if start == 0 or text[start - 1] not in QUOTES:
        return False
    # American English puts the comma or full stop inside the quotes.
    while end < len(text) and text[end] in _STOPS:
        end += 1
    return end < len(text) and text[end] in QUOTES


def has_case(words: Iterable[Word]) -> bool:
    """True if words are of a script that has capitals; digits count as such."""
    return not all(word.form == word.form.upper() and not word.form.isdigit() for word in words)


def _in_capitals(part: Sequence[Word]) -> bool:
    """True if the first word, the last one and all that are not small have a capital."""
    ends = part[0].capital and part[-1].capital
    return ends and all(word.capital or word.form in SMALL for word in part)


def _is_long(text: str, part: Sequence[Word]) -> bool:
    """True if words without capitals are so many that nothing but the title can be meant."""
    spaced = has_blanks(text[part[0].start : part[-1].end])
    return len(part) >= (_LONG_WORDS if spaced else _LONG_CHARACTERS)


def _beside_capital(tokens: Tokens, match: Match) -> bool:
    """True if a title is part of a longer name, as in "Anna Rust" or "Rust-Miller"."""
    text, words = tokens.folded, tokens.words
    if match.first:
        before = words[match.first - 1]
        gap = text[before.end : match.start].strip(" -")
        if before.capital and not gap and before.form not in SMALL:
            return True
    behind = match.behind
    while behind < len(words) and words[behind].start < match.end:
        behind += 1  # an article or a year behind the title belongs to it
    if behind == len(words):
        return False
    return words[behind].capital and not text[match.end : words[behind].start].strip(" -")


def _whole(tokens: Tokens, title: Words, place: int, behind: int, taken: int) -> Match:
    """A title with its article and year, wherever they stand; `taken` words are of others."""
    text, words = tokens.folded, tokens.words
    start, end = words[place].start, words[behind - 1].end
    first = place
    before = words[place - 1] if place > taken else None
    # An article in front, unless it is part of the mention before; else one behind a comma.
    if before and before.form in ARTICLES and text[before.end : start] == " ":
        first, start = place - 1, before.start
    elif behind < len(words):
        after = words[behind]
        if after.capital and after.form in ARTICLES and text[end : after.start] == ", ":
            end = after.end
    # The bracket that ends "Seven (Se7en)" is no word, but belongs to the title.
    if "(" in text[start:end] and text[end : end + 1] == ")":
        end += 1
    if year := _YEAR_BEHIND.match(text, end):
        end = year.end()
    # The last word may have matched by its bare form, which differs only by the s.
    possessive = title[-1] != words[behind - 1].form
    return Match(title, start, end, first, behind, possessive)
