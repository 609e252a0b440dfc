"""Rows of a ranking, and the evaluator's figures on them, against loops over events."""

import dataclasses
import functools
import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.evaluation.ranking.evaluator import RankingEvaluator, recommend
from xrec_jax.evaluation.ranking.protocol import RankingProtocol, rows_of
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.recommenders.base import Tables

USERS, ITEMS = 9, 13


@functools.cache
def parts():
    """Training, validation and test events of nine users, with repeats; some have none."""
    rng = np.random.default_rng(1)
    made = []
    for count in (60, 17, 25):
        user = np.sort(rng.integers(0, USERS - 1, count)).astype(np.int32)
        made.append(Interactions(user, rng.integers(0, ITEMS, count).astype(np.int32)))
    return made


def naive_rows(rows):
    """(user, known items, targets) of each row of the test."""
    train, valid, test = parts()
    found = []
    for user in range(USERS):
        known = [int(i) for part in (train, valid) for i in part.item[part.user == user]]
        targets = [int(i) for i in test.item[test.user == user]]
        if rows == "user":
            found += [(user, known, sorted(set(targets)))] if targets else []
            continue
        single = [(user, known + targets[:n], [item]) for n, item in enumerate(targets)]
        found += single[:1] if rows == "first_event" else single
    return found


@pytest.mark.parametrize("rows", ["user", "event", "first_event"])
def test_rows(rows):
    train, valid, test = parts()
    made = rows_of(RankingProtocol(rows), [train, valid], test, USERS)
    expected = naive_rows(rows)
    assert made.user.tolist() == [user for user, _, _ in expected]
    width = max(len(known) for _, known, _ in expected)
    known = made.history.padded(made.user, width, fill=-1, end=made.end)
    assert [[i for i in row if i >= 0] for row in known.tolist()] == [k for _, k, _ in expected]
    starts = made.targets.start
    targets = [made.targets.items[a:b].tolist() for a, b in itertools.pairwise(starts)]
    assert targets == [t for _, _, t in expected]
    if rows == "user":
        assert made.repeat is None
    else:
        assert made.repeat.tolist() == [t[0] in k for _, k, t in expected]
        assert 0 < made.repeat.mean() < 1


@dataclasses.dataclass(frozen=True)
class Recent:
    """Scores an item by a table, and by its last place in the two latest events."""

    num_users: int = USERS
    num_items: int = ITEMS
    history_length: int = 2

    def tables(self, params, frozen):
        return Tables(item=jnp.arange(64.0)[:, None])

    def user_state(self, params, tables, batch):
        recent = batch["history"] * (jnp.arange(2) < batch["length"][:, None]) + ITEMS * (
            jnp.arange(2) >= batch["length"][:, None]
        )
        return jnp.eye(ITEMS + 1)[recent].sum(1)[:, :ITEMS] + params

    def scores(self, state, table):
        return state[:, table[:, 0].astype(jnp.int32)]


def naive_ranks(known, targets, scores, mask_seen, rows):
    value = scores.copy()
    for item in known[-2:]:
        value[item] += 1
    out = []
    for target in targets:
        if mask_seen and rows != "user" and target in known:
            out.append(1_000)
            continue
        hidden = {i for i in known if i not in targets} if mask_seen else set()
        out.append(1 + sum(value[i] > value[target] for i in range(ITEMS) if i not in hidden))
    return out


@pytest.mark.parametrize("mask_seen", [True, False])
@pytest.mark.parametrize("rows", ["user", "event", "first_event"])
def test_figures(rows, mask_seen):
    train, valid, test = parts()
    scores = np.random.default_rng(5).permutation(ITEMS) / ITEMS * 0.9
    mesh = tiny.mesh(1, 1, 1)
    with use_mesh(mesh):
        evaluator = RankingEvaluator(
            Recent(),
            seen=[train, valid],
            held_out=test,
            mesh=mesh,
            ks=(1, 3, 20),
            protocol=RankingProtocol(rows, mask_seen),
        )
        found = evaluator(jnp.asarray(scores, jnp.float32), {})
    expected = [naive_ranks(k, t, scores, mask_seen, rows) for _, k, t in naive_rows(rows)]
    for k in (1, 3, 20):
        ideal = [sum(1 / math.log2(2 + n) for n in range(min(k, len(r)))) for r in expected]
        gain = [sum(1 / math.log2(1 + r) for r in row if r <= k) for row in expected]
        np.testing.assert_allclose(found.masked[f"ndcg@{k}"], np.divide(gain, ideal))
        np.testing.assert_allclose(found.masked[f"hit@{k}"], [min(r) <= k for r in expected])
    assert bool(found.unmasked) == mask_seen
    assert found.users.tolist() == [user for user, _, _ in naive_rows(rows)]
    np.testing.assert_allclose(
        found.means("test")["test/hit@1"], np.mean([min(r) <= 1 for r in expected])
    )


def test_an_unknown_kind_of_rows():
    with pytest.raises(UserError, match=r"ranking\.rows='evnt' is not valid; did you mean 'event'"):
        RankingProtocol("evnt")


def test_recommendations_may_hold_what_a_user_knows():
    train, valid, _ = parts()
    made = rows_of(RankingProtocol("event"), [train], valid, USERS)
    mesh = tiny.mesh(1, 1, 1)
    scores = jnp.zeros(ITEMS)
    lists = {}
    for mask in (True, False):
        lists[mask] = np.concatenate(
            [
                part.items
                for part in recommend(
                    Recent(),
                    scores,
                    {},
                    history=made.history,
                    users=np.arange(USERS - 1),
                    k=2,
                    mesh=mesh,
                    mask_seen=mask,
                )
            ]
        )
    for user in range(USERS - 1):
        known = made.history.padded(np.array([user]), 99, fill=-1)[0]
        known = [i for i in known.tolist() if i >= 0]
        assert not set(lists[True][user].tolist()) & set(known)
        assert set(lists[False][user].tolist()) == set(known[-2:]) or len(set(known[-2:])) < 2
