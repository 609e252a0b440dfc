"""Reward parts against naive loops and cases worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.joint import rewards
from xrec_jax.joint.rewards import Scored, base, total
from xrec_jax.parallel.mesh import sharding, use_mesh

VOCABULARY = 23


def scored(n=7, seed=0, **given):
    rng = np.random.default_rng(seed)
    most, long = 9, 13
    length = rng.integers(1, most + 1, n)
    prompt_length = rng.integers(1, long + 1, n)
    fields = dict(
        log_prob=rng.normal(-3.3, 1.1, n).astype(np.float32),
        log_prob_null=rng.normal(-3.7, 0.9, n).astype(np.float32),
        log_prob_shuffled=rng.normal(-3.5, 0.8, n).astype(np.float32),
        rank=rng.integers(1, 30, n).astype(np.int32),
        rank_null=rng.integers(1, 30, n).astype(np.int32),
        rank_shuffled=rng.integers(1, 30, n).astype(np.int32),
        length=length.astype(np.int32),
        ended=rng.random(n) < 0.6,
        answer=rng.integers(0, VOCABULARY, (n, most)).astype(np.int32),
        answer_mask=np.arange(most) < length[:, None],
        prompt=rng.integers(0, VOCABULARY, (n, long)).astype(np.int32),
        prompt_mask=np.arange(long) < prompt_length[:, None],
        content=rng.random(VOCABULARY) < 0.5,
        group=rng.integers(-1, 3, n).astype(np.int32),
        judge=rng.random(n).astype(np.float32),
    )
    fields |= given
    judge = fields.pop("judge")
    fields["evidence"] = {} if judge is None else {"judge": jnp.asarray(judge)}
    return Scored(
        **{n: jnp.asarray(v) if isinstance(v, np.ndarray) else v for n, v in fields.items()}
    )


def part(name, rows, **options):
    _, parts = total(rows, {name: {"weight": 0.37, **options}})
    assert parts[name].dtype == jnp.float32
    return np.asarray(parts[name])


@pytest.fixture
def own():
    """Parts that a test registers are gone after it."""
    before = dict(base._REGISTRY)
    yield
    base._REGISTRY.clear()
    base._REGISTRY.update(before)


# The sum


def test_score_is_the_weighted_sum_and_is_never_truncated():
    rows = scored()
    weights = {"log_prob_gain": 0.25, "judge": -1.5, "length": {"weight": 0.125, "target": 3}}
    score, parts = total(rows, weights)
    assert list(parts) == list(weights)
    expected = 0.25 * parts["log_prob_gain"] - 1.5 * parts["judge"] + 0.125 * parts["length"]
    np.testing.assert_allclose(score, expected, rtol=1e-6)
    assert score.dtype == jnp.float32
    assert np.all(np.asarray(score) != np.round(score))


def test_under_jit_and_from_a_config_it_is_the_same():
    rows = scored(n=11, seed=4)
    weights = {name: 0.3 + 0.1 * place for place, name in enumerate(rewards.names())}
    eager = total(rows, weights)
    config = ConfigDict({"weights": weights}).weights
    jitted = jax.jit(lambda rows: total(rows, config))(rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), eager, jitted)
    assert set(eager[1]) == set(rewards.names())


def test_on_eight_devices_it_is_the_same():
    rows = scored(n=16, seed=3)
    weights = dict.fromkeys(rewards.names(), 0.3)
    mesh = tiny.mesh(8, 2)

    def put(leaf):
        axes = ("batch" if leaf.shape[0] == 16 else None, *(None,) * (leaf.ndim - 1))
        return jax.device_put(leaf, sharding(mesh, *axes))

    with use_mesh(mesh):
        split = jax.jit(lambda rows: total(rows, weights))(jax.tree.map(put, rows))
    assert len(split[0].sharding.device_set) == 8
    assert split[0].sharding.shard_shape((16,)) == (2,)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        total(rows, weights),
        split,
    )


def test_parts_of_weight_zero_are_not_computed(own):
    @rewards.register("broken")
    def broken(scored):
        raise AssertionError("computed")

    _, parts = total(scored(judge=None), {"log_prob_gain": 1, "broken": 0, "judge": 0.0})
    assert list(parts) == ["log_prob_gain"]


def test_what_a_round_logs():
    rows = scored()
    score, parts = total(rows, {"judge": 2.0, "ended": 0.5})
    made = rewards.metrics(score, parts)
    assert set(made) == {"reward/score", "reward/score_std", "reward/judge", "reward/ended"}
    assert made["reward/score_std"] == pytest.approx(np.std(np.asarray(score)), rel=1e-5)
    assert made["reward/judge"] == pytest.approx(
        np.mean(np.asarray(rows.need("judge"))) - 0.5, rel=1e-5
    )


# Mistakes


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"log_prob_gian": 1.0}, "did you mean 'log_prob_gain'"),
        ({"judge": math.nan}, "'judge': weight nan must be a finite number"),
        ({"judge": {"weight": math.inf}}, "'judge': weight inf"),
        ({"judge": True}, "'judge': weight True"),
        ({"judge": "1"}, "'judge': weight '1'"),
        ({"length": {"traget": 3}}, "no option 'traget'; did you mean 'target'"),
        ({"length": {"target": 3.5}}, "target=3.5 must be a whole number"),
        ({"length": {"cost": math.nan}}, "cost=nan must be a finite number"),
        ({"grounding": {"distinct": 1}}, "distinct=1 must be true or false"),
        ({"ndcg_gain": {"k": 0}}, "reward 'ndcg_gain': k=0 must be at least 1"),
        ({"length": {"tolerance": -1}}, "reward 'length': tolerance=-1 must not be negative"),
        ({"judge": 0.0}, "no part has a weight other than 0"),
        ({}, "no part has a weight other than 0"),
    ],
)
def test_wrong_weights(weights, words):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        total(scored(), weights)


def test_a_field_that_the_run_lacks():
    with pytest.raises(UserError, match="reward 'judge': needs 'judge' of the rollouts"):
        total(scored(judge=None), {"judge": 1.0})


def test_a_users_own_reward(own):
    @rewards.register("brief", limit=4)
    def brief(scored, limit):
        return -0.5 * (scored.need("length") > limit).astype(jnp.float32)

    assert rewards.options("brief") == {"limit": 4}
    assert rewards.get("brief") is brief
    rows = scored(length=jnp.array([4, 5, 6, 1, 9, 2, 3]))
    np.testing.assert_allclose(part("brief", rows), [0, -0.5, -0.5, 0, -0.5, 0, 0])
    np.testing.assert_allclose(part("brief", rows, limit=5), [0, 0, -0.5, 0, -0.5, 0, 0])


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (lambda rows: rows.length, r"int32\[7\]"),
        (lambda rows: rows.ended, r"bool\[7\]"),
        (lambda rows: rows.log_prob[:, None], r"float32\[7, 1\]"),
        (lambda rows: rows.log_prob.mean(), r"float32\[\]"),
        (lambda rows: rows.log_prob.astype(jnp.bfloat16), r"bfloat16\[7\]"),
    ],
)
def test_a_users_own_reward_of_another_shape_or_type(own, value, got):
    rewards.register("mine")(value)
    with pytest.raises(UserError, match=rf"reward 'mine' gave {got}.*float32\[7\]"):
        total(scored(), {"mine": 1.0})


@pytest.mark.parametrize("value", [None, 0.5, [0.5] * 7])
def test_a_users_own_reward_that_is_no_array(own, value):
    rewards.register("mine")(lambda rows: value)
    with pytest.raises(UserError, match=r"reward 'mine' gave a .*, not an array"):
        total(scored(), {"mine": 1.0})


def test_options_that_a_function_does_not_take(own):
    with pytest.raises(UserError, match=r"reward 'odd'.*limit"):
        rewards.register("odd", limit=1)(lambda scored: scored.log_prob)
    assert "odd" not in rewards.names()


# The parts


def test_gains():
    rows = scored(
        log_prob=jnp.array([-1.25, -2.5]),
        log_prob_null=jnp.array([-1.5, -2.0]),
        log_prob_shuffled=jnp.array([-1.375, -3.0]),
    )
    np.testing.assert_array_equal(part("log_prob_gain", rows), [0.25, -0.5])
    np.testing.assert_array_equal(part("shuffled_gain", rows), [0.125, 0.5])


def test_ndcg_gain_by_hand():
    rank, null = jnp.array([1, 3, 10, 11, 2]), jnp.array([3, 1, 11, 10, 2])
    rows = scored(n=5, rank=rank, rank_null=null)
    tenth = 1 / math.log2(11)
    np.testing.assert_allclose(part("ndcg_gain", rows), [0.5, -0.5, tenth, -tenth, 0], rtol=1e-6)
    np.testing.assert_allclose(part("ndcg_gain", rows, k=2), [1, -1, 0, 0, 0], rtol=1e-6)


def test_length_by_hand():
    rows = scored(n=6, length=jnp.array([1, 7, 8, 12, 13, 20]))
    got = part("length", rows, target=10, tolerance=2, cost=0.3)
    np.testing.assert_allclose(got, [-2.1, -0.3, 0, 0, -0.3, -2.4], rtol=1e-6)


def test_ended_and_judge():
    rows = scored(n=3, ended=jnp.array([True, False, True]), judge=jnp.array([0.75, 0.1, 0.5]))
    np.testing.assert_array_equal(part("ended", rows), [0, -1, 0])
    np.testing.assert_allclose(part("judge", rows), [0.25, -0.4, 0], rtol=1e-6)


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_grounding_against_a_loop(seed, distinct):
    rows = scored(n=13, seed=seed)
    expected = []
    for i in range(13):
        real = np.asarray(rows.answer[i])[np.asarray(rows.answer_mask[i])]
        tokens = [t for t in real.tolist() if rows.content[t]]
        tokens = list(dict.fromkeys(tokens)) if distinct else tokens
        prompt = set(np.asarray(rows.prompt[i])[np.asarray(rows.prompt_mask[i])].tolist())
        expected.append(sum(t in prompt for t in tokens) / len(tokens) if tokens else 0.125)
    assert len(set(expected)) > 4
    got = part("grounding", rows, empty=0.125, distinct=distinct)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_padding_does_not_ground():
    rows = Scored(
        log_prob=jnp.zeros(2),
        answer=jnp.array([[4, 5, 6], [4, 9, 9]]),
        answer_mask=jnp.array([[1, 1, 0], [1, 0, 0]], bool),
        prompt=jnp.array([[4, 5], [9, 4]]),
        prompt_mask=jnp.array([[1, 0], [1, 0]], bool),
        content=jnp.ones(10, bool),
    )
    np.testing.assert_array_equal(part("grounding", rows), [0.5, 0])


def test_group_disparity_by_hand():
    # Means .5 and 1.5, their mean 1; the row alone in group 7 and those of none do not count.
    rows = scored(
        log_prob=jnp.array([0.25, 2.0, 9.0, 0.75, 1.0, 5.0]),
        log_prob_null=jnp.zeros(6),
        group=jnp.array([0, 4, 7, 0, 4, -1]),
    )
    # -(m_g - m) (gain - mean of the rest): .5 (.25 - .75), -.5 (2 - 1), ...
    expected = [0.5 * -0.5, -0.5 * 1.0, 0, 0.5 * 0.5, -0.5 * -1.0, 0]
    np.testing.assert_allclose(part("group_disparity", rows), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_group_disparity_against_a_loop(seed):
    rows = scored(n=17, seed=seed)
    gain = np.asarray(rows.log_prob, np.float64) - np.asarray(rows.log_prob_null, np.float64)
    members = {g: np.flatnonzero(np.asarray(rows.group) == g) for g in range(3)}
    members = {g: rows for g, rows in members.items() if len(rows) > 1}
    overall = np.mean([gain[rows].mean() for rows in members.values()])
    expected = np.zeros(17)
    for mine in members.values():
        for i in mine:
            rest = [j for j in mine if j != i]
            expected[i] = -(gain[mine].mean() - overall) * (gain[i] - gain[rest].mean())
    np.testing.assert_allclose(part("group_disparity", rows), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("group", [[-1] * 4, [0, 1, 2, 3], [2] * 4])
def test_no_disparity_without_two_groups(group):
    rows = scored(n=4, group=jnp.array(group))
    np.testing.assert_allclose(part("group_disparity", rows), np.zeros(4), atol=1e-7)


def test_group_disparity_brings_gains_together():
    """Policy gradient on two users, each with a good text or a bad one; the first is favoured."""
    values = jnp.array([[0.0, 2.0], [0.0, 0.75]])  # gain of a text, by group
    logits = jnp.zeros((2, 2))
    group = jnp.repeat(jnp.arange(2), 64)

    @jax.jit
    def step(logits, key):
        drawn = jax.random.categorical(key, logits[group])
        rows = Scored(values[group, drawn], jnp.zeros(128), group=group)
        score, _ = total(rows, {"group_disparity": 1.0})

        def objective(logits):
            chosen = jax.nn.log_softmax(logits[group])[jnp.arange(128), drawn]
            return jnp.mean(score * chosen)

        return logits + 4.0 * jax.grad(objective)(logits)

    def gap(logits):
        means = (jax.nn.softmax(logits) * values).sum(1)
        return float(means[0] - means[1])

    before = gap(logits)
    for key in jax.random.split(jax.random.key(1), 150):
        logits = step(logits, key)
    assert before == pytest.approx(0.625)
    assert abs(gap(logits)) < 0.1
