"""Reviews of the planted world: what they say is true, and says nothing else."""

import dataclasses
import re

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.world import WorldConfig, generate
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.text import KIND_WORDS, MOOD_WORDS

# Choices with so much noise that many a visit displeases.
SMALL = WorldConfig(
    num_users=50,
    num_items=70,
    mean_visits=11,
    drift=0.15,
    noise=6.0,
    review_share=0.65,
    review_asides=0.0,
    about_share=0.0,
)
# Written down again, so that a changed or swapped phrase shows here.
PRAISE = (
    "always happy in a",
    "my favourite sort of",
    "I love a good",
    "were a joy",
    "could eat",
    "lovely",
    "just right",
    "loved how",
    "wonderfully",
)
BLAME = (
    "never again",
    "bores me",
    "should have skipped",
    "is not for me",
    "did not enjoy",
    "sadly",
    "far too",
    "I left early",
    "annoyingly",
)


@pytest.fixture(scope="module")
def world():
    return generate(SMALL)


def visits(world):
    """(user, item, taste vector at the visit) of every visit, one by one."""
    for row, (user, item) in enumerate(zip(world.timeline.user, world.choice, strict=True)):
        made = row - int(world.timeline.first[user])
        state = world.tastes.first[user] + int(world.timeline.change[row])
        yield int(user), int(item), made, world.tastes.theta[state]


def names(world, item):
    """Attribute to the value of a place and all the words that may stand for it."""
    row = world.dataset.items.row(item, named=True)
    return {
        "kind": (row["kind"], KIND_WORDS[row["kind"]]),
        "cuisine": (row["cuisine"], (row["cuisine"],)),
        "mood": (row["mood"], MOOD_WORDS[row["mood"]]),
    }


def test_reviews_say_every_taste_for_the_place_and_nothing_else(world):
    """Against a naive reading of the texts: one part for each taste, praise or blame as it is."""
    columns = {"kind": words.KINDS, "cuisine": words.CUISINES, "mood": words.MOODS}
    offset = {"kind": 0, "cuisine": 12, "mood": 12 + 11}
    checked = {"for": 0, "against": 0, "neither": 0}
    for user, item, _, theta in visits(world):
        text = world.dataset.reviews.get((user, item))
        if text is None:
            continue
        said = {}
        for name, (value, forms) in names(world, item).items():
            like = theta[offset[name] + columns[name].index(value)]
            if like:
                said[name] = ("for" if like > 0 else "against", forms)
        # "so quiet, just right" and "I left early" hold a comma of their own.
        plain = re.sub(r"(so [\w -]+),( just right| I left early)", r"\1\2", text)
        if not said:
            assert text in {
                "it was all right",
                "an ordinary visit",
                "nothing special to report",
                "fine",
            }
            checked["neither"] += 1
            continue
        parts = plain.split(", ")
        assert len(parts) == len(said), text
        order = (
            list(said) if any(f in parts[0] for f in said[next(iter(said))][1]) else [*said][::-1]
        )
        for name, part in zip(order, parts, strict=True):
            direction, forms = said[name]
            assert any(form in part for form in forms), (text, said)
            assert any(p in part for p in (PRAISE if direction == "for" else BLAME)), (text, said)
            assert not any(p in part for p in (BLAME if direction == "for" else PRAISE)), text
            checked[direction] += 1
    assert min(checked.values()) > 10


def stated(world, user, item, made):
    """Facts of the tastes for a place, and all tastes of the moment."""
    (tastes,) = world.tastes_at(np.array([user]), np.array([made]))
    every = {
        (name, value, side == "likes")
        for side in tastes
        for name, values in tastes[side].items()
        for value in values
    }
    own = {(name, value) for name, (value, _) in names(world, item).items()}
    return {fact for fact in every if fact[:2] in own}, every


def test_facts_are_the_tastes_behind_the_reviews(world):
    assert {*world.reviews} == {*world.dataset.reviews}
    for user, item, made, _ in visits(world):
        if (user, item) in world.reviews:
            facts = world.reviews[user, item].facts
            assert len({*facts}) == len(facts)
            assert {*facts} == stated(world, user, item, made)[0]


