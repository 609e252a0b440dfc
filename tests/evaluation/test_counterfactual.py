"""Counterfactual faithfulness against loops, hand-made recommenders and scipy."""

import dataclasses
import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import logsumexp

from tests import tiny
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.faithfulness.counterfactual import counterfactual
from xrec_jax.evaluation.ranking.fold_in import Prior, fold_in, user_prior
from xrec_jax.evaluation.ranking.log_probs import target_log_probs
from xrec_jax.parallel.mesh import put_sharded, sharding, use_mesh
from xrec_jax.recommenders.base import Tables

ITEMS, USERS = 61, 75


@dataclasses.dataclass(frozen=True)
class Additive:
    """Item 0 scores the sum of the known weights of what was visited, every other item 0.3."""

    num_items: int = ITEMS
    num_users: int = USERS
    history_length: int = 12

    def tables(self, params, frozen):
        table = jnp.tile(jnp.array([[0.0, 0.3]]), (128, 1)).at[0].set(jnp.array([1.0, 0.0]))
        return Tables(item=table)

    def user_state(self, params, tables, batch):
        real = jnp.arange(self.history_length) < batch["length"][:, None]
        total = jnp.where(real, params[batch["history"]], 0).sum(axis=1)
        return jnp.stack([total, jnp.ones_like(total)], axis=1)

    def scores(self, user_state, item_table):
        return jnp.einsum("bd,id->bi", user_state, item_table)


WEIGHTS = np.zeros(ITEMS, np.float32)
WEIGHTS[[5, 6, 7, 8, 9]] = [2.0, 1.5, 0.25, 0.25, -0.75]


def additive(cited, history=(5, 6, 7, 8, 9), shown=None, **kwargs):
    return counterfactual(
        Additive(),
        jnp.asarray(WEIGHTS),
        {},
        users=[3],
        items=[0],
        histories=[history],
        cited=[cited],
        shown=None if shown is None else [shown],
        mesh=tiny.mesh(),
        **kwargs,
    )


def test_known_weights_give_the_expected_figures():
    """By hand: the total is 3.25; 55 other places that were not visited score 0.3 each."""

    def log_p(total):
        return total - math.log(math.exp(total) + 55 * math.exp(0.3))

    found = additive([5, 6], draws=400)
    assert found.full[0] == pytest.approx(log_p(3.25), abs=1e-5)
    assert found.without_cited[0] == pytest.approx(log_p(-0.25), abs=1e-5)
    assert found.only_cited[0] == pytest.approx(log_p(3.5), abs=1e-5)
    # Two of the three that are not cited are dropped, each pair as often as any other.
    sums = [a + b for a, b in itertools.combinations((0.25, 0.25, -0.75), 2)]
    without = np.mean([log_p(3.25 - s) for s in sums])
    only = np.mean([log_p(s) for s in sums])
    assert found.comprehensiveness[0] == pytest.approx(without - log_p(-0.25), abs=0.05)
    assert found.sufficiency[0] == pytest.approx(log_p(3.5) - only, abs=0.05)
    assert found.comprehensiveness[0] > 2 and found.sufficiency[0] > 2
    # A single uncited entry leaves nothing to chance.
    exact = additive([7], shown=[7, 5], draws=2)
    assert exact.comprehensiveness[0] == pytest.approx(log_p(1.25) - log_p(3.0), abs=1e-5)
    assert exact.sufficiency[0] == pytest.approx(log_p(0.25) - log_p(2.0), abs=1e-5)


def test_influential_citations_score_and_irrelevant_ones_do_not():
    good, bad = additive([5, 6]), additive([7, 9])
    assert good.comprehensiveness[0] > 1 > 0 > bad.comprehensiveness[0]
    assert good.sufficiency[0] > 1 > 0 > bad.sufficiency[0]
    alike = additive([7], shown=[7, 8])
    assert alike.comprehensiveness[0] == alike.sufficiency[0] == 0


def test_what_cannot_be_measured():
    for found in (additive([]), additive([44]), additive([5, 6, 7]), additive([5], shown=[6, 7])):
        assert not found.measured[0] and math.isfinite(found.full[0])
        assert math.isnan(found.comprehensiveness[0])
        assert found.estimates() == {
            "counterfactual/measured": {"value": 0.0, "low": None, "high": None, "count": 1}
        }
    many = counterfactual(
        Additive(),
        jnp.asarray(WEIGHTS),
        {},
        users=[1, 2, 3],
        items=[0, 0, 0],
        histories=[[5, 6, 7], [5, 6], [9, 7, 6]],
        cited=[[5], [], [7, 44]],
        mesh=tiny.mesh(),
    )
    figures = many.estimates(resamples=50)
    assert figures["counterfactual/measured"]["value"] == pytest.approx(2 / 3)
    for name, values in (
        ("comprehensiveness", many.comprehensiveness),
        ("sufficiency", many.sufficiency),
        ("fall", many.full - many.without_cited),
    ):
        entry = figures[f"counterfactual/{name}"]
        assert entry["value"] == pytest.approx(values[[0, 2]].mean()) and entry["count"] == 2
        assert entry["low"] <= entry["value"] <= entry["high"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(users=[]), "at least one pair"),
        (dict(cited=[]), r"one user, item, history .* \[0, 1\]"),
        (dict(shown=[[1], [2]]), "one user, item"),
        (dict(draws=0), "draws=0 must be positive"),
    ],
)
def test_mistakes(change, message):
    given = dict(users=[1], items=[0], histories=[[1, 2]], cited=[[1]])
    with pytest.raises(UserError, match=message):
        counterfactual(Additive(), jnp.asarray(WEIGHTS), {}, mesh=tiny.mesh(), **(given | change))


