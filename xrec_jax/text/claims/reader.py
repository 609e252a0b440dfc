r"""The reasons that a free text claims about an item: read from its wording alone.

Works on generated and on looser texts. It knows a vocabulary (which attributes there are, and their
values) and the grammar below, never the item, the user, or which reasons are true. Reading is per
sentence; a claim needs two things: a *mention* of a value, and a *stance* that makes it a reason.

    text      = sentence*
    sentence  = part (", and" part | ", but" part | ", so" part | ";" part ...)*
    claim     = mention stance | stance mention        its direction is that of the stance

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
*   Description claims nothing: "X is an artsy cafe", "you have also had Thai food at X", "your
    visits to bars include X" have no stance. A stance of somebody else ("visitors love", "people
    who like") or under an "if" is none; what an apposition ("X, a quiet cafe, ...") mentions is
    left out.
*   "its genre (comedy) speaks for it" is read for any attribute, in the vocabulary or not.
*   Words with a capital are names where the vocabulary writes them without one, so that a place
    called The Quiet Bar is not a bar; "Thai" is read in either case.
*   `sense` keeps which way a price is off, as cheaper and pricier are both against.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from xrec_jax.text.claims import patterns
from xrec_jax.text.synthetic.grammar import plural

Direction = Literal["for", "against"]
# Attribute to its values; a value may come with further words that say it.
Vocabulary = Mapping[str, Iterable[object] | Mapping[str, Iterable[str]]]

# Attributes whose direction is told by words of their own; all others are matters of taste.
_OWN_WORDS = ("price", "distance", "popularity", "sequence")


class Claim(NamedTuple):
    """A reason that a text gives.

    Attributes:
      attribute: what it is about.
      direction: "for" or "against".
      value: as the vocabulary writes it; None where the text names none.
      sense: "cheaper" or "pricier" where a price is off, else None.
    """

    attribute: str
    direction: Direction
    value: str | None = None
    sense: str | None = None


def read_claims(text: str, vocabulary: Vocabulary) -> frozenset[Claim]:
    """The reasons that a text claims.

    Args:
      text: an explanation, in English.
      vocabulary: attribute to its values, or to a mapping of values to other words for them. "kind"
        and "sequence" hold nouns in the singular; "price", "distance" and "popularity" are read
        whether they are listed or not, values of price as numbers.

    Returns:
      Each claim once. A text that says both directions of one thing claims both.
    """
    words = _words(_frozen(vocabulary))
    found: set[Claim] = set()
    for sentence in _sentences(text):
        quoted = list(_QUOTED.finditer(sentence))
        for match in quoted:
            stance: Direction = "for" if match["stance"] in _QUOTED_FOR else "against"
            attribute = match["attribute"].replace(" ", "_")
            off = patterns.SENSE.search(sentence) if attribute == "price" else None
            found.add(Claim(attribute, stance, match["value"], off[0] if off else None))
        if quoted:
            continue
        plain = _plain(sentence)
        rest = _sequence(plain, words, found)
        rest = _price(rest, found)
        _distance(rest, found)
        rest = _popularity(rest, words, found)
        _taste(rest, words, found)
    return frozenset(found)


# Sentences ------------------------------------------------------------------------------------

# A full stop ends a sentence where a capital follows; "1.2 km" and "St. Mary" stay whole enough.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])|\n+")
_MARKER = re.compile(
    r"^(?:a word of caution|one thing against it|another point against it|against|for|"
    r"[a-z ]{0,30}(?:drawback|downside|plus|pro|con))s?: +"
)


def _sentences(text: str) -> list[str]:
    return [part.strip() for part in _END.split(text.replace("\u2019", "'")) if part.strip()]


def _plain(sentence: str) -> str:
    """A sentence without what claims nothing: brackets, appositions, other people's tastes."""
    text = re.sub(r"\s*\([^()]*\)", "", sentence)
    first, _, rest = text.partition(" ")
    # "Quiet places ..." starts with a word, "Quiet Bar is ..." with a name.
    if first[:1].isupper() and not re.match(r"[\"']?[A-Z]", rest):
        text = f"{first[:1].lower()}{first[1:]} {rest}".rstrip()
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


def _sequence(sentence: str, words: _Words, found: set[Claim]) -> str:
    """Reads what follows on what; returns the sentence without these mentions."""
    mentions = list(words.before.finditer(sentence)) if words.before else []
    if not words.before or not mentions:
        return sentence
    # Without a stance the mention goes too: "you would enjoy it after a bar" claims no bar.
    rest = words.before.sub(" ", sentence)
    against, for_ = patterns.REPEATS.search(sentence), patterns.FOLLOWS.search(sentence)
    if not (against or for_):
        return rest
    direction: Direction = "against" if against else "for"
    for match in mentions:
        found.add(Claim("sequence", direction, words.kinds[match["noun"].lower()]))
    return patterns.FOLLOWS.sub(" ", patterns.REPEATS.sub(" ", rest))


def _price(sentence: str, found: set[Claim]) -> str:
    """Reads the price; returns the sentence without it, so that "suits" is not read again."""
    levels = [match[1] for match in patterns.LEVEL.finditer(sentence)]
    sense = None
    for name, pattern in (("pricier", patterns.PRICIER), ("cheaper", patterns.CHEAPER)):
        match = pattern.search(sentence)
        if match and patterns.USUAL.search(sentence, match.end()):
            sense = sense if patterns.negated(sentence, match) else name
    fits = patterns.PRICE_FOR.search(sentence) if levels or _MONEY.search(sentence) else None
    misses = patterns.PRICE_AGAINST.search(sentence)
    direction: Direction | None = "against" if sense or misses else None
    if fits:
        direction = "against" if patterns.negated(sentence, fits) else "for"
    if direction:
        for value in levels or [None]:
            off = sense if direction == "against" else None
            found.add(Claim("price", direction, value, off))
    for pattern in (patterns.PRICE_AGAINST, patterns.PRICE_FOR, patterns.LEVEL):
        sentence = pattern.sub(" ", sentence)
    return patterns.USUAL.sub(" ", sentence) if sense else sentence


