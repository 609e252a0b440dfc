r"""Reader of the reasons that a free text claims about an item, from its wording alone.

Works on generated and on free texts. It knows a vocabulary (attributes and their values) and the
grammar below, but neither the item, nor the user, nor the true reasons. Texts are read sentence by
sentence; a claim needs two things: a *mention* of a value, and a *stance* that makes it a reason.

    text      = sentence*
    sentence  = part (", and" part | ", but" part | ", so" part | ";" part ...)*
    claim     = mention stance | stance mention        with the direction of the stance

    attribute      mention                            stance for               stance against
    kind, cuisine, a word of the value (a kind not    you like, enjoy, are     those under a "not";
    mood, others   in the way of a sequence)          fond of; suits you       avoid, dislike
    price          "price level 3", "level of 3"      suits your budget        cheaper, pricier than
                                                                               usual
    distance       "1.2 km"; none is needed           closer, nearer           farther, a long way
    popularity     a band; none is needed             more popular             less popular
    sequence       "after a bar", "visit to a bar"    goes well after          more of the same

*   Taste joins a mention within one part of a sentence (", which ..." belongs to its part): of
    several stances the nearest one. A part with a stance and no mention may point back ("it is
    quiet, and you like that"). The other attributes join over the whole sentence.
*   Descriptions claim nothing: "X is an artsy cafe", "you have also had Thai food at X", "your
    visits to bars include X" have no stance. A stance of other people ("visitors love", "people
    who like") or under an "if" does not count; neither do mentions in an apposition ("X, a quiet
    cafe, ...").
*   "its genre (comedy) speaks for it" is read for any attribute, in the vocabulary or not.
*   Words with a capital are names where the vocabulary writes them without one, so that a place
    called The Quiet Bar is not a bar; "Thai" is read in either case.
*   `sense` keeps the direction of a price, as cheaper and pricier are both against.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from xrec_jax.text.claims import patterns
from xrec_jax.text.synthetic.grammar import plural

Direction = Literal["for", "against"]
# Values by attribute; a value may have synonyms.
Vocabulary = Mapping[str, Iterable[object] | Mapping[str, Iterable[str]]]

# Attributes with patterns of their own for the direction; all others are tastes.
_OWN_WORDS = ("price", "distance", "popularity", "sequence")


class Claim(NamedTuple):
    """A reason claimed by a text.

    Attributes:
      attribute: attribute of the item.
      direction: "for" or "against".
      value: value as in the vocabulary; None if the text names none.
      sense: "cheaper" or "pricier" for a price that does not fit, else None.
    """

    attribute: str
    direction: Direction
    value: str | None = None
    sense: str | None = None


def read_claims(text: str, vocabulary: Vocabulary) -> frozenset[Claim]:
    """Reads the reasons that a text claims.

    Args:
      text: an explanation, in English.
      vocabulary: values by attribute, or a mapping of values to synonyms. "kind" and "sequence"
        hold nouns in the singular; "price", "distance" and "popularity" are always read, values of
        price as numbers.

    Returns:
      Each claim once. A text that states both directions claims both.
    """
    words = _words(_frozen(vocabulary))
    claims: set[Claim] = set()
    for sentence in _sentences(text):
        # "its genre (comedy) speaks for it" names attribute, value and stance; nothing else is read
        # in it.
        quoted = list(_QUOTED.finditer(sentence))
        for match in quoted:
            stance: Direction = "for" if match["stance"] in _QUOTED_FOR else "against"
            attribute = match["attribute"].replace(" ", "_")
            off = patterns.SENSE.search(sentence) if attribute == "price" else None
            claims.add(Claim(attribute, stance, match["value"], off[0] if off else None))
        if quoted:
            continue
        # Each reader removes what it has read, so that no words count for two attributes; taste,
        # the most general one, comes last.
        plain = _plain(sentence)
        remaining = _sequence(plain, words, claims)
        remaining = _price(remaining, claims)
        _distance(remaining, claims)
        remaining = _popularity(remaining, words, claims)
        _taste(remaining, words, claims)
    return frozenset(claims)


# Sentences ------------------------------------------------------------------------------------

# A full stop ends a sentence if a capital follows, which keeps "1.2 km" in one.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n+")
_MARKER = re.compile(
    r"^(?:a word of caution|one thing against it|another point against it|against|for|"
    r"[a-z ]{0,30}(?:drawback|downside|plus|pro|con))s?: +"
)


def _sentences(text: str) -> list[str]:
    return [
        sentence.strip() for sentence in _END.split(text.replace("\u2019", "'")) if sentence.strip()
    ]


def _plain(sentence: str) -> str:
    """Removes text that claims nothing: brackets, appositions, other people's tastes."""
    text = re.sub(r"\s*\([^()]*\)", "", sentence)
    first, _, remainder = text.partition(" ")
    # "Quiet places ..." starts with a word, "Quiet Bar is ..." with a name.
    if first[:1].isupper() and not re.match(r"[\"']?[A-Z]", remainder):
        text = f"{first[:1].lower()}{first[1:]} {remainder}".rstrip()
    text = re.sub(r"\bnot only\b", " ", _MARKER.sub("", text))
    text = re.sub(r", an? [^,.;]+,(?= (?!and |or ))", " ", text)
    text = re.sub(r"\bif you (?:\w+ )?(?:like|love|enjoy|prefer|are|look|want)\b", " ", text)
    return _OTHERS.sub(" ", text)


