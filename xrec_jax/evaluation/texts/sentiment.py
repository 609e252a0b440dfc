"""Sentiment of explanations by a small word list.

The list was made for recommendations; it is meant for comparing groups of texts of one kind, not
for single texts. The polarity of a word is reversed within three words after a negation; "not only"
is no negation. Any function from a text to a number can be used instead.
"""

from __future__ import annotations

import math
import re

from xrec_jax.text.words import is_latin

POSITIVE = frozenset(
    "acclaimed adore adored affordable amazing appeal appealing appeals appreciate appreciated "
    "attractive award awards beautiful beautifully beloved best better blend brilliant brilliantly "
    "captivate captivating celebrated charming classic comfortable compelling convenient "
    "creative delicious delight delightful deserves easy engaging enjoy enjoyable enjoyed enjoying "
    "enjoys entertaining epic excellent exceptional excited exciting exhilarating fan fans "
    "fantastic fascinating favorite favorites favour favourite favourites fits fond fresh friendly "
    "fun gem glad good great gripping happy heartwarming helpful highlight hilarious iconic ideal "
    "impressive inspiring interested interesting intriguing joy liked liking love loved lovely "
    "loves loving masterfully masterpiece match matches memorable must-read must-see must-watch "
    "nice outstanding perfect perfectly pleasant please pleased pleasure popular powerful praised "
    "prefer quality recommend recommended refreshing relaxing renowned rewarding rich satisfying "
    "shine smooth special spectacular strong stunning suitable suits superb superior talented "
    "tasty terrific thrilling timeless touching treat unforgettable unique valuable vibrant warm "
    "welcome welcoming well-liked wonderful worth worthwhile worthy".split()
)
NEGATIVE = frozenset(
    "annoying avoid awful bad bland boring careful caution complain confusing costly crowded "
    "cheesy dated dirty disappoint disappointed disappointing disappointment dislike disliked "
    "drawback drawbacks dull expensive fail fails farther flat flaw flawed flaws frustrating "
    "generic hard hate hesitant inconvenient inferior irritating lack lacking lacks lame lengthy "
    "less mediocre mess messy miss monotonous noisy overpriced overrated painful poor poorly "
    "predictable pricey pricier problem problems regret repetitive risk risky rude sad slow stale "
    "tedious terrible tired tiresome ugly unappealing uncomfortable unfortunately unhappy "
    "uninteresting unpleasant unsatisfying unsuitable waste weak weird worse worst wrong".split()
)
NEGATIONS = frozenset(
    "aren't can't cannot couldn't didn't doesn't don't hardly hasn't haven't isn't neither never "
    "no nobody none nor not nothing seldom shouldn't wasn't weren't without won't wouldn't".split()
)
_REACH = 3  # words after a negation whose polarity it reverses
_TOKEN = re.compile(r"[a-z]+(?:['-][a-z]+)*|[.,;:!?]")


def sentiment(text: str) -> float:
    """Sentiment score from -1 to 1: `(positive - negative) / (positive + negative + 1)`.

    The 1 keeps texts with a single such word from the ends of the scale; texts without any have 0.
    NaN for a text mostly in another script than Latin, for which there is no list.
    """
    if not is_latin(text):
        return math.nan
    positive = negative = reach = 0
    words = _TOKEN.findall(text.lower().replace("\u2019", "'"))
    for place, word in enumerate(words):
        if word in ".,;:!?":
            reach = 0  # a negation ends with its clause
            continue
        if word in NEGATIONS:
            following = words[place + 1] if place + 1 < len(words) else ""
            reach = 0 if (word, following) == ("not", "only") else _REACH
            continue
        if word in POSITIVE or word in NEGATIVE:
            good = (word in POSITIVE) != (reach > 0)
            positive, negative = positive + good, negative + (not good)
        reach = max(0, reach - 1)
    return (positive - negative) / (positive + negative + 1)
