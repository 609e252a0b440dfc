"""Generator of explanations from planted reasons: true, varied, about sixty words, second person.

States every planted reason, those against as a caveat, and claims no other: apart from the values
of the reasons a text contains only names of places, districts and counts.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import keyed_random
from xrec_jax.text.synthetic import wording
from xrec_jax.text.synthetic.grammar import count_of, listing, plural, sentence, with_article
from xrec_jax.text.words import word_count

_ATTEMPTS = 40


class Reason(Protocol):
    """One attribute in favour of or against an item."""

    @property
    def attribute(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def contribution(self) -> float: ...
    @property
    def phrase(self) -> str: ...


class Reasons(Protocol):
    """Reasons for and against an item, each strongest first."""

    @property
    def for_(self) -> Sequence[Reason]: ...
    @property
    def against(self) -> Sequence[Reason]: ...


@dataclasses.dataclass(frozen=True)
class Length:
    """Target length of an explanation in words: triangular between `low` and `high`.

    Attributes:
      low: least target.
      mean: mode of the targets, about their mean.
      high: largest target.
      most: upper bound, exceeded only if the reasons themselves take more.

    Raises:
      UserError: if they are not in this order.
    """

    low: int = 53
    mean: int = 60
    high: int = 67
    most: int = 70

    def __post_init__(self):
        if not 1 <= self.low <= self.mean <= self.high <= self.most:
            raise UserError(f"a length needs 1 <= low <= mean <= high <= most, got {self}")


def explain(
    reasons: Reasons,
    *,
    item: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]] = (),
    user: Mapping[str, Any] | None = None,
    key: object = "",
    seed: int = 0,
    title: str = "name",
    length: Length | None = None,
    named: bool = True,
) -> str:
    """Writes an explanation.

    Args:
      reasons: the true reasons; for attributes outside of the planted world the phrase is quoted.
      item: row of the item: its title, and optionally `district`.
      history: item rows, oldest first; those that share the value of a reason are cited.
      user: row of the user; only `home_district` is used.
      key: identity of the pair (user and item ids); with the title it keys the random choices.
      seed: random seed.
      title: title column.
      length: target and bound.
      named: mention places by name; otherwise the item is "this place" and no history entry is
        cited, for models too small to copy names.

    Returns:
      One paragraph; the same for the same arguments.

    Raises:
      UserError: if the item or a history entry has no title.
    """
    length = length or Length()
    for row in (item, *history):
        if not row.get(title):
            raise UserError(f"an explanation needs the name of every item: no {title!r} in a row")
    rng = keyed_random("explanation", seed, key, item[title])
    # A length for each pair: one fixed length would be learned as a rule.
    aim = rng.triangular(length.low, length.high, length.mean)
    best, best_rank = "", (True, float("inf"))
    for _ in range(_ATTEMPTS):
        text = _Draft(rng, reasons, item, history, user or {}, title, named).write(aim)
        words = word_count(text)
        # A text within the bound always wins; then the nearest to the target.
        rank = (words > length.most, abs(words - aim))
        if rank < best_rank:
            best, best_rank = text, rank
        if best_rank <= (False, 1.5):
            break
    return best


class _Draft:
    """One attempt at a text: ordered slots, optional ones added while they fit the target."""

    def __init__(
        self,
        rng: random.Random,
        reasons: Reasons,
        item: Mapping[str, Any],
        history: Sequence[Mapping[str, Any]],
        user: Mapping[str, Any],
        title: str,
        named: bool,
    ):
        self.rng, self.reasons, self.item, self.user = rng, reasons, item, user
        self.history, self.title = history, title
        self.named, self.name = named, str(item[title]) if named else "this place"
        self.used: set[str] = set()

    def write(self, aim: float) -> str:
        for_, against = self.reasons.for_, self.reasons.against
        # Slots by position (paragraph order, order within); `must` holds the required ones.
        must: dict[tuple[int, int], _Slot] = {}
        evidence: list[tuple[tuple[int, int], _Slot]] = []
        # With more reasons the text is full without an opener.
        if len(for_) + len(against) < 5:
            must[0, 0] = self.opener()
        # Reasons for come first, each perhaps with evidence from the history behind it.
        for place, reason in enumerate(for_):
            joined = self.fresh(wording.CONNECTIVES) if place and self.rng.random() < 0.6 else ""
            must[1 + place, 0] = self.clause(reason, wording.FOR, wording.OTHER_FOR, joined)
            if cited := self.evidence(reason):
                evidence.append(((1 + place, 1), cited))
        # Reasons against follow, introduced as a caveat.
        for place, reason in enumerate(against):
            markers = wording.CAVEATS if place == 0 else wording.CAVEATS_AGAIN
            marker = self.fresh(markers) if for_ or place else ""
            slot = self.clause(reason, wording.AGAINST, wording.OTHER_AGAINST, marker)
            # Places from 20 on are behind all reasons for; closing sentences have 40 and 50.
            must[20 + place, 0] = slot
        self.rng.shuffle(evidence)
        # One citation is worth more than a filler, further ones are worth less.
        optional = [*evidence[:1], *self.fillers(has_evidence=bool(evidence)), *evidence[1:]]
        # Fill up with optional sentences, in order of preference, as long as they fit.
        words = sum(slot.words() for slot in must.values())
        chosen = dict(must)
        for where, slot in optional:
            if where not in chosen and words + slot.words() <= aim + 2:
                chosen[where] = slot
                words += slot.words()
        return self.join([chosen[where] for where in sorted(chosen)])

    def fresh(self, texts: Sequence[str]) -> str:
        """A random one of `texts` that this draft has not used yet."""
        text = self.rng.choice([text for text in texts if text not in self.used])
        self.used.add(text)
        return text

    def opener(self) -> _Slot:
        if not self.reasons.for_:
            return _Slot(self.rng.choice(wording.OPENERS_WEAK), {"name": self.name})
        good = not self.reasons.against
        texts = wording.OPENERS + (wording.OPENERS_STRONG if good else ())
        return _Slot(self.rng.choice(texts), {"name": self.name})

    def clause(
        self, reason: Reason, known: Mapping[str, Sequence[str]], other: Sequence[str], before: str
    ) -> _Slot:
        value, last = str(reason.value), ""
        may_cite = self.named and reason.attribute == "sequence" and self.history
        if may_cite and self.rng.random() < 0.75:
            visited = self.history[-1]
            if str(visited.get("kind")) == value:
                last = f" ({visited[self.title]})"
        values = {
            "attribute": reason.attribute.replace("_", " "),
            "value": value,
            "a_value": with_article(value),
            "plural": plural(value),
            "last": last,
            "than": "pricier" if "pricier" in reason.phrase else "cheaper",
            "phrase": reason.phrase,
        }
        texts = known.get(reason.attribute, other)
        return _Slot(before + self.rng.choice(texts), values, names_others=bool(last))

    def evidence(self, reason: Reason) -> _Slot | None:
        if not self.named or reason.attribute not in wording.EVIDENCE:
            return None
        same = [
            str(row[self.title])
            for row in self.history
            if str(row.get(reason.attribute)) == reason.value and row[self.title] != self.name
        ]
        if not same:
            return None
        cited = same[-self.rng.choice((1, 2, 2, 3)) :]
        single = len(cited) == 1
        values = {
            "value": reason.value,
            "plural": plural(reason.value),
            "cited": listing(cited),
            "be": "is" if single else "are",
            "they": "it is" if single else "they are",
            "serve": "serves" if single else "serve",
        }
        text = self.rng.choice(wording.EVIDENCE[reason.attribute])
        return _Slot(text, values, names_others=True)

    def fillers(self, *, has_evidence: bool) -> list[tuple[tuple[int, int], _Slot]]:
        """Optional sentences besides the reasons, in the order in which they are tried."""
        pick, for_, against = self.rng.choice, self.reasons.for_, self.reasons.against
        slots = [((50, 0), _Slot(pick(wording.UNKNOWN_PART), {}))]
        if district := self.item.get("district"):
            home = self.user.get("home_district")
            texts: Sequence[str] = wording.WHERE
            if home and self.rng.random() < 0.5:
                texts = wording.WHERE_HOME
            if home == district:
                texts = wording.SAME_DISTRICT
            values = {"district": str(district), "home": str(home)}
            slots.append(((0, 3), _Slot(pick(texts), values)))
        if for_ and not against:
            slots.append(((19, 0), _Slot(pick(wording.NO_AGAINST), {})))
        if self.history:
            visits = count_of(len(self.history), "earlier visit")
            slots.append(((0, 2), _Slot(pick(wording.COUNT), {"visits": visits})))
        self.rng.shuffle(slots)
        closing = ((40, 0), _Slot(pick(self.closers()), {}))
        slots.insert(self.rng.randrange(2), closing)
        if self.history and self.named:
            recent = [str(row[self.title]) for row in self.history[-pick((1, 2, 3)) :]]
            texts = wording.HISTORY_ONE if len(recent) == 1 else wording.HISTORY
            slot = _Slot(pick(texts), {"recent": listing(recent)}, names_others=True)
            # A text without evidence should still name an entry of the history if there is room.
            place = len(slots) if has_evidence else 0
            slots.insert(place, ((0, 1), slot))
        return slots

    def closers(self) -> Sequence[str]:
        for_, against = self.reasons.for_, self.reasons.against
        if not for_:
            return wording.CLOSERS_WEAK
        if not against:
            return wording.CLOSERS_FOR
        balance = sum(reason.contribution for reason in (*for_, *against))
        return wording.CLOSERS_MIXED if balance > 0 else wording.CLOSERS_WEAK

    def join(self, slots: Sequence[_Slot]) -> str:
        """Fills the placeholders; "it" only if the sentence before mentions no other place."""
        clear, named = True, False
        sentences: list[str] = []
        for slot in slots:
            names: tuple[str, ...] = ("it", "it", "it", "this place") if clear else ("this place",)
            if not named or not clear:
                names = (self.name,) if not named else (self.name, "this place")
            sentences.append(sentence(slot.fill(self.rng.choice(names))))
            clear = not slot.names_others
            named = named or self.name in sentences[-1]
        return " ".join(sentences)


@dataclasses.dataclass(frozen=True)
class _Slot:
    """A sentence with placeholders.

    Attributes:
      text: text with placeholders.
      values: values of the placeholders, except `it`.
      names_others: true if it names other places, so that "it" would be ambiguous after it.
    """

    text: str
    values: Mapping[str, str]
    names_others: bool = False

    def fill(self, it: str) -> str:
        return self.text.format(it=it, **self.values)

    def words(self) -> int:
        return word_count(self.fill("it"))


def mentioned_reasons(text: str, candidates: Iterable[Reason]) -> list[Reason]:
    """Selects the `candidates` whose value a text mentions in the form of its attribute.

    A kind is recognised by its plural, a sequence by article and kind ("after a bar"), a price by
    its level, all others by the value itself; the direction, for or against, is ignored.
    """
    return [reason for reason in candidates if _cue(reason).search(text)]


def _cue(reason: Reason) -> re.Pattern[str]:
    value = str(reason.value)
    cue = {
        "kind": plural(value),
        "sequence": with_article(value),
        "price": f"level {value}|level of {value}",
    }.get(reason.attribute)
    if cue is None:
        cue = re.escape(value)
    return re.compile(rf"(?<![\w.-])(?:{cue})(?![\w-]|\.\d)", re.IGNORECASE)
