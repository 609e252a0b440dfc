"""Explanations from planted reasons: true, whole, of the right length, in good grammar."""

import collections
import functools
import re
import string

import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.data.world import reasons as planted
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.config import WorldConfig
from xrec_jax.data.world.world import generate
from xrec_jax.text.synthetic import wording
from xrec_jax.text.synthetic.explanations import Length, explain, mentioned_reasons

PLURALS = {kind: planted._PLURALS.get(kind, kind + "s") for kind in words.KINDS}
Reason = planted.Reason


@functools.cache
def world():
    return generate(WorldConfig(**tiny.WORLD))


@functools.cache
def written():
    """(reasons, item, history, text) of 840 visits and of 200 random pairs, most of them bad."""
    made = world()
    items, users = made.dataset.items.to_dicts(), made.dataset.users.to_dicts()
    events = made.dataset.interactions
    histories, cases = collections.defaultdict(list), []
    for event, reasons in zip(events.item.tolist(), made.reasons_for_visits(events), strict=True):
        cases.append((reasons, list(histories[reasons.user])))
        histories[reasons.user].append(items[event])
    rng = np.random.default_rng(1)
    pairs = rng.integers(0, (75, 61), (200, 2))
    for reasons in made.reasons(pairs[:, 0], pairs[:, 1]):
        cases.append((reasons, histories[reasons.user][:-1]))
    return [
        (
            reasons,
            items[reasons.item],
            history,
            explain(
                reasons,
                item=items[reasons.item],
                history=history,
                user=users[reasons.user],
                key=(reasons.user, reasons.item),
            ),
        )
        for reasons, history in cases
    ]


def without_names(text):
    for name in sorted(world().dataset.items["name"].to_list(), key=len, reverse=True):
        text = text.replace(name, "X")
    return text


def test_without_names_nothing_is_named_and_every_reason_is_said():
    for reasons, item, history, _ in written()[:200]:
        text = explain(
            reasons, item=item, history=history, user={"home_district": "Harbour"}, named=False
        )
        names = {row["name"] for row in (item, *history)}
        assert not [name for name in names if name in text]
        said = mentioned_reasons(text, (*reasons.for_, *reasons.against))
        assert said == [*reasons.for_, *reasons.against]
        assert "this place" in text.lower()


def test_lengths():
    counts = np.array([len(text.split()) for *_, text in written()])
    assert len(counts) > 1000
    assert 58 <= counts.mean() <= 62
    assert counts.min() >= 50 and counts.max() <= 70
    for reasons, _, _, text in written():
        if len(reasons.for_) == 3 and len(reasons.against) == 2:
            assert len(text.split()) <= 70


def test_every_planted_reason_is_said():
    for reasons, item, _, text in written():
        assert item["name"] in text
        for reason in (*reasons.for_, *reasons.against):
            value = PLURALS[reason.value] if reason.attribute == "kind" else reason.value
            assert re.search(rf"\b{re.escape(value)}\b", text, re.IGNORECASE), (reason, text)
        said = mentioned_reasons(text, [*reasons.for_, *reasons.against])
        assert said == [*reasons.for_, *reasons.against]


def test_no_unplanted_attribute_is_claimed():
    for reasons, _, _, text in written():
        plain = without_names(text)
        told = {(r.attribute, r.value) for r in (*reasons.for_, *reasons.against)}
        for attribute, values in {
            "cuisine": words.CUISINES[1:],
            "mood": words.MOODS,
            "popularity": words.POPULARITY_BANDS,
        }.items():
            for value in values:
                if (attribute, value) not in told:
                    assert not re.search(rf"\b{value}\b", plain, re.IGNORECASE), (value, text)
        for kind, many in PLURALS.items():
            if ("kind", kind) not in told:
                assert not re.search(rf"\b{many}\b", plain, re.IGNORECASE), (kind, text)
            if ("sequence", kind) not in told:
                assert not re.search(rf"\b{kind}\b", plain, re.IGNORECASE), (kind, text)
        attributes = {attribute for attribute, _ in told}
        assert ("price" in attributes) == bool(re.search(r"\b(price|prices|pay|budget)\b", plain))
        assert ("distance" in attributes) == bool(re.search(r"\bkm\b", plain))
        assert ("popularity" in attributes) == (
            "popular" in plain or "people" in plain or "more visitors" in plain
        )
        every = [
            *(Reason("kind", kind, 1.0, "") for kind in words.KINDS),
            *(Reason("sequence", kind, 1.0, "") for kind in words.KINDS),
            *(Reason("cuisine", cuisine, 1.0, "") for cuisine in words.CUISINES[1:]),
            *(Reason("mood", mood, 1.0, "") for mood in words.MOODS),
            *(Reason("price", str(price), 1.0, "") for price in words.PRICES),
            *(Reason("popularity", band, 1.0, "") for band in words.POPULARITY_BANDS),
        ]
        found = {(r.attribute, r.value) for r in mentioned_reasons(plain, every)}
        assert found == {pair for pair in told if pair[0] != "distance"}


