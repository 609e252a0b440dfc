"""Ranks, top-k lists and the ranking evaluator against loops over users and items."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax import recommenders
from xrec_jax.core.errors import UserError
from xrec_jax.data.dataset import Interactions
from xrec_jax.data.histories import Histories
from xrec_jax.evaluation.ranking.evaluator import RankingEvaluator, distinct, recommend
from xrec_jax.evaluation.ranking.ranks import target_ranks, top_k
from xrec_jax.parallel.mesh import put_replicated, put_sharded, sharding, use_mesh

ROWS, DIM = 128, 3
MESHES = {"1": None, "8": (8, 1, 1), "2x2x2": (8, 2, 2)}


def score(state, table):
    return jnp.einsum("bd,id->bi", state, table)


@functools.cache
def case(num_items, seed=0):
    """Scores that tie often: few distinct values; padding rows would score highest."""
    rng = np.random.default_rng(seed)
    batch = 24
    state = rng.integers(-1, 3, (batch, DIM)).astype(np.float32) / 2
    table = rng.integers(-2, 3, (ROWS, DIM)).astype(np.float32) / 4
    table[num_items:] = 99.0
    state[:2] = 0.0  # every item ties
    table[[3, num_items - 2]] = np.nan
    table[5] = -np.inf
    state[2] = np.nan
    seen, target = np.full((batch, 50), -1, np.int32), np.full((batch, 4), -1, np.int32)
    for b in range(batch):
        kept = rng.choice(num_items, 4, replace=False)[: b % 4 + 1]
        target[b, : len(kept)] = kept
        masked = rng.choice(num_items, min(b * 2, num_items), replace=False)
        seen[b, rng.choice(50, len(masked), replace=False)] = masked
    target[9, 0] = 3
    seen[4, :3], seen[4, 3:], target[4, :1] = [1, 2, 0], -1, [2]
    with np.errstate(invalid="ignore"):
        scores = np.einsum("bd,id->bi", state, table[:num_items])
    return state, table, seen, target, scores


def naive_rank(scores, seen, targets, position):
    """Items that do not score lower, among the unseen and among all."""
    target = targets[position]
    masked = unmasked = 1
    for item, value in enumerate(scores):
        if item == target or value < scores[target]:
            continue
        if item in targets:
            if value == scores[target] and targets.index(item) > position:
                continue
        elif item not in seen:
            masked += 1
            unmasked += 1
            continue
        unmasked += 1
        masked += item in targets
    return masked, unmasked


def place(mesh, table, *arrays):
    if mesh is None:
        return table, *arrays
    split = put_sharded(table, sharding(mesh, "table_rows", None))
    return split, *(put_replicated(a, mesh) for a in arrays)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(
    ("num_items", "block"), [(61, 1 << 16), (61, 7), (61, 1), (128, 16), (77, 5), (101, 64)]
)
def test_ranks_against_a_loop(mesh, num_items, block):
    state, table, seen, target, scores = case(num_items)
    mesh = MESHES[mesh] and tiny.mesh(*MESHES[mesh])
    run = jax.jit(
        functools.partial(target_ranks, score=score, num_items=num_items, mesh=mesh, block=block)
    )
    split, *arrays = place(mesh, table, state, seen, target)
    ranks = jax.block_until_ready(run(arrays[0], split, *arrays[1:]))
    for b in range(len(target)):
        targets = [int(t) for t in target[b] if t >= 0]
        for position in range(len(targets)):
            expected = naive_rank(scores[b], set(seen[b].tolist()), targets, position)
            found = int(ranks.masked[b, position]), int(ranks.unmasked[b, position])
            assert found == expected, (b, position)


def test_ranks_hand_worked():
    scores = np.array([[3.0, 1.0, 2.0, 2.0, 2.0, np.nan]], np.float32)
    find = functools.partial(
        target_ranks,
        scores,
        np.zeros((6, 1), np.float32),
        num_items=6,
        score=lambda state, rows: state,
    )
    seen = np.array([[0, -1, 2]], np.int32)
    ranks = find(seen, np.array([[4]], np.int32))
    # Ahead of item 4: item 0 (seen), ties 2 (seen) and 3, and NaN.
    assert (ranks.unmasked.tolist(), ranks.masked.tolist()) == ([[5]], [[3]])
    ranks = find(seen, np.array([[1, 4, 3]], np.int32))
    assert (ranks.unmasked.tolist(), ranks.masked.tolist()) == ([[6, 4, 5]], [[4, 2, 3]])
    ranks = find(seen, np.array([[0, 5]], np.int32))  # a target among the seen is not masked
    assert (ranks.unmasked.tolist(), ranks.masked.tolist()) == ([[2, 6]], [[2, 5]])
    assert ranks.scored.tolist() == [[True, False]]


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("num_items", "k", "block"), [(61, 5, 1 << 16), (61, 70, 16), (77, 12, 5)])
def test_top_k_against_sorting(mesh, num_items, k, block):
    state, table, seen, _, scores = case(num_items, seed=1)
    table = np.where(np.isfinite(table), table, 0.25)
    state = np.where(np.isfinite(state), state, 0.5)
    seen = seen.copy()
    seen[0, : min(50, num_items - 3)] = np.arange(min(50, num_items - 3))
    scores = np.einsum("bd,id->bi", state, table[:num_items])
    mesh = MESHES[mesh] and tiny.mesh(*MESHES[mesh])
    run = jax.jit(
        functools.partial(top_k, score=score, num_items=num_items, mesh=mesh, block=block, k=k)
    )
    split, *arrays = place(mesh, table, state, seen)
    items, values = map(np.asarray, jax.block_until_ready(run(arrays[0], split, arrays[1])))
    assert items.shape == values.shape == (len(state), k) and items.dtype == np.int32
    for b in range(len(state)):
        unseen = [i for i in range(num_items) if i not in set(seen[b].tolist())]
        best = sorted(unseen, key=lambda i: (-scores[b, i], i))[:k]
        missing = k - len(best)
        assert items[b].tolist() == best + [-1] * missing
        assert values[b].tolist() == [*scores[b, best].tolist(), *[-math.inf] * missing]
    assert k < 20 or (items == -1).any()


def test_distinct():
    items = np.array([[3, -1, 3, 0, 3], [-1, -1, -1, -1, -1], [4, 3, 2, 1, 0]], np.int32)
    found = [sorted(i for i in row if i >= 0) for row in distinct(items).tolist()]
    assert found == [[0, 3], [], [0, 1, 2, 3, 4]]


def pick(kind, rng):
    """Random events of the tiny world's users: none for some, repeats for others."""
    count = {"seen": 700, "later": 150, "held_out": 160}[kind]
    first = 0 if kind == "held_out" else 4
    user = np.sort(rng.integers(first, 60, count)).astype(np.int32)
    return Interactions(user, np.minimum(rng.zipf(1.4, count), 61).astype(np.int32) - 1)