_OTHERS = re.compile(
    r"\b(?:people|those|visitors|guests|anyone|everyone) who\b[^,;.]*"
    r"|\b(?:people|visitors|guests|locals|everyone|everybody|others|some|many|those|they|customers)"
    r"(?: who| that)?(?: \w+ly| often| also| all| do| not| tend to| seem to)*"
    r" (?:like|love|enjoy|prefer|avoid|dislike|praise|look for|are fond of|feel at home)s?\b"
    r"|\b(?:suits?|matches|fits?|matters? to|taste of|pleases?) (?:the taste of )?"
    r"(?:some|many|those|others|people|everyone|everybody)\b"
)
_QUOTED_FOR = ("speaks for it", "is in its favour", "is in its favor")
_QUOTED = re.compile(
    r"\b(?:[Ii]ts|[Tt]he) (?P<attribute>[a-z][a-z0-9 ]{0,30}?) \((?P<value>[^()]+)\) "
    r"(?P<stance>speaks for it|speaks against it|is in its favou?r|is not in its favou?r)"
)

_MONEY = re.compile(r"\b(?:budget|spend|pay|costs?|pric\w+)\b")
_NEGATED_TASTE = re.compile(r"(?:not|neither|nor) ")

# Attributes -----------------------------------------------------------------------------------


def _sequence(sentence: str, words: _Words, claims: set[Claim]) -> str:
    """Reads claims on the visit before; returns the sentence without these mentions."""
    mentions = list(words.before.finditer(sentence)) if words.before else []
    if not words.before or not mentions:
        return sentence
    # The mention is removed even without a stance: "you would enjoy it after a bar" claims no bar.
    remaining = words.before.sub(" ", sentence)
    against, for_ = patterns.REPEATS.search(sentence), patterns.FOLLOWS.search(sentence)
    if not (against or for_):
        return remaining
    direction: Direction = "against" if against else "for"
    for match in mentions:
        claims.add(Claim("sequence", direction, words.kinds[match["noun"].lower()]))
    return patterns.FOLLOWS.sub(" ", patterns.REPEATS.sub(" ", remaining))


def _price(sentence: str, claims: set[Claim]) -> str:
    """Reads claims on the price; returns the sentence without them, so "suits" counts once."""
    levels = [match[1] for match in patterns.LEVEL.finditer(sentence)]
    sense = None
    for name, pattern in (("pricier", patterns.PRICIER), ("cheaper", patterns.CHEAPER)):
        match = pattern.search(sentence)
        if match and patterns.USUAL.search(sentence, match.end()):
            # "not cheaper than usual" claims no direction.
            sense = sense if patterns.negated(sentence, match) else name
    # "suits you" is about the price only if the sentence mentions one.
    fits = patterns.PRICE_FOR.search(sentence) if levels or _MONEY.search(sentence) else None
    misses = patterns.PRICE_AGAINST.search(sentence)
    direction: Direction | None = "against" if sense or misses else None
    if fits:
        direction = "against" if patterns.negated(sentence, fits) else "for"
    if direction:
        for value in levels or [None]:
            off = sense if direction == "against" else None
            claims.add(Claim("price", direction, value, off))
    for pattern in (patterns.PRICE_AGAINST, patterns.PRICE_FOR, patterns.LEVEL):
        sentence = pattern.sub(" ", sentence)
    return patterns.USUAL.sub(" ", sentence) if sense else sentence


def _distance(sentence: str, claims: set[Claim]) -> None:
    far, near = patterns.FAR.search(sentence), patterns.NEAR.search(sentence)
    if near and patterns.negated(sentence, near):
        far, near = near, None
    elif far and patterns.negated(sentence, far):
        far, near = None, far
    if far or near:
        match = patterns.KM.search(sentence)
        value = f"{match[1]} km" if match else None
        claims.add(Claim("distance", "against" if far else "for", value))