def _distance(sentence: str, found: set[Claim]) -> None:
    far, near = patterns.FAR.search(sentence), patterns.NEAR.search(sentence)
    if near and patterns.negated(sentence, near):
        far, near = near, None
    elif far and patterns.negated(sentence, far):
        far, near = None, far
    if far or near:
        match = patterns.KM.search(sentence)
        value = f"{match[1]} km" if match else None
        found.add(Claim("distance", "against" if far else "for", value))


def _popularity(sentence: str, words: _Words, found: set[Claim]) -> str:
    few, many = patterns.FEW.search(sentence), patterns.MANY.search(sentence)
    if not (few or many):
        return sentence
    band = words.bands.search(sentence) if words.bands else None
    value = words.values["popularity"][band[0].lower()] if band else None
    found.add(Claim("popularity", "against" if few else "for", value))
    sentence = patterns.MANY.sub(" ", patterns.FEW.sub(" ", sentence))
    return words.bands.sub(" ", sentence) if words.bands else sentence


class _Taste(NamedTuple):
    start: int
    end: int
    direction: Direction


def _taste(sentence: str, words: _Words, found: set[Claim]) -> None:
    """Joins values and tastes within each part of a sentence."""
    before: list[tuple[str, str]] = []
    for part in patterns.SPLIT.split(sentence):
        tastes = list(_tastes(part))
        mentions = [
            (match.start(), match.end(), attribute, words.values[attribute][match[0].lower()])
            for attribute, pattern in words.taste.items()
            for match in pattern.finditer(part)
        ]
        if tastes and not mentions and before and patterns.ANAPHOR.search(part):
            found.update(Claim(name, tastes[0].direction, value) for name, value in before)
        if tastes:
            for start, end, attribute, value in mentions:
                gaps = [max(taste.start - end, start - taste.end, 0) for taste in tastes]
                nearest = tastes[gaps.index(min(gaps))]
                found.add(Claim(attribute, nearest.direction, value))
        # What is claimed already is not pointed back to.
        before = [] if tastes else [(name, value) for *_, name, value in mentions]


def _tastes(part: str) -> Iterable[_Taste]:
    for match in patterns.AVERSE.finditer(part):
        negated = match[0] != "less happy" and patterns.negated(part, match)
        yield _Taste(match.start(), match.end(), "for" if negated else "against")
    for match in patterns.TASTE.finditer(part):
        negated = patterns.negated(part, match) or bool(_NEGATED_TASTE.match(match[0]))
        yield _Taste(match.start(), match.end(), "against" if negated else "for")


# Vocabulary -----------------------------------------------------------------------------------


class _Words(NamedTuple):
    """Compiled vocabulary.

    Attributes:
      values: attribute to words in lower case to the value they say.
      taste: attribute to the pattern of its words, for matters of taste and popularity.
      kinds: nouns of a sequence to their value.
      before: the last visit and its noun.
      bands: of popularity.
    """

    values: dict[str, dict[str, str]]
    taste: dict[str, re.Pattern[str]]
    kinds: dict[str, str]
    before: re.Pattern[str] | None
    bands: re.Pattern[str] | None


_Frozen = tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...]


def _frozen(vocabulary: Vocabulary) -> _Frozen:
    def entries(values):
        if isinstance(values, Mapping):
            return tuple((str(value), tuple(map(str, said))) for value, said in values.items())
        return tuple((str(value), ()) for value in values)

    return tuple((attribute, entries(values)) for attribute, values in vocabulary.items())


@functools.lru_cache(maxsize=32)
def _words(vocabulary: _Frozen) -> _Words:
    values: dict[str, dict[str, str]] = {}
    taste, kinds = {}, {}
    for attribute, entries in vocabulary:
        said = {word: value for value, words in entries for word in (value, *words)}
        if attribute in ("kind", "sequence"):
            said |= {plural(word): value for word, value in said.items()}
        values[attribute] = {word.lower(): value for word, value in said.items()}
        if attribute == "sequence":
            kinds = values[attribute]
        if said and (attribute not in _OWN_WORDS or attribute == "popularity"):
            taste[attribute] = _pattern(said)
    before = None
    if kinds:
        nouns = "|".join(re.escape(word) for word in sorted(kinds, key=len, reverse=True))
        before = re.compile(
            r"(?:\b(?:after|coming from|come from|been (?:to|at)|been in|went to|was (?:to|at|in)|"
            rf"visited|visit to|on))(?: visiting| a visit to| going to)? (?:an?|the|another) "
            rf"(?:[a-z-]+ )?(?P<noun>{nouns})(?![\w-])"
        )
    return _Words(values, taste, kinds, before, taste.get("popularity"))


def _pattern(words: Iterable[str]) -> re.Pattern[str]:
    """Any of the words; those in lower case only as such, others in either case."""
    alternatives = [
        re.escape(word) if word == word.lower() else f"(?i:{re.escape(word)})"
        for word in sorted(words, key=len, reverse=True)
    ]
    return re.compile(rf"(?<![\w-])(?:{'|'.join(alternatives)})(?![\w-])")