def test_popularity_has_no_user_side():
    model = recommenders.create("popularity", {}, num_users=USERS, num_items=ITEMS)
    train = tiny.data().split.train
    frozen = model.frozen(train.user, train.item).arrays
    with pytest.raises(UserError, match="Popularity scores every user alike"):
        counterfactual(
            model,
            {},
            frozen,
            users=[1],
            items=[0],
            histories=[[1, 2]],
            cited=[[1]],
            mesh=tiny.mesh(),
        )


# Against loops ---------------------------------------------------------------------------------


@functools.cache
def trained(name):
    """A recommender with random parameters, and pairs with drawn citations."""
    model = recommenders.create(name, tiny.MODELS[name], num_users=USERS, num_items=ITEMS)
    train = tiny.data().split.train
    frozen = model.frozen(train.user, train.item).arrays
    params = nn.unbox(model.init(jax.random.key(4)))
    params = jax.tree.map(lambda p: np.asarray(3.0 * p), params)  # so that scores differ
    grouped = Histories.of([train], USERS)
    rng = np.random.default_rng(2)
    users = [user for user in range(USERS) if grouped.lengths[user] >= 4][:9]
    histories = [grouped.items[grouped.start[u] : grouped.start[u + 1]] for u in users]
    items = [int(rng.choice(np.setdiff1d(np.arange(ITEMS), past))) for past in histories]
    shown = [past[-6:] for past in histories]
    cited = [rng.choice(s, int(rng.integers(1, 3)), replace=False) for s in shown]
    cited[4] = np.array([], int)
    return (
        model,
        params,
        frozen,
        dict(users=users, items=items, histories=histories, shown=shown, cited=cited),
    )


def split(model, tree, mesh):
    """Tables over the devices by rows, all else whole."""
    rows = [128, 64]

    def shardings(leaf):
        leaf = np.asarray(leaf)
        by_rows = leaf.ndim == 2 and leaf.shape[0] in rows
        return sharding(mesh, "table_rows", None) if by_rows else sharding(mesh)

    return put_sharded(tree, jax.tree.map(shardings, tree))


@functools.cache
def measured(name, devices=1):
    model, params, frozen, pairs = trained(name)
    mesh = tiny.mesh(devices)
    with use_mesh(mesh):
        placed = split(model, params, mesh), split(model, dict(frozen), mesh)
    return counterfactual(model, *placed, **pairs, mesh=mesh, draws=3, seed=7)


def loop_log_p(model, params, frozen, user, history, item, seen):
    """One history at a time, in float64 where it is ours."""
    tables = model.tables(params, frozen)
    table = np.asarray(tables.item, np.float64)[:ITEMS]
    if model.history_length:
        kept = np.zeros((1, model.history_length), np.int32)
        last = history[-model.history_length :]
        kept[0, : len(last)] = last
        batch = dict(user=np.array([user]), history=kept, length=np.array([len(last)]))
        run = jax.jit(type(model).user_state, static_argnums=0)
        state = np.asarray(run(model, params, tables, batch), np.float64)[0]
    else:
        rows = np.asarray(tables.user, np.float64)[:USERS]
        covariance = np.cov(rows.T, bias=True)
        covariance += 1e-3 * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        precision = np.linalg.inv(covariance)

        def objective(u):
            scores = table @ u
            away = u - rows.mean(axis=0)
            chance = np.exp(scores - logsumexp(scores))
            value = sum(scores[i] for i in history) - len(history) * logsumexp(scores)
            slope = sum((table[i] for i in history), 0.0) - len(history) * chance @ table
            return -(value - 0.5 * away @ precision @ away), -(slope - precision @ away)

        state = minimize(objective, rows.mean(axis=0), jac=True, method="BFGS", tol=1e-9).x
    scores = table @ state
    candidates = [i for i in range(ITEMS) if i == item or i not in set(seen.tolist())]
    return scores[item] - logsumexp(scores[candidates])