def _popularity(sentence: str, words: _Words, claims: set[Claim]) -> str:
    few, many = patterns.FEW.search(sentence), patterns.MANY.search(sentence)
    if not (few or many):
        return sentence
    band = words.bands.search(sentence) if words.bands else None
    value = words.values["popularity"][band[0].lower()] if band else None
    claims.add(Claim("popularity", "against" if few else "for", value))
    sentence = patterns.MANY.sub(" ", patterns.FEW.sub(" ", sentence))
    return words.bands.sub(" ", sentence) if words.bands else sentence


class _Taste(NamedTuple):
    start: int
    end: int
    direction: Direction


def _taste(sentence: str, words: _Words, claims: set[Claim]) -> None:
    """Reads claims on tastes: joins values and stances within each clause of a sentence."""
    pending: list[tuple[str, str]] = []
    for clause in patterns.SPLIT.split(sentence):
        tastes = list(_tastes(clause))
        mentions = [
            (match.start(), match.end(), attribute, words.values[attribute][match[0].lower()])
            for attribute, pattern in words.taste.items()
            for match in pattern.finditer(clause)
        ]
        if tastes and not mentions and pending and patterns.ANAPHOR.search(clause):
            claims.update(Claim(name, tastes[0].direction, value) for name, value in pending)
        if tastes:
            for start, end, attribute, value in mentions:
                # Distance in characters between mention and stance; the nearest stance applies.
                gaps = [max(taste.start - end, start - taste.end, 0) for taste in tastes]
                nearest = tastes[gaps.index(min(gaps))]
                claims.add(Claim(attribute, nearest.direction, value))
        # Only mentions without a stance can be referred back to by the next clause.
        pending = [] if tastes else [(name, value) for *_, name, value in mentions]


def _tastes(clause: str) -> Iterable[_Taste]:
    for match in patterns.AVERSE.finditer(clause):
        negated = match[0] != "less happy" and patterns.negated(clause, match)
        yield _Taste(match.start(), match.end(), "for" if negated else "against")
    for match in patterns.TASTE.finditer(clause):
        negated = patterns.negated(clause, match) or bool(_NEGATED_TASTE.match(match[0]))
        yield _Taste(match.start(), match.end(), "against" if negated else "for")


# Vocabulary -----------------------------------------------------------------------------------


class _Words(NamedTuple):
    """Compiled vocabulary.

    Attributes:
      values: value by attribute and word in lower case.
      taste: pattern of the words of each attribute, for tastes and popularity.
      kinds: value by noun, for the sequence.
      before: pattern of a mention of the last visit and its noun.
      bands: pattern of the popularity bands.
    """

    values: dict[str, dict[str, str]]
    taste: dict[str, re.Pattern[str]]
    kinds: dict[str, str]
    before: re.Pattern[str] | None
    bands: re.Pattern[str] | None


_Frozen = tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...]


def _frozen(vocabulary: Vocabulary) -> _Frozen:
    def entries(
        values: Iterable[object] | Mapping[str, Iterable[str]],
    ) -> tuple[tuple[str, tuple[str, ...]], ...]:
        if isinstance(values, Mapping):
            return tuple((str(value), tuple(map(str, words))) for value, words in values.items())
        return tuple((str(value), ()) for value in values)

    # Hashable, as the key of the cache of compiled vocabularies.
    return tuple((attribute, entries(values)) for attribute, values in vocabulary.items())


@functools.lru_cache(maxsize=32)
def _words(vocabulary: _Frozen) -> _Words:
    values: dict[str, dict[str, str]] = {}
    taste, kinds = {}, {}
    for attribute, entries in vocabulary:
        value_of = {word: value for value, words in entries for word in (value, *words)}
        if attribute in ("kind", "sequence"):
            # Nouns are claimed in the plural as well: "you like bars".
            value_of |= {plural(word): value for word, value in value_of.items()}
        values[attribute] = {word.lower(): value for word, value in value_of.items()}
        if attribute == "sequence":
            kinds = values[attribute]
        if value_of and (attribute not in _OWN_WORDS or attribute == "popularity"):
            taste[attribute] = _pattern(value_of)
    before = None
    if kinds:
        # The longest first, as an alternation takes the first that matches.
        nouns = "|".join(re.escape(word) for word in sorted(kinds, key=len, reverse=True))
        before = re.compile(
            r"(?:\b(?:after|coming from|come from|been (?:to|at)|been in|went to|was (?:to|at|in)|"
            rf"visited|visit to|on))(?: visiting| a visit to| going to)? (?:an?|the|another) "
            rf"(?:[a-z-]+ )?(?P<noun>{nouns})(?![\w-])"
        )
    return _Words(values, taste, kinds, before, taste.get("popularity"))


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Pattern of any of the words; words in lower case match exactly, others ignoring case."""
    alternatives = [
        re.escape(word) if word == word.lower() else f"(?i:{re.escape(word)})"
        for word in sorted(words, key=len, reverse=True)
    ]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(alternatives)})(?![\w-])")
