"""Policies of title matching: the conditions of a mention, for every use of the matcher.

Case, accents, punctuation, apostrophes and possessives never matter to which words a title has;
articles may lead, trail ("Matrix, The") or be missing; a name is no part of a longer word, as far
as can be seen in its script. Words of a title right in quotes are always a mention. Elsewhere:

* `LENIENT`, for titles that speak for a text, those of its item and history (grounding). They may
  be written in any way, and cut before a subtitle. Several words in any case, common ones in
  capitals; one word with a capital if it is not common.
* `STRICT`, for titles held against a text, the rest of the catalogue (grounding). They stand whole,
  but for a part in brackets. Several words in capitals; one word with a capital that neither opens
  a sentence nor stands beside another one, as in a longer name; nothing that is common. In scripts
  without capitals only what is long.
* `NAMED`, for texts that name anything (monitors of reward hacking). What stands in brackets may be
  missing. Several words in any case, common ones in capitals; one word with a capital, a common one
  where the capital does not just open a sentence.
* `MASK`, for titles that are taken out (texts from files, the control `masked_titles`): as `NAMED`,
  with the common ones. One word of less than three letters is left, as it stands in any text.
* `QUOTED`, for titles that are words of another kind as well, such as the value of an attribute.

A number alone counts in quotes only. What is common the user of the matcher says: words of grammar
where nothing else is known, or the words of good texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from xrec_jax.text.titles.spellings import Alias, aliases, long_aliases, main_aliases


@dataclasses.dataclass(frozen=True)
class Policy:
    """Conditions under which the words of a title in a text are a mention of it.

    Attributes:
      spellings: the ways to write a title that are looked for.
      several: what a title of several words needs: nothing; capitals if it is common; capitals, and
        not to be common; or quotes.
      single: what a title of one word needs: a capital; to begin no sentence either if it is
        common; not to be common; to begin no sentence either, and to stand beside no other word
        with a capital; or quotes.
      shortest: letters of a title of one word; one or two characters that may be whole words, as in
        Chinese, are enough.
    """

    spellings: Callable[[str], tuple[Alias, ...]]
    several: Literal["any case", "capitals if common", "capitals", "quotes"]
    single: Literal["capital", "inside if common", "uncommon", "uncommon inside", "quotes"]
    shortest: int = 1


LENIENT = Policy(aliases, "capitals if common", "uncommon")
STRICT = Policy(long_aliases, "capitals", "uncommon inside")
QUOTED = Policy(aliases, "quotes", "quotes")
NAMED = Policy(main_aliases, "capitals if common", "inside if common")
MASK = Policy(main_aliases, "any case", "capital", shortest=3)