@functools.cache
def world(name):
    """A model with random parameters, events, and every user's naive scores."""
    rng = np.random.default_rng(11)
    model = recommenders.create(name, tiny.MODELS[name], num_users=75, num_items=61)
    params = jax.jit(lambda key: nn.unbox(model.init(key)))(jax.random.key(1))
    params = jax.tree.map(lambda p: p + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)
    seen, later, held_out = (pick(kind, rng) for kind in ("seen", "later", "held_out"))
    past = [[] for _ in range(75)]
    for part in (seen, later):
        for u, i in zip(part.user, part.item, strict=True):
            past[u].append(int(i))
    if name == "bpr":
        scores = params["user"]["embedding"][:75] @ params["item"]["embedding"][:61].T
    else:
        length = model.history_length
        # A user without history has seen nothing: row 63 is padding, here a vector of zeros.
        history = np.array([(p[-length:] + [63] * length)[:length] for p in past], np.int32)
        table = params["item"]["embedding"].at[63].set(0.0)
        zeroed = {**params, "item": {"embedding": table}}
        states = jax.jit(lambda p, h: model.net.apply({"params": p}, h, None))(zeroed, history)
        last = [max(min(len(p), length), 1) - 1 for p in past]
        scores = states[np.arange(75), np.array(last)] @ params["item"]["embedding"][:61].T
    return model, params, (seen, later), held_out, past, np.asarray(scores, np.float64)


def naive_metrics(past, held_out, scores, k):
    """`{user: (recall, hit, ndcg, mrr)}` with and without masking, from scratch."""
    found = {}
    for user in sorted(set(held_out.user.tolist())):
        targets = sorted(set(held_out.item[held_out.user == user].tolist()))
        rows = []
        for mask in (True, False):
            hidden = set(past[user]) - set(targets) if mask else set()
            order = sorted(
                (i for i in range(61) if i not in hidden), key=lambda i: -scores[user, i]
            )
            ranks = [order.index(t) + 1 for t in targets]
            near = [r for r in ranks if r <= k]
            ideal = sum(1 / math.log2(1 + r) for r in range(1, min(k, len(ranks)) + 1))
            rows.append(
                (
                    len(near) / len(ranks),
                    float(bool(near)),
                    sum(1 / math.log2(1 + r) for r in near) / ideal,
                    max((1 / r for r in near), default=0.0),
                )
            )
        found[user] = rows
    return found