def test_direction_is_told():
    caveats = re.compile("|".join(map(re.escape, wording.CAVEATS)), re.IGNORECASE)
    for reasons, _, _, text in written():
        # Reasons for stand before the caveat, reasons against from it on.
        assert len(caveats.findall(text)) == (1 if reasons.for_ and reasons.against else 0)
        if reasons.for_ and reasons.against:
            before, after = caveats.split(text)
            assert mentioned_reasons(before, reasons.for_) == list(reasons.for_)
            assert mentioned_reasons(after, reasons.against) == list(reasons.against)
        for reason in reasons.against:
            if reason.attribute == "price":
                assert ("pricier" in text) == ("pricier" in reason.phrase)
                assert ("cheaper" in text) == ("cheaper" in reason.phrase)
        if not reasons.against:
            assert not re.search(r"farther|pricier|less popular|avoid|not fond", text)


def test_only_true_history_is_cited():
    names = world().dataset.items["name"].to_list()
    cited_evidence = possible = 0
    for reasons, item, history, text in written():
        visited = {row["name"]: row for row in history}
        found = {name for name in names if re.search(rf"(?<!The ){re.escape(name)}\b", text)}
        assert found - {item["name"]} <= set(visited)
        fits = False
        for reason in reasons.for_:
            if reason.attribute in wording.EVIDENCE:
                fits |= any(str(row[reason.attribute]) == reason.value for row in history)
        possible += fits
        cited_evidence += bool(fits and found - {item["name"]})
        for name in re.findall(r"an? \w+ \((.*?)\)", text):
            assert name == history[-1]["name"]
        for sentence in re.split(r"(?<=[.?]) ", text):
            # Where a sentence says that cited places share a value, they do.
            if not re.search(
                r"in your history|as well|you already know|you have been to", sentence
            ):
                continue
            for name in found - {item["name"]}:
                if name not in sentence:
                    continue
                values = {str(visited[name][a]) for a in ("kind", "cuisine", "mood", "price")}
                assert any(r.value in values for r in reasons.for_), (sentence, visited[name])
    assert cited_evidence > 0.4 * possible > 100


def test_grammar():
    for *_, text in written():
        assert text[0].isupper() and text[-1] in ".?" and "  " not in text and "{" not in text
        for sentence in re.split(r"(?<=[.?]) ", text):
            assert sentence[0].isupper() or sentence[0].isdigit(), text
            assert sentence.count("(") == sentence.count(")")
        plain = without_names(text)
        assert not re.search(r"\b(a [aeiou]|an [^aeiou\s])", plain, re.IGNORECASE), text
        assert not re.search(r"\b(\w+) \1\b|\b(at|of) it\b|[,;:][,;:.]|\.\.", plain), text
        assert re.search(r"\byour?\b", text, re.IGNORECASE) and not re.search(
            r"\b(user|customer)\b", text
        )


def test_wording_varies_and_is_keyed():
    texts = [without_names(text) for *_, text in written()]
    assert len(set(texts)) > 0.98 * len(texts)
    openings = {" ".join(text.split()[:4]) for text in texts}
    assert len(openings) > 30
    reasons, item, history, text = written()[100]
    user = world().dataset.users.to_dicts()[reasons.user]
    args = dict(item=item, history=history, user=user)
    key = (reasons.user, reasons.item)
    assert explain(reasons, key=key, **args) == text
    others = {explain(reasons, key=key, seed=seed, **args) for seed in range(20)}
    assert len(others) == 20


