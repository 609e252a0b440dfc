"""Explanations written from planted reasons: true, varied, about sixty words, in the second person.

Says every reason that was planted, those against as an honest caveat, and claims no other: apart
from the values of the reasons a text holds only names of places, districts and counts.
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
    """One attribute that spoke for or against an item."""

    @property
    def attribute(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def contribution(self) -> float: ...
    @property
    def phrase(self) -> str: ...


class Reasons(Protocol):
    """Why a user may and may not want an item, each strongest first."""

    @property
    def for_(self) -> Sequence[Reason]: ...
    @property
    def against(self) -> Sequence[Reason]: ...


@dataclasses.dataclass(frozen=True)
class Length:
    """How long an explanation should be, in words.

    Attributes:
      low: the drawn aim is at least this.
      mean: about the mean.
      high: the drawn aim is at most this.
      most: never more, unless the reasons themselves take more.

    Raises:
      UserError: where they do not stand in this order.
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
      reasons: what is true; attributes of the planted world or others, whose phrase is quoted.
      item: row of the item: its title, and `district` where it may be said.
      history: item rows, oldest first; those that share the value of a reason are cited.
      user: row of the user; `home_district` where it may be said. Nothing else of it is used.
      key: what tells this pair from others (user and item ids); with the title it keys all draws.
      seed: of the draws.
      title: the column of an item's name.
      length: aim and bound.
      named: whether places are named; without names the item is "this place" and no entry of the
        history is cited, which suits models too small to copy a name.

    Returns:
      One paragraph; the same for the same arguments.

    Raises:
      UserError: where the item or a history entry has no title.
    """
    length = length or Length()
    for row in (item, *history):
        if not row.get(title):
            raise UserError(f"an explanation needs the name of every item: no {title!r} in a row")
    rng = keyed_random("explanation", seed, key, item[title])
    aim = rng.triangular(length.low, length.high, length.mean)
    best, best_rank = "", (True, float("inf"))
    for _ in range(_ATTEMPTS):
        text = _Draft(rng, reasons, item, history, user or {}, title, named).write(aim)
        words = word_count(text)
        # Too long is worst; among those that are not, the nearest to the aim.
        rank = (words > length.most, abs(words - aim))
        if rank < best_rank:
            best, best_rank = text, rank
        if best_rank <= (False, 1.5):
            break
    return best


class _Draft:
    """One attempt at a text: slots in order, some optional, filled while they fit the aim."""

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
        self.said: set[str] = set()

    def write(self, aim: float) -> str:
        for_, against = self.reasons.for_, self.reasons.against
        # (sentence with gaps, its values, whether other places are named in it)
        must: dict[tuple[int, int], _Slot] = {}
        evidence: list[tuple[tuple[int, int], _Slot]] = []
        if len(for_) + len(against) < 5:
            must[0, 0] = self.opener()
        for place, reason in enumerate(for_):
            joined = self.fresh(wording.CONNECTIVES) if place and self.rng.random() < 0.6 else ""
            must[1 + place, 0] = self.clause(reason, wording.FOR, wording.OTHER_FOR, joined)
            if cited := self.evidence(reason):
                evidence.append(((1 + place, 1), cited))
        for place, reason in enumerate(against):
            markers = wording.CAVEATS if place == 0 else wording.CAVEATS_AGAIN
            marker = self.fresh(markers) if for_ or place else ""
            slot = self.clause(reason, wording.AGAINST, wording.OTHER_AGAINST, marker)
            must[20 + place, 0] = slot
        self.rng.shuffle(evidence)
        may = [*evidence[:1], *self.fillers(has_evidence=bool(evidence)), *evidence[1:]]
        words = sum(slot.words() for slot in must.values())
        chosen = dict(must)
        for where, slot in may:
            if where not in chosen and words + slot.words() <= aim + 2:
                chosen[where] = slot
                words += slot.words()
        return self.join([chosen[where] for where in sorted(chosen)])

    def fresh(self, texts: Sequence[str]) -> str:
        """One of `texts` that this draft has not used yet."""
        text = self.rng.choice([text for text in texts if text not in self.said])
        self.said.add(text)
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
        told = self.named and reason.attribute == "sequence" and self.history
        if told and self.rng.random() < 0.75:
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
        one = len(cited) == 1
        values = {
            "value": reason.value,
            "plural": plural(reason.value),
            "cited": listing(cited),
            "be": "is" if one else "are",
            "they": "it is" if one else "they are",
            "serve": "serves" if one else "serve",
        }
        text = self.rng.choice(wording.EVIDENCE[reason.attribute])
        return _Slot(text, values, names_others=True)

    def fillers(self, *, has_evidence: bool) -> list[tuple[tuple[int, int], _Slot]]:
        """What may be said beside the reasons, in the order in which it is tried."""
        pick, for_, against = self.rng.choice, self.reasons.for_, self.reasons.against
        found = [((50, 0), _Slot(pick(wording.UNKNOWN_PART), {}))]
        if district := self.item.get("district"):
            home = self.user.get("home_district")
            texts: Sequence[str] = wording.WHERE
            if home and self.rng.random() < 0.5:
                texts = wording.WHERE_HOME
            if home == district:
                texts = wording.SAME_DISTRICT
            values = {"district": str(district), "home": str(home)}
            found.append(((0, 3), _Slot(pick(texts), values)))
        if for_ and not against:
            found.append(((19, 0), _Slot(pick(wording.NO_AGAINST), {})))
        if self.history:
            visits = count_of(len(self.history), "earlier visit")
            found.append(((0, 2), _Slot(pick(wording.COUNT), {"visits": visits})))
        self.rng.shuffle(found)
        closing = ((40, 0), _Slot(pick(self.closers()), {}))
        found.insert(self.rng.randrange(2), closing)
        if self.history and self.named:
            recent = [str(row[self.title]) for row in self.history[-pick((1, 2, 3)) :]]
            texts = wording.HISTORY_ONE if len(recent) == 1 else wording.HISTORY
            slot = _Slot(pick(texts), {"recent": listing(recent)}, names_others=True)
            # Some entry of the history is named wherever there is room.
            place = len(found) if has_evidence else 0
            found.insert(place, ((0, 1), slot))
        return found

    def closers(self) -> Sequence[str]:
        for_, against = self.reasons.for_, self.reasons.against
        if not for_:
            return wording.CLOSERS_WEAK
        if not against:
            return wording.CLOSERS_FOR
        balance = sum(reason.contribution for reason in (*for_, *against))
        return wording.CLOSERS_MIXED if balance > 0 else wording.CLOSERS_WEAK

    def join(self, slots: Sequence[_Slot]) -> str:
        """Fills the gaps; "it" only where the sentence before speaks of no other place."""
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
    """A sentence with gaps.

    Attributes:
      text: with gaps.
      values: of the gaps, all but `it`.
      names_others: whether it names other places, so that "it" would be unclear after it.
    """

    text: str
    values: Mapping[str, str]
    names_others: bool = False

    def fill(self, it: str) -> str:
        return self.text.format(it=it, **self.values)

    def words(self) -> int:
        return word_count(self.fill("it"))


def mentioned_reasons(text: str, candidates: Iterable[Reason]) -> list[Reason]:
    """Those of `candidates` whose value a text names in the way of its attribute.

    A kind is found by its plural, a sequence by article and kind ("after a bar"), a price by its
    level, all others by the value itself; the direction, for or against, is not told apart.
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
