"""Regular expressions for the polarity of a claim: taste, price, distance, popularity, sequence.

Patterns only; `reader` decides which value they refer to. All expect a sentence whose first word is
in lower case unless it begins a name, and none of them reads a value.
"""

from __future__ import annotations

import re


def _any(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(rf"(?<![\w-])(?:{pattern})(?![\w-])" for pattern in patterns))


# Price: direction, comparison with what is usual, and fit to the budget.
SENSE = re.compile(r"(?<![\w-])(cheaper|pricier)(?![\w-])")
PRICIER = _any("pricier", "more expensive", "dearer", "costlier", "costs? (?:you )?more")
CHEAPER = _any("cheaper", "less expensive", "costs? (?:you )?less", "less pricey")
USUAL = _any(
    r"(?:than|from) (?:what )?(?:you(?:'re| are)?|your|usual|most of your)(?: \w+)*",
    "than (?:the )?(?:places|usual|others)(?: \\w+)*",
)
PRICE_FOR = _any(
    r"(?:suits?|suited|fits?|fitting|match(?:es)?|matching|within|in|meets?|right for|respects?)"
    r"(?: \w+){0,3} (?:budget|wallet|spending)",
    r"(?:suits?|fits?|match(?:es)?|is|are)(?: \w+)? what you (?:\w+ )?"
    r"(?:like to |want to |tend to )?(?:spend|pay|choose)",
    r"(?:fits?|suits?|match(?:es)?|stays? within|is in) (?:in )?(?:with )?your (?:\w+ )?"
    r"(?:price range|prices?|budget)",
    r"(?:is|are|seems?) (?:about |just |quite )?right for (?:you|your budget)",
    r"you would pay about what you usually (?:do|pay)",
    r"(?:price|prices|pricing|price level|level)(?: of \d)?(?: \w+)? (?:suits?|fits?) you",
)
PRICE_AGAINST = _any(
    r"(?:beyond|above|over|below|outside|exceeds?)(?: of)? your (?:\w+ )?(?:budget|price range)",
    r"not (?:\w+ )?(?:suit|fit|match|within|in)(?: \w+){0,2} (?:budget|price range)",
    "too (?:expensive|pricey|cheap) for you",
)
LEVEL = re.compile(r"(?:\blevels?|\bprices? (?:is|are|of)(?: at)?) (?:of )?(\d+)\b", re.IGNORECASE)

# Distance: a value in km, in favour and against.
KM = re.compile(r"\b(\d+(?:\.\d+)?) ?km\b")
_FAR_PLACE = r"(?: \w+){0,4} (?:home|you|most(?: \w+)?|where you live)"
NEAR = _any(
    rf"(?:closer|nearer){_FAR_PLACE}",
    r"(?:close|near)(?: \w+)? (?:to )?(?:your home|home|where you live|to you)",
    r"(?:close|near) to (?:you|home)",
    "less than (?:for|to) most(?: \\w+)?",
    "(?:way|walk|trip)(?: there)? is short",
    "short (?:way|walk|trip|distance)",
    "(?:easy|easier|quick)(?: for you)? to (?:reach|get to)",
    "nearby",
)
FAR = _any(
    rf"(?:farther|further)(?: away)?(?:{_FAR_PLACE})?",
    r"far (?:away )?from (?:your home|home|you|where you live)",
    "more than (?:for|to) most(?: \\w+)?",
    "(?:way|walk|trip)(?: there)? is long",
    "(?:a )?long (?:way|walk|trip)",
    "(?:hard|harder)(?: for you)? to reach",
)

# Popularity, in favour and against.
MANY = _any(
    "more popular(?! than (?:it|this))",
    "(?:more|many) (?:people|visitors|guests|regulars)(?: \\w+)*",
    "(?:very |so )?popular with",
)
FEW = _any(
    "less popular",
    "fewer (?:people|visitors|guests)",
    "(?:most|other)(?: other)? places (?:are|is|being) more popular",
    "not (?:as |so |very |particularly )?popular",
    "unpopular",
)

# Sequence: the place suits the visit before it, or repeats it.
FOLLOWS = _any(
    "goes (?:very )?well (?:after|with)",
    "(?:good|natural|nice|fitting|fine|great|perfect|logical|ideal) (?:next|follow-up|second)"
    "(?: \\w+)?",
    "follows? (?:it |that )?(?:very )?(?:well|nicely|naturally)",
    "(?:comes?|is) at (?:just )?the right (?:time|moment)",
    "(?:good|natural|nice|fitting) (?:thing|place|choice|step|visit)(?: to go)?(?: next| after)",
    "(?:suits?|fits?)(?: you| well)* after",
)
REPEATS = _any(
    "(?:little|no|not much) (?:change|variety)",
    "more of the same",
    "repetitive|repetition|repeats?",
    "(?:visit|stop|choice) was (?:to |at )?an? [\\w ]+ too",
    "does not (?:\\w+ )?(?:follow|go|fit|suit)(?: \\w+){0,2} after",
    "not (?:\\w+ )?(?:good|natural|fitting|right) (?:next|after)(?: \\w+)?",
    "(?:same|another) (?:kind|one)(?: of place)?(?: right| straight)? (?:again|after)",
)

# "like" is also a comparison ("places like X"), so it needs a subject or an auxiliary.
TASTE = _any(
    r"(?:you|user|who|they|and|to|also|really|usually|generally|often|would|may|might|should|will|"
    r"not|neither|nor|always|clearly|especially|particularly|most) likes?(?! to (?:spend|pay))",
    r"likes|liked|liking|loves?|loved|enjoys?|enjoyed|enjoying|prefers?|preferred|preference",
    r"fond of|favou?rites?|favou?rs?|soft spot|fan of|keen on|drawn to|interested in|interest in",
    r"go for|going for|goes for|feel at home|feel right|look for|looking for|looks for|seek",
    r"(?:tend|tends|like|likes|seem) to (?:choose|visit|go to|pick)",
    r"(?:often|usually|regularly|frequently) (?:choose|visit|go to|pick)",
    r"(?:suits?|match(?:es)?|matching|fits?|fitting|meets?|to|for)(?: well)? your (?:\w+ )?"
    r"(?:tastes?|likings?|preferences?|style|mood|thing)",
    r"(?:suits?|match(?:es)?|fits?|pleases?|appeals? to|matters? to|right for) you",
    r"your (?:\w+ )?(?:taste|liking|thing|preference|love) ?(?:for)?",
    r"speaks? for|cares? (?:\w+ ){0,2}for",
    r"is how you like|reason (?:for you )?to (?:try|visit|go)",
)
AVERSE = _any(
    r"avoids?|avoided|avoiding|dislikes?|disliked|hates?|speaks? against|less happy|unhappy",
    r"not for you|turns? you off|puts? you off|bores? you|bothers? you",
)
NEGATION = re.compile(
    r"(?<![\w-])(?:not|never|hardly|rarely|seldom|no|nor|neither|without|less|\w+n't)"
    r"(?: [\w'-]+){0,4}? ?$"
)
ANAPHOR = re.compile(r"\b(?:such|those|them|that|this|these|which)\b")
SPLIT = re.compile(
    r"\s*[;:]\s+|,? (?:but|while|whereas|though|although|yet|because|since) |, (?:and|so|as) |"
    r" and (?=(?:it|this place|that|you|your|the place) )"
)


def negated(text: str, match: re.Match[str]) -> bool:
    """True if a negation occurs at most four words before a match."""
    return bool(NEGATION.search(text[: match.start()]))