def test_asides_add_one_true_taste_and_change_nothing_else(world):
    more = generate(dataclasses.replace(SMALL, review_asides=0.6))
    added = {True: 0, False: 0}
    for user, item, made, _ in visits(more):
        if (user, item) not in more.reviews:
            continue
        before, now = world.reviews[user, item], more.reviews[user, item]
        new = [fact for fact in now.facts if fact not in before.facts]
        assert len(new) <= 1 and {*new} <= stated(more, user, item, made)[1]
        if not new:
            assert now == before
            continue
        ((name, value, liked),) = new
        forms = {"kind": KIND_WORDS, "mood": MOOD_WORDS}.get(name, {}).get(value, (value,))
        head, _, last = now.text.rpartition(", ")
        assert head == (before.text if before.facts else "") and any(f in last for f in forms)
        starts = ("next time", "almost as good") if liked else ("better than", "glad it was")
        assert last.startswith(starts)
        added[liked] += 1
    assert min(added.values()) > 0.2 * len(more.reviews)


def test_what_users_say_of_themselves(world):
    some = generate(dataclasses.replace(SMALL, about_share=0.4))
    told = of = 0
    for user, about in enumerate(some.about):
        (tastes,) = some.tastes_at(np.array([user]), np.array([0]))
        every = {
            (name, value, side == "likes")
            for side in tastes
            for name, values in tastes[side].items()
            for value in values
        }
        assert {*about.facts} <= every and len({*about.facts}) == len(about.facts)
        parts = about.text.split(", ")
        assert len(parts) == max(1, len(about.facts))
        for (name, value, _), part in zip(about.facts, parts, strict=False):
            forms = {"kind": KIND_WORDS, "mood": MOOD_WORDS}.get(name, {}).get(value, (value,))
            assert any(form in part for form in forms)
        assert some.dataset.users["about"][user] == about.text
        told, of = told + len(about.facts), of + len(every)
    assert abs(told / of - 0.4) < 4 * np.sqrt(0.24 / of)
    larger = generate(dataclasses.replace(SMALL, about_share=0.4, num_users=70))
    assert larger.about[:50] == some.about
    assert some.dataset.users.drop("about").equals(world.dataset.users)
    assert some.dataset.reviews == world.dataset.reviews


def test_reviews_name_no_place(world):
    titles = world.dataset.items["name"].to_list()
    assert not [t for text in world.dataset.reviews.values() for t in titles if t in text]


def test_share_of_visits_that_are_reviewed(world):
    share = len(world.dataset.reviews) / len(world.choice)
    assert abs(share - 0.65) < 4 * np.sqrt(0.65 * 0.35 / len(world.choice))
    everyone = generate(dataclasses.replace(SMALL, review_share=1.0))
    assert len(everyone.dataset.reviews) == len(everyone.choice)
    # A larger share adds reviews and changes none.
    for key, text in world.dataset.reviews.items():
        assert everyone.dataset.reviews[key] == text


def test_a_larger_world_keeps_the_reviews_of_its_first_users(world):
    larger = generate(dataclasses.replace(SMALL, num_users=83))
    first = {key: text for key, text in larger.dataset.reviews.items() if key[0] < 50}
    assert first == world.dataset.reviews
    other = generate(dataclasses.replace(SMALL, seed=1))
    assert other.dataset.reviews != world.dataset.reviews


def test_a_world_has_no_review_unless_asked_and_reviews_change_nothing_else(world):
    without = generate(dataclasses.replace(SMALL, review_share=0.0))
    assert WorldConfig().review_share == 0.0
    assert without.dataset.reviews == {} and without.reviews == {} and not WorldConfig().about_share
    np.testing.assert_array_equal(without.choice, world.choice)
    np.testing.assert_array_equal(without.timeline.timestamp, world.timeline.timestamp)
    assert without.dataset.items.equals(world.dataset.items)
    assert without.dataset.users.equals(world.dataset.users)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "half"])
def test_a_share_that_is_none(share):
    with pytest.raises(UserError, match="review_share"):
        WorldConfig(review_share=share)
