"""The planted world against slow, independent statements of its model."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import re

import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.world import ATTRIBUTES, WorldConfig, generate, oracle, pick_reasons
from xrec_jax.data.world import text as grammar
from xrec_jax.data.world import vocabulary as words
from xrec_jax.data.world.people import TASTE_SLICES, Tastes, profile_scores
from xrec_jax.data.world.places import place_names
from xrec_jax.data.world.reasons import MAX_AGAINST, MAX_FOR
from xrec_jax.data.world.utility import Utility
from xrec_jax.data.world.visits import draw_choices, draw_timeline

PINNED_NAMES = ["Flint Canoe", "Whistling Bridge", "The Bright Bicycle"]
PINNED_USER = "From Eastfield: a woman, age 50-64, who works as a lawyer."
PINNED_ITEMS = [544, 315, 319, 320, 299, 347, 553, 541]
PINNED_TIMES = [1596366816, 1596997966, 1597586725]

SMALL = WorldConfig(num_users=60, num_items=80, mean_visits=12, drift=0.1, noise=0.8)


@pytest.fixture(scope="module")
def world():
    return generate(SMALL)


@pytest.fixture(scope="module")
def default_world():
    return generate(WorldConfig())


def _last_events(world) -> Interactions:
    return world.dataset.interactions.take(world.timeline.first[1:] - 1)


def _same(left: Interactions, right: Interactions) -> bool:
    return all(
        np.array_equal(getattr(left, name), getattr(right, name))
        for name in ("user", "item", "timestamp")
    )


# Determinism and stability.


def test_same_config_gives_the_same_bytes(world):
    again = generate(SMALL)
    assert _same(again.dataset.interactions, world.dataset.interactions)
    assert again.dataset.items.equals(world.dataset.items)
    assert again.dataset.users.equals(world.dataset.users)
    other = generate(dataclasses.replace(SMALL, seed=1))
    assert not np.array_equal(other.choice[:50], world.choice[:50])
    assert not other.dataset.items.equals(world.dataset.items)


def test_world_is_pinned(default_world):
    # Generated once and kept: a NumPy release or an edit that changes the default world shows here.
    data = default_world.dataset
    assert data.items["name"].head(3).to_list() == PINNED_NAMES
    assert data.users["user_text"][0] == PINNED_USER
    assert data.interactions.item[:8].tolist() == PINNED_ITEMS
    assert data.interactions.timestamp[:3].tolist() == PINNED_TIMES


def test_users_do_not_depend_on_how_many_there_are(world):
    larger = generate(dataclasses.replace(SMALL, num_users=90))
    visits = world.timeline.first[-1]
    assert _same(larger.dataset.interactions.take(np.arange(visits)), world.dataset.interactions)
    assert larger.dataset.users.head(60).equals(world.dataset.users)
    assert larger.dataset.items.equals(world.dataset.items)


def test_places_do_not_depend_on_how_many_there_are_nor_on_strengths(world):
    larger = generate(dataclasses.replace(SMALL, num_items=120, taste_strength=1.0, drift=0.5))
    assert larger.dataset.items.head(80).equals(world.dataset.items)
    assert larger.dataset.users.equals(world.dataset.users)


def test_block_size_changes_nothing(world, monkeypatch):
    # Users in no order and more than once, so that blocks have to find their pairs.
    users, items = np.arange(200) * 37 % 60, np.arange(200) % 80
    whole = world.contributions(users, items)
    np.testing.assert_allclose(
        whole.sum(axis=1), world.utilities(users)[np.arange(200), items], atol=1e-12
    )
    monkeypatch.setattr("xrec_jax.data.world.utility.BLOCK_ENTRIES", 7 * SMALL.num_items)
    again = generate(SMALL)
    assert np.array_equal(again.choice, world.choice)
    np.testing.assert_allclose(again.contributions(users, items), whole, atol=1e-12)


# Visits.


def test_times_increase_and_no_place_comes_twice(default_world):
    data = default_world.dataset.interactions
    assert data.timestamp.dtype == np.int64
    assert data.user.dtype == data.item.dtype == np.int32
    same_user = data.user[1:] == data.user[:-1]
    assert np.all(np.diff(data.timestamp)[same_user] > 0)
    pairs = data.user.astype(np.int64) * 10_000 + data.item
    assert len(np.unique(pairs)) == len(pairs)
    counts = np.bincount(data.user)
    assert counts.min() >= 5 and counts.max() <= 300
    # Log-normal extra of mean 35 and deviation 33 over 1000 users: standard error 1.05.
    assert abs(counts.mean() - 40) < 4
    assert np.median(counts) < counts.mean() < counts.max() / 3


def test_coarse_time_makes_ties_but_keeps_order():
    coarse = generate(dataclasses.replace(SMALL, time_resolution=30 * 86_400))
    fine = generate(SMALL)
    data = coarse.dataset.interactions
    gaps = np.diff(data.timestamp)[data.user[1:] == data.user[:-1]]
    assert gaps.min() == 0 and np.all(data.timestamp % (30 * 86_400) == 0)
    assert np.array_equal(data.item, fine.dataset.interactions.item)


def test_choice_frequencies_match_the_softmax():
    """8000 copies of one user with a taste that may change once: every path has a known chance."""
    copies, steps = 8000, 3
    config = WorldConfig(
        num_users=copies,
        num_items=6,
        mean_visits=steps,
        min_visits=steps,
        taste_strength=0.6,
        taste_recoverability=1.0,
        price_strength=0.2,
        distance_strength=0.05,
        popularity_strength=0.2,
        sequence_strength=0.4,
        drift=0.3,
        noise=0.5,
    )
    base = generate(dataclasses.replace(config, num_users=1))
    places = dataclasses.replace(base.places, kind=np.array([0, 0, 0, 1, 1, 2]), mood=np.arange(6))
    people = dataclasses.replace(
        base.people,
        **{
            field.name: np.repeat(getattr(base.people, field.name), copies, axis=0)
            for field in dataclasses.fields(base.people)
        },
    )
    timeline = draw_timeline(config, people)
    states = timeline.change[timeline.first[1:] - 1] + 1
    theta = np.zeros((3, base.tastes.theta.shape[1]))
    theta[0, 0], theta[1, 1], theta[2, 2] = 1.0, 1.0, 1.0
    # Within a kind too the order must be drawn anew when the taste has changed.
    mood = TASTE_SLICES["mood"].start
    theta[0, [mood, mood + 3]], theta[1, [mood + 1, mood + 4]], theta[2, mood + 2] = 2.0, 2.0, 2.0
    state_of = np.concatenate([np.arange(count) for count in states])
    tastes = Tastes(
        user=np.repeat(np.arange(copies), states),
        first=np.concatenate([[0], np.cumsum(states)]),
        theta=theta[state_of],
    )
    utility = Utility(config, places, people, tastes)
    chosen = draw_choices(config, utility, timeline).reshape(copies, steps)
    change = timeline.change.reshape(copies, steps)
    observed = collections.Counter(
        (tuple(c), tuple(i)) for c, i in zip(change.tolist(), chosen.tolist(), strict=True)
    )

    row = {state: np.flatnonzero(state_of == state)[0] for state in range(3)}
    table = {
        (state, last): utility.catalogue(np.array([0]), np.array([row[state]]), np.array([last]))[0]
        for state in range(3)
        for last in range(-1, 3)
    }
    statistic, cells, total, rare = 0.0, 0, 0.0, np.zeros(2)
    for flips in itertools.product((0, 1), repeat=steps - 1):
        path = (0, flips[0], flips[0] + flips[1])
        weight = math.prod(config.drift if flip else 1 - config.drift for flip in flips)
        for items in itertools.permutations(range(6), steps):
            chance, left, last = weight, set(range(6)), -1
            for state, item in zip(path, items, strict=True):
                scores = {i: math.exp(table[state, last][i] / config.noise) for i in left}
                chance *= scores[item] / sum(scores.values())
                left.discard(item)
                last = int(places.kind[item])
            total += chance
            if copies * chance < 4:
                rare += observed[path, items], copies * chance
            else:
                statistic += (observed[path, items] - copies * chance) ** 2 / (copies * chance)
                cells += 1
    assert total == pytest.approx(1.0)
    assert cells > 120 and rare[1] < 0.1 * copies
    statistic += (rare[0] - rare[1]) ** 2 / rare[1]
    # Pearson's statistic of cells + 1 cells is near chi-square with `cells` degrees of freedom:
    # mean `cells`, deviation sqrt(2 cells), about 17.
    assert abs(statistic - cells) < 3.5 * math.sqrt(2 * cells)


# Utility and its contributions.


def test_contributions_equal_a_loop_over_the_equations(world):
    config, places, people = world.config, world.places, world.people
    for user in (3, 17):
        visits = world.choice[world.timeline.first[user] : world.timeline.first[user + 1]]
        for made in (0, 4, len(visits) - 1):
            changes = world.timeline.change[world.timeline.first[user] + made]
            theta = world.tastes.theta[world.tastes.first[user] + changes]
            raw = {name: [] for name in ATTRIBUTES}
            for item in range(len(places)):
                for name, part in TASTE_SLICES.items():
                    raw[name].append(theta[part][getattr(places, name)[item]])
                raw["price"].append(
                    -config.price_strength * abs(places.price[item] - people.ideal_price[user])
                )
                km = math.dist(people.home[user], places.position[item])
                raw["distance"].append(-config.distance_strength * people.sensitivity[user] * km)
                raw["popularity"].append(config.popularity_strength * places.popularity[item])
                kind, effect = words.KINDS[places.kind[item]], 0.0
                if made:
                    last = words.KINDS[places.kind[visits[made - 1]]]
                    effect = -1.0 if kind == last else float(kind in words.FOLLOWED_BY[last])
                raw["sequence"].append(config.sequence_strength * effect)
            described = np.sum([raw[name] for name in TASTE_SLICES], axis=0)
            scale = config.taste_strength * math.sqrt(config.taste_recoverability)
            for name in TASTE_SLICES:
                raw[name] = scale / described.std() * np.array(raw[name])
            raw["idiosyncratic"] = world.utility.idiosyncratic(np.array([user]))[0]
            wanted = np.stack([raw[name] - np.mean(raw[name]) for name in ATTRIBUTES], axis=1)

            users, items = np.full(len(places), user), np.arange(len(places))
            got = world.contributions(users, items, np.full(len(places), made))
            np.testing.assert_allclose(got, wanted, atol=1e-9)
            whole = world.utilities(np.array([user]), np.array([made]))[0]
            np.testing.assert_allclose(whole, wanted.sum(axis=1), atol=1e-9)
            for column, name in enumerate(ATTRIBUTES):
                state = world.state(np.array([user]), np.array([made]))
                term = world.utility.term(name, np.array([user]), *state)[0]
                np.testing.assert_allclose(term, wanted[:, column], atol=1e-9)


def test_recoverability_is_the_share_of_variance(default_world):
    users = np.arange(200)
    described = default_world.utility.described_taste(default_world.tastes.first[users])
    own = default_world.utility.idiosyncratic(users)
    np.testing.assert_allclose(described.var(axis=1), 9 * 0.9, rtol=1e-9)
    np.testing.assert_allclose(own.var(axis=1), 9 * 0.1, rtol=1e-9)
    # 200 x 600 normal values: skew and excess kurtosis have errors of .007 and .014.
    unit = own / own.std()
    assert abs((unit**3).mean()) < 0.04 and abs((unit**4).mean() - 3) < 0.08
    # Neighbouring users and places share nothing.
    assert abs((unit[1:] * unit[:-1]).mean()) < 0.015
    assert abs((unit[:, 1:] * unit[:, :-1]).mean()) < 0.015


def test_tastes_follow_the_profile_with_the_given_strength():
    """At rho = 1 the profile fixes the tastes; at 0 equal profiles agree by chance only."""

    def agreement(rho: float) -> float:
        world = generate(dataclasses.replace(SMALL, num_users=400, profile_correlation=rho))
        people, theta = world.people, world.tastes.theta[world.tastes.first[:-1]]
        groups = collections.defaultdict(list)
        for user in range(len(people)):
            key = (people.age[user], people.gender[user], people.occupation[user])
            groups[key].append(theta[user])
        pairs = [np.mean(a == b) for g in groups.values() for a, b in itertools.combinations(g, 2)]
        return float(np.mean(pairs))

    chance, some, full = agreement(0.0), agreement(0.5), agreement(1.0)
    assert full == 1.0
    assert chance + 0.05 < some < 0.95


def test_likes_are_the_highest_scores_and_the_dislike_the_lowest():
    world = generate(dataclasses.replace(SMALL, profile_correlation=1.0))
    scores = profile_scores(world.config, world.people)
    for user in range(5):
        theta = world.tastes.theta[world.tastes.first[user]]
        for name, part in TASTE_SLICES.items():
            values = range(part.start + (name == "cuisine"), part.stop)
            order = sorted(values, key=lambda value: scores[user, value])
            wanted = {order[-1]: 1.0, order[-2]: 0.7, order[0]: -1.0}
            assert [wanted.get(value, 0.0) for value in range(part.start, part.stop)] == list(
                theta[part]
            )


def test_drift_changes_one_attribute_at_a_time(world):
    tastes = world.tastes
    follows = np.flatnonzero(np.diff(tastes.user) == 0)
    assert len(follows) > 20
    touched = {
        name: np.any(tastes.theta[follows + 1, part] != tastes.theta[follows, part], axis=1)
        for name, part in TASTE_SLICES.items()
    }
    assert np.max(np.sum(list(touched.values()), axis=0)) == 1
    assert all(values.any() for values in touched.values())
    still = generate(dataclasses.replace(SMALL, drift=0.0))
    assert len(still.tastes.user) == SMALL.num_users


# Oracle.


def _naive_metrics(world, event: int, ks, hidden: str | None = None):
    """Expected and realised metrics of one visit by sorting and looping."""
    user, made = int(world.timeline.user[event]), 0
    made = event - int(world.timeline.first[user])
    seen = set(world.choice[event - made : event].tolist())
    items = [item for item in range(len(world.places)) if item not in seen]
    contributions = world.contributions(
        np.full(len(items), user), np.array(items), np.full(len(items), made)
    )
    weights = np.exp(contributions.sum(axis=1) / world.config.noise)
    chances = weights / weights.sum()
    score = contributions.sum(axis=1)
    if hidden:
        score = score - contributions[:, ATTRIBUTES.index(hidden)]
    order = sorted(range(len(items)), key=lambda index: -score[index])
    expected, realised = collections.Counter(), collections.Counter()
    for rank, index in enumerate(order, start=1):
        gains = {"recall": 1.0, "ndcg": 1 / math.log2(rank + 1), "mrr": 1 / rank}
        for k in ks:
            for metric, gain in gains.items():
                if rank <= k:
                    expected[f"{metric}@{k}"] += chances[index] * gain
                    if items[index] == world.choice[event]:
                        realised[f"{metric}@{k}"] += gain
    return expected, realised


@pytest.mark.parametrize("hidden", [None, "idiosyncratic", "mood", "sequence"])
def test_oracle_equals_a_loop(world, hidden):
    # Any visits in any order, a cut-off beyond what is left included.
    rows = np.array([5, 0, 200, 101, int(world.timeline.first[1]) - 1])
    ks = (1, 5, 200)
    events = world.dataset.interactions.take(rows)
    report = oracle(world, events, ks, without=(hidden,) if hidden else ())
    for position, row in enumerate(rows):
        expected, realised = _naive_metrics(world, int(row), ks, hidden)
        assert set(report.expected) == set(expected)
        for name in expected:
            assert report.expected[name][position] == pytest.approx(expected[name])
            assert report.realised[name][position] == pytest.approx(realised[name])


def test_realised_metrics_agree_with_their_expectation(default_world):
    report = oracle(default_world, default_world.dataset.interactions, (1, 10))
    for name, expected in report.expected.items():
        # Given the past every difference has mean 0, so their sum is a martingale and its error is
        # that of independent terms.
        gap = report.realised[name] - expected
        assert abs(gap.mean()) < 3.5 * gap.std() / math.sqrt(len(gap))
        assert gap.std() / math.sqrt(len(gap)) < 0.003
    assert report.mean_expected()["ndcg@10"] == pytest.approx(report.expected["ndcg@10"].mean())
    assert report.mean_realised()["mrr@1"] == pytest.approx(report.realised["mrr@1"].mean())


def _ndcg(world, score: np.ndarray) -> float:
    """NDCG@10 of a score matrix on last visits, earlier ones masked."""
    users = np.arange(len(world.people))
    score = np.where(world.seen(users, world.last_choice(users)), -np.inf, score)
    target = world.choice[world.timeline.first[1:] - 1]
    rank = (score >= score[users, target][:, None]).sum(axis=1)
    return float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())


def test_the_default_world_leaves_room_between_rankers(default_world):
    world = default_world
    users = np.arange(len(world.people))
    history = world.seen(users, world.last_choice(users)).astype(float)
    counts = history.sum(axis=0)
    tie_break = np.linspace(0, 1e-6, len(world.places))
    popularity = _ndcg(world, np.broadcast_to(counts + tie_break, history.shape))
    random = _ndcg(world, np.random.default_rng(0).random(history.shape))
    similar = history.T @ history / np.sqrt(np.outer(counts + 1, counts + 1))
    np.fill_diagonal(similar, 0.0)
    neighbours = _ndcg(world, history @ similar)
    bounds = {
        without: oracle(world, _last_events(world), without=without).mean_expected()["ndcg@10"]
        for without in ((), ("idiosyncratic",), ("idiosyncratic", "sequence"))
    }
    assert random < 0.02
    assert 0.03 < popularity < 0.08
    assert popularity + 0.02 < neighbours < 0.6 * bounds["idiosyncratic", "sequence"]
    assert bounds["idiosyncratic", "sequence"] + 0.02 < bounds["idiosyncratic",] < bounds[()] - 0.03
    assert 0.25 < bounds[()] < 0.4


def test_oracle_refuses_what_it_cannot_bound(world):
    events = _last_events(world)
    with pytest.raises(UserError, match="did you mean 'mood'"):
        oracle(world, events, without=("moods",))
    with pytest.raises(UserError, match="cut-offs"):
        oracle(world, events, (0,))
    with pytest.raises(UserError, match="at least one event"):
        oracle(world, events.take(np.arange(0)))
    unseen = int(
        np.flatnonzero(~world.seen(np.array([4]), world.last_choice(np.array([4])) + 1)[0])[0]
    )
    stranger = Interactions(user=np.array([4], np.int32), item=np.array([unseen], np.int32))
    with pytest.raises(UserError, match=f"user row 4 never visits item row {unseen}"):
        oracle(world, stranger)


# Reasons.


def test_reasons_by_hand():
    #                 kind cuis mood price dist popu  seq  idio
    rows = np.array(
        [
            [0.5, 2.0, 0.49, 0.7, -0.5, -0.6, -3.0, 9.0],
            [0.9, 0.9, 0.9, 0.9, 0.0, 0.0, 0.0, -9.0],
            [0.1, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    chosen, rejected = pick_reasons(rows, 0.5)
    assert chosen.tolist() == [[1, 3, 0], [0, 1, 2], [-1, -1, -1]]
    assert rejected.tolist() == [[6, 5], [-1, -1], [-1, -1]]
    chosen, rejected = pick_reasons(rows, 0.0)
    assert chosen[2].tolist() == [0, -1, -1] and rejected[2].tolist() == [1, -1]
    citable = np.ones(rows.shape, bool)
    citable[:, 1] = False
    assert pick_reasons(rows, 0.5, citable)[0].tolist() == [[3, 0, -1], [0, 2, 3], [-1, -1, -1]]


def test_reasons_say_what_is_true():
    # A low threshold, so that all the rules have to hold it back.
    world = generate(dataclasses.replace(SMALL, reason_threshold=0.05))
    events = world.dataset.interactions
    records = world.reasons_for_visits(events)
    made = world.visits_made(events)
    contributions = world.contributions(events.user, events.item, made)
    assert [(r.user, r.item) for r in records] == list(
        zip(events.user.tolist(), events.item.tolist(), strict=True)
    )
    cited = collections.Counter()
    for row, record in enumerate(records):
        assert len(record.for_) <= MAX_FOR and len(record.against) <= MAX_AGAINST
        assert record.utility == pytest.approx(contributions[row].sum())
        assert record.unexplained == pytest.approx(contributions[row, -1])
        likes = world.tastes.theta[world.state(events.user[[row]], made[[row]])[0][0]]
        for reason in (*record.for_, *record.against):
            positive = reason in record.for_
            cited[reason.attribute, positive] += 1
            column = ATTRIBUTES.index(reason.attribute)
            assert reason.contribution == pytest.approx(contributions[row, column])
            assert (reason.contribution if positive else -reason.contribution) >= 0.05
            item = record.item
            if reason.attribute in TASTE_SLICES:
                assert reason.value == world.dataset.items[reason.attribute][item] != "none"
                part = TASTE_SLICES[reason.attribute]
                taste = likes[part][getattr(world.places, reason.attribute)[item]]
                assert taste > 0 if positive else taste < 0
                assert reason.phrase.startswith("likes" if positive else "dislikes")
            if reason.attribute == "price" and not positive:
                dear = world.places.price[item] > world.people.ideal_price[record.user]
                assert reason.phrase == ("pricier than usual" if dear else "cheaper than usual")
            if reason.attribute == "distance":
                km = math.dist(world.people.home[record.user], world.places.position[item])
                assert reason.value == f"{km:.1f} km" and reason.value in reason.phrase
            if reason.attribute == "sequence":
                assert reason.value == words.KINDS[world.places.kind[world.choice[row - 1]]]
                assert made[row] > 0
                kind = words.KINDS[world.places.kind[item]]
                follows = kind in words.FOLLOWED_BY[reason.value]
                assert follows if positive else kind == reason.value
    assert {name for name, positive in cited if positive} == set(ATTRIBUTES) - {"idiosyncratic"}
    assert {name for name, positive in cited if not positive} >= {"price", "distance", "sequence"}


def test_reasons_for_any_pair_in_the_state_of_the_last_choice(world):
    events = _last_events(world)
    assert world.reasons(events.user, events.item) == world.reasons_for_visits(events)
    never = world.reasons(np.array([2]), np.array([int(world.choice[0])]))[0]
    assert never.describe()
    # After the last visit only the sequence term is new.
    users, items = np.arange(20), np.arange(20)
    before = world.contributions(users, items)
    after = world.contributions(users, items, world.people.num_visits[users])
    sequence = ATTRIBUTES.index("sequence")
    np.testing.assert_array_equal(
        np.delete(before, sequence, axis=1), np.delete(after, sequence, axis=1)
    )
    assert np.any(before[:, sequence] != after[:, sequence])
    with pytest.raises(UserError, match="number of visits"):
        world.reasons(np.array([0]), np.array([0]), np.array([10_000]))


def test_describe_joins_phrases(world):
    record = next(r for r in world.reasons_for_visits(world.dataset.interactions) if r.against)
    text = record.describe()
    assert text.startswith(record.for_[0].phrase)
    assert text.endswith("against: " + ", ".join(reason.phrase for reason in record.against))
    bare = dataclasses.replace(record, for_=(), against=())
    assert bare.describe() == "no particular reason"


# Names and text.


def test_names_are_unique_at_any_size():
    names = place_names(0, 100_000)
    assert len(set(names)) == len(names)
    assert place_names(0, 50) == names[:50]
    assert place_names(1, 50) != names[:50]
    pairs = len(words.OPENERS) * len(words.NOUNS)
    streets = len(words.STREETS)
    # Beyond the streets house numbers take over; one pair is enough to see it.
    wrapped = place_names(0, pairs * (streets + 1) + 1)
    assert wrapped[pairs * (streets + 1)] != wrapped[pairs]
    assert "on 2 " in wrapped[-1]


def test_item_text_states_the_attributes(default_world):
    items = default_world.dataset.items
    for row in items.iter_rows(named=True):
        sentence = row["item_text"]
        assert row["name"] in sentence and row["district"] in sentence
        lowered = sentence.lower()
        for table, key in (
            (grammar.KIND_WORDS, "kind"),
            (grammar.MOOD_WORDS, "mood"),
            (grammar.PRICE_WORDS, "price"),
        ):
            assert any(phrase in lowered for phrase in table[row[key]]), (key, sentence)
        assert (row["cuisine"] in sentence) == (row["cuisine"] != "none")
        assert "{" not in sentence and "  " not in sentence and sentence.endswith(".")
        # The name must not give the kind away.
        name_words = set(re.findall(r"[a-z-]+", row["name"].lower()))
        assert name_words.isdisjoint([*words.KINDS, *words.MOODS])


def test_text_is_varied(default_world):
    items, users = default_world.dataset.items, default_world.dataset.users
    shapes = collections.Counter()
    for row in items.iter_rows(named=True):
        shape = row["item_text"].replace(row["name"], "N").replace(row["district"], "D")
        shapes[shape] += 1
    # 600 places, names and districts taken out: hardly a sentence comes back.
    assert len(shapes) > 0.9 * len(items) and shapes.most_common(1)[0][1] <= 5
    assert users["user_text"].n_unique() > 0.75 * len(users)


def test_user_text_tells_the_profile_and_nothing_else(default_world):
    users = default_world.dataset.users
    hidden = set()
    for table in (grammar.KIND_WORDS, grammar.MOOD_WORDS, grammar.PRICE_WORDS):
        hidden.update(phrase for phrases in table.values() for phrase in phrases)
    hidden.update(cuisine.lower() for cuisine in words.CUISINES[1:])
    for row in users.iter_rows(named=True):
        sentence = row["user_text"]
        assert row["age_band"] in sentence and row["home_district"] in sentence
        assert row["gender"] in sentence.lower()
        stem = {"student": "stud", "retired": "retired"}.get(row["occupation"], row["occupation"])
        assert stem in sentence
        lowered = sentence.lower()
        assert not [word for word in hidden if re.search(rf"\b{re.escape(word)}\b", lowered)]
    # No sentence moves when every hidden thing does.
    moved = generate(WorldConfig(profile_correlation=0.0, drift=0.4, taste_recoverability=0.2))
    assert np.any(moved.tastes.theta[0] != default_world.tastes.theta[0])
    assert moved.dataset.users.equals(users)
    assert users.columns == [
        "user_id",
        "age_band",
        "gender",
        "occupation",
        "home_district",
        "user_text",
    ]


# Configuration.


def test_from_mapping_takes_what_is_given():
    config = WorldConfig.from_mapping({"seed": 3, "num_items": np.int64(50), "mean_visits": 8})
    assert (config.seed, config.num_items, config.mean_visits) == (3, 50, 8.0)
    assert type(config.num_items) is int and type(config.mean_visits) is float
    assert config.noise == WorldConfig().noise


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"num_user": 5}, r"unknown key world\.num_user; did you mean 'num_users'\?"),
        ({"num_users": 0}, r"world\.num_users must lie from 1 to 10000000, got 0"),
        ({"num_users": 2.5}, r"world\.num_users must be an integer from 1"),
        ({"num_users": True}, r"world\.num_users must be an integer"),
        ({"noise": "1"}, r"world\.noise must be a number from 0\.05 to 100, got '1'"),
        ({"noise": float("nan")}, r"world\.noise must lie from 0\.05 to 100, got nan"),
        ({"taste_recoverability": 1.1}, r"world\.taste_recoverability must lie from 0 to 1"),
        ({"drift": -0.1}, r"world\.drift must lie from 0 to 1, got -0\.1"),
        ({"mean_visits": 301}, r"world\.mean_visits must lie from .* \(5\) to half .* \(300\)"),
        ({"mean_visits": 4}, r"world\.mean_visits must lie from world\.min_visits \(5\)"),
    ],
)
def test_bad_config_names_the_key_and_the_range(mapping, message):
    with pytest.raises(UserError, match=message):
        WorldConfig.from_mapping(mapping)


@pytest.mark.parametrize(
    "change",
    [
        {"taste_strength": 0.0},
        {"taste_recoverability": 0.0},
        {"taste_recoverability": 1.0},
        {"noise": 0.05, "taste_strength": 10.0},
        {"num_users": 1},
        {"num_items": 10, "mean_visits": 5},
        {"drift": 1.0},
    ],
)
def test_extremes_stay_finite(change):
    world = generate(dataclasses.replace(SMALL, **change))
    pairs = world.timeline.user * len(world.places) + world.choice
    assert len(np.unique(pairs)) == len(pairs)
    report = oracle(world, _last_events(world))
    assert all(np.isfinite(values).all() for values in report.expected.values())
    assert all(math.isfinite(r.utility) for r in world.reasons_for_visits(_last_events(world)))