@functools.cache
def evaluated(name, users_per_batch=4096, devices=1):
    model, params, seen, held_out, _, _ = world(name)
    mesh = tiny.mesh(devices)
    evaluator = RankingEvaluator(
        model, seen=seen, held_out=held_out, mesh=mesh, ks=(3, 10), users_per_batch=users_per_batch
    )
    with use_mesh(mesh):
        split = sharding(mesh, "table_rows", None)
        params = jax.tree_util.tree_map_with_path(
            lambda path, p: put_sharded(p, split if "embedding" in str(path) else sharding(mesh)),
            params,
        )
        first = evaluator(params, {})
        again = evaluator(params, {})  # from batches kept on the devices
    assert first.means("g") == again.means("g")
    return first


@pytest.mark.parametrize("name", ["bpr", "sasrec"])
def test_evaluator_against_a_loop(name):
    _, _, _, held_out, past, scores = world(name)
    found = evaluated(name)
    for k in (3, 10):
        expected = naive_metrics(past, held_out, scores, k)
        assert found.users.tolist() == list(expected)
        for column, metric in enumerate(("recall", "hit", "ndcg", "mrr")):
            for row, values in enumerate((found.masked, found.unmasked)):
                wanted = [expected[user][row][column] for user in expected]
                np.testing.assert_allclose(values[f"{metric}@{k}"], wanted, rtol=1e-12)
    means = found.means("valid")
    assert means["valid/ndcg@10"] == pytest.approx(found.masked["ndcg@10"].mean())
    assert means["valid_unmasked/ndcg@10"] == pytest.approx(found.unmasked["ndcg@10"].mean())
    assert len(means) == 16
    # The case is hard enough: users with nothing seen, and users with more than the model reads.
    lengths = [len(past[user]) for user in found.users]
    assert min(lengths) == 0 and max(lengths) > 9


@pytest.mark.parametrize("name", ["bpr", "sasrec"])
@pytest.mark.parametrize(("users_per_batch", "devices"), [(7, 1), (13, 8), (4096, 8)])
def test_evaluator_does_not_depend_on_batches(name, users_per_batch, devices):
    whole, parts = evaluated(name), evaluated(name, users_per_batch, devices)
    np.testing.assert_array_equal(parts.users, whole.users)
    for first, second in ((parts.masked, whole.masked), (parts.unmasked, whole.unmasked)):
        for metric, values in first.items():
            np.testing.assert_array_equal(values, second[metric])


def test_wide_histories_are_ranked_in_buckets(monkeypatch):
    monkeypatch.setattr("xrec_jax.evaluation.ranking.planning.CELLS", 2000)
    monkeypatch.setattr("xrec_jax.evaluation.ranking.evaluator.CACHED_CELLS", 0)
    for metric, values in evaluated.__wrapped__("bpr").masked.items():
        np.testing.assert_array_equal(values, evaluated("bpr").masked[metric])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_figures_of_scores_that_are_not_numbers_are_refused(bad):
    """Ranks alone would say that the recommender is merely the worst there is."""
    model, params, seen, held_out, _, _ = world("bpr")
    params = jax.tree.map(lambda p: p.at[3].set(bad), jax.tree.map(jnp.asarray, params))
    with use_mesh(tiny.mesh()), pytest.raises(UserError, match=r"scores of [\d,]+ of [\d,]+ held"):
        RankingEvaluator(model, seen=seen, held_out=held_out, mesh=tiny.mesh())(params, {})


def test_nothing_held_out():
    model, _, seen, held_out, _, _ = world("bpr")
    with pytest.raises(UserError, match="no held-out event"):
        RankingEvaluator(
            model, seen=seen, held_out=held_out.take(np.zeros(160, bool)), mesh=tiny.mesh()
        )


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("k", [4, 100])
def test_recommend_lists_the_best_unseen(monkeypatch, devices, k):
    monkeypatch.setattr(
        "xrec_jax.evaluation.ranking.planning.CELLS", 61 * 16
    )  # batches of 16 users
    model, params, seen, _, past, scores = world("bpr")
    users = np.array([74, 3, 3, *range(20, 55)], np.int32)
    mesh = tiny.mesh(devices)
    with use_mesh(mesh):
        split = jax.tree.map(lambda _: sharding(mesh, "table_rows", None), params)
        parts = list(
            recommend(
                model,
                put_sharded(params, split),
                {},
                history=Histories.of(seen, 75),
                users=users,
                k=k,
                mesh=mesh,
            )
        )
    assert len(parts) == 3
    assert np.concatenate([part.users for part in parts]).tolist() == users.tolist()
    items = np.concatenate([part.items for part in parts])
    values = np.concatenate([part.scores for part in parts])
    assert items.shape == (38, min(k, 61))
    for row, user in enumerate(users):
        unseen = [i for i in range(61) if i not in past[user]]
        best = sorted(unseen, key=lambda i: -scores[user, i])[:k]
        assert items[row].tolist() == best + [-1] * (min(k, 61) - len(best))
        np.testing.assert_allclose(
            values[row, : len(best)], scores[user, best], rtol=1e-5, atol=1e-6
        )