def test_two_clauses_by_hand():
    """With one wording each, and no room for more, the text can be written by hand."""
    reasons = planted.Reasons(
        user=0,
        item=0,
        for_=(Reason("kind", "gallery", 2.0, "likes galleries"),),
        against=(Reason("noise level", "8 dB", -1.5, "louder than usual"),),
        utility=0.5,
        unexplained=0.0,
    )
    short = Length(low=1, mean=1, high=2, most=30)
    seen = set()
    for seed in range(300):
        seen.add(explain(reasons, item={"name": "Ai Fox"}, seed=seed, length=short))
    assert (
        "Consider Ai Fox for your next outing. It fits your liking for galleries. However, its "
        "noise level (8 dB) speaks against it: louder than usual."
    ) in seen
    assert all("galleries" in text and "noise level (8 dB)" in text for text in seen)


def test_the_last_visit_is_named_only_where_it_is_the_one_meant():
    sequence = Reason("sequence", "bar", 1.0, "goes well after a visit to a bar")
    reasons = planted.Reasons(0, 0, (sequence,), (), 1.0, 0.0)
    bar, park = {"name": "Bo Oak", "kind": "bar"}, {"name": "Cy Elm", "kind": "park"}
    for history, named in (([park, bar], True), ([bar, park], False), ([], False)):
        texts = [
            explain(reasons, item={"name": "Ai Fox"}, history=history, seed=seed)
            for seed in range(30)
        ]
        assert all("a bar" in text for text in texts)
        assert any("a bar (Bo Oak)" in text for text in texts) == named
        assert not any("(Cy Elm)" in text for text in texts)


def test_lengths_are_obeyed_or_refused():
    reasons, item, history, _ = next(case for case in written() if len(case[0].for_) == 1)
    texts = [
        explain(reasons, item=item, history=history, seed=seed, length=Length(30, 33, 36, 40))
        for seed in range(40)
    ]
    counts = [len(text.split()) for text in texts]
    assert max(counts) <= 40 and 30 <= np.mean(counts) <= 36
    with pytest.raises(UserError, match="low <= mean"):
        Length(low=50, mean=40)
    with pytest.raises(UserError, match="low <= mean"):
        Length(most=60)


def test_nothing_to_say_and_odd_rows():
    empty = planted.Reasons(0, 0, (), (), 0.0, 0.0)
    text = explain(empty, item={"name": "A {b}"}, history=[])
    assert "A {b}" in text and "your history" not in text
    with pytest.raises(UserError, match="no 'name' in a row"):
        explain(empty, item={"title": "A"})
    with pytest.raises(UserError, match="no 'title' in a row"):
        explain(empty, item={"title": "A"}, history=[{"name": "B"}], title="title")


def test_every_wording_has_known_gaps_and_stays_recoverable():
    gaps = {"it", "value", "plural", "a_value", "last", "than", "cited", "be", "they", "serve"}
    needed = {"kind": "{plural}", "sequence": "{a_value}", "price": "level"}
    for table in (wording.FOR, wording.AGAINST, wording.EVIDENCE):
        for attribute, texts in table.items():
            assert len(set(texts)) == len(texts)
            for text in texts:
                assert {name for _, name, _, _ in string.Formatter().parse(text) if name} <= gaps
                assert not text.endswith(".") and not text[0].isupper()
                if table is not wording.EVIDENCE:
                    cue = needed.get(attribute)
                    assert cue in text if cue else re.search(r"\{(a_)?value\}", text)


def test_a_price_or_distance_is_not_found_inside_another_number():
    price, near = Reason("price", "1", 1.0, ""), Reason("distance", "1.2 km", 1.0, "")
    assert mentioned_reasons("It is at price level 1, and 1.2 km away.", [price, near]) == [
        price,
        near,
    ]
    assert mentioned_reasons("It is at price level 12, and 11.2 km away.", [price, near]) == []
    assert mentioned_reasons("Prices at level 1.5; 1.2 kms away.", [price, near]) == []
    bar = Reason("sequence", "bar", 1.0, "")
    assert mentioned_reasons("after a barn, a barbecue and many bars", [bar]) == []