@pytest.mark.parametrize("name", ["sasrec", "bpr", "lightgcn"])
def test_log_probabilities_against_a_loop(name):
    model, params, frozen, pairs = trained(name)
    found = measured(name)
    assert found.measured.tolist() == [True] * 4 + [False] + [True] * 4
    assert max(len(past) for past in pairs["histories"]) > 9  # longer than SASRec's window
    for row in range(5):
        user, item, past = (pairs[key][row] for key in ("users", "items", "histories"))
        log_p = functools.partial(loop_log_p, model, params, frozen, user, item=item, seen=past)
        close = dict(abs=2e-3)
        assert found.full[row] == pytest.approx(log_p(past), **close)
        if row == 4:
            continue
        cited = set(pairs["cited"][row].tolist())
        without = np.array([i for i in past if i not in cited])
        only = np.array([i for i in past if i in cited])
        assert found.without_cited[row] == pytest.approx(log_p(without), **close)
        assert found.only_cited[row] == pytest.approx(log_p(only), **close)
        if name == "bpr" and row < 2:
            others = [i for i in pairs["shown"][row] if i not in cited]
            drops = [
                log_p(np.array([i for i in past if i not in drop]))
                for drop in itertools.combinations(others, len(cited))
            ]
            assert min(drops) - 2e-3 <= found.without_others[row] <= max(drops) + 2e-3


@pytest.mark.parametrize("name", ["sasrec", "bpr"])
def test_eight_devices_do_what_one_does(name):
    one, eight = measured(name), measured(name, 8)
    for field in dataclasses.fields(one):
        np.testing.assert_allclose(
            getattr(eight, field.name), getattr(one, field.name), atol=1e-4, err_msg=field.name
        )


def test_draws_depend_on_the_pair_alone():
    model, params, frozen, pairs = trained("sasrec")
    part = {key: values[5:7] for key, values in pairs.items()}
    alone = counterfactual(model, params, frozen, **part, mesh=tiny.mesh(), draws=3, seed=7)
    np.testing.assert_allclose(
        alone.without_others, measured("sasrec").without_others[5:7], atol=1e-5
    )
    other = counterfactual(model, params, frozen, **part, mesh=tiny.mesh(), draws=3, seed=8)
    assert np.abs(other.without_others - alone.without_others).max() > 1e-4


@pytest.mark.parametrize("block", [5, 64, 1 << 16])
@pytest.mark.parametrize("devices", [1, 8])
def test_log_probs_in_blocks(block, devices):
    rng = np.random.default_rng(0)
    state, table = rng.normal(size=(7, 3)), rng.normal(size=(128, 3)) * 4
    state, table = state.astype(np.float32), table.astype(np.float32)
    seen = np.array([rng.permutation(ITEMS)[:20] for _ in range(7)], np.int32)
    seen[:, 15:] = -1
    seen[0] = np.arange(20)
    target = np.array([60, *seen[1:4, 0], 0, 1, 2], np.int32)
    scores = state.astype(np.float64) @ table[:ITEMS].astype(np.float64).T
    mesh = tiny.mesh(devices)
    with use_mesh(mesh):
        placed = put_sharded(table, sharding(mesh, "table_rows", None))
        found = jax.jit(
            functools.partial(
                target_log_probs,
                score=lambda s, t: jnp.einsum("bd,id->bi", s, t),
                num_items=ITEMS,
                mesh=mesh,
                block=block,
            )
        )(state, placed, seen, target)
    for row in range(7):
        left = [i for i in range(ITEMS) if i not in seen[row] or i == target[row]]
        right = scores[row, target[row]] - logsumexp(scores[row, left])
        assert float(found[row]) == pytest.approx(right, abs=2e-5)


def test_fold_in_is_the_most_probable_user():
    """Long, empty and repeated histories; padding rows of the table must not count."""
    rng = np.random.default_rng(1)
    table = (2.5 * rng.normal(size=(64, 5))).astype(np.float32)
    table[ITEMS:] = 50.0
    users = rng.normal(size=(64, 5)).astype(np.float32) @ np.diag([2, 1, 0.5, 0.1, 0]) + 0.5
    prior = user_prior(users.astype(np.float32), 40)
    np.testing.assert_allclose(prior.mean, users[:40].mean(axis=0), atol=1e-6)
    history = np.full((4, 30), -1, np.int32)
    history[1, :30] = rng.integers(0, ITEMS, 30)
    history[2, :3] = 7
    history[3, [0, 4]] = [9, 11]
    found = np.asarray(jax.jit(fold_in, static_argnums=2)(table, history, ITEMS, prior), np.float64)
    np.testing.assert_allclose(found[0], prior.mean, atol=1e-5)
    precision, mean = (np.asarray(p, np.float64) for p in (prior.precision, prior.mean))
    kept = table[:ITEMS].astype(np.float64)
    for row in range(4):
        chosen = history[row][history[row] >= 0]
        scores = kept @ found[row]
        chance = np.exp(scores - logsumexp(scores))
        slope = kept[chosen].sum(axis=0) - len(chosen) * chance @ kept
        pull = precision @ (found[row] - mean)
        np.testing.assert_allclose(slope, pull, atol=2e-3 * max(1.0, np.abs(pull).max()))


def test_users_all_alike_still_have_a_prior():
    prior = user_prior(np.ones((64, 5), np.float32), 40)
    assert isinstance(prior, Prior) and np.isfinite(np.asarray(prior.precision)).all()
    np.testing.assert_array_equal(prior.mean, np.ones(5))
