"""Schedules and optimisers against values computed by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax import defaults
from xrec_jax.core.errors import UserError
from xrec_jax.training.optimizers import optimizer, schedule


def config(**values):
    """The training defaults with other values."""
    made = defaults.training_defaults()
    made.update(values)
    return made


def updates(rule, *gradients, params=(1.0, -2.0)):
    """What a rule adds to fixed `params`, gradient after gradient."""
    params = jnp.array(params)
    state = rule.init(params)
    out = []
    for gradient in gradients:
        change, state = rule.update(jnp.array(gradient), state, params)
        out.append(np.asarray(change, np.float64))
    return out


# Schedules over 10 steps with a peak of 0.8; warm-up 0.4 is 4 steps, the decay takes the other 6.
COSINE = [0.8 * (0.5 * (1 + math.cos(math.pi * t / 6)) * 0.75 + 0.25) for t in range(7)]
SCHEDULES = {
    "constant": (dict(), {0: 0.8, 5: 0.8, 10: 0.8}),
    "constant with warm-up": (dict(warmup=0.4), {0: 0, 1: 0.2, 3: 0.6, 4: 0.8, 10: 0.8}),
    "linear": (dict(schedule="linear"), {0: 0.8, 5: 0.4, 10: 0.0, 12: 0.0}),
    "linear to a share": (
        dict(schedule="linear", final_rate=0.25),
        {0: 0.8, 5: 0.5, 10: 0.2, 12: 0.2},
    ),
    "linear with warm-up": (
        dict(schedule="linear", warmup=0.4),
        {0: 0, 2: 0.4, 4: 0.8, 7: 0.4, 10: 0},
    ),
    "cosine": (dict(schedule="cosine"), {0: 0.8, 5: 0.4, 10: 0.0, 12: 0.0}),
    "cosine with warm-up to a share": (
        dict(schedule="cosine", warmup=0.4, final_rate=0.25),
        {0: 0, 2: 0.4, **{4 + t: value for t, value in enumerate(COSINE)}, 12: 0.2},
    ),
}


@pytest.mark.parametrize("case", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedule(case):
    values, expected = case
    rate = schedule(config(learning_rate=0.8, **values), 10)
    found = {step: float(rate(step)) for step in expected}
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("warmup", [1.0, -0.1, float("nan")])
def test_warmup_is_a_share(warmup):
    with pytest.raises(UserError, match="warmup="):
        schedule(config(warmup=warmup), 10)


def test_the_optimizer_follows_its_schedule():
    rule = optimizer(config(optimizer="sgd", b1=0.0, learning_rate=0.8, schedule="linear"), 4)
    found = updates(rule, *[[1.0, 1.0]] * 5)
    np.testing.assert_allclose([u[0] for u in found], [-0.8, -0.6, -0.4, -0.2, 0.0], atol=1e-7)


def test_adam():
    """Two steps by hand: moments, bias correction, epsilon outside the root."""
    rule = optimizer(config(learning_rate=0.1, b1=0.8, b2=0.9), 10)
    gradients = np.array([[0.5, -2.0], [1.0, 0.25]])
    mean = np.zeros(2)
    square = np.zeros(2)
    for t, (gradient, found) in enumerate(zip(gradients, updates(rule, *gradients)), start=1):  # noqa: B905
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        corrected = (mean / (1 - 0.8**t)) / (np.sqrt(square / (1 - 0.9**t)) + 1e-8)
        np.testing.assert_allclose(found, -0.1 * corrected, rtol=1e-5)


def test_adamw_decays_the_parameters_and_adam_does_not():
    gradient = [0.0, 0.0]
    decayed = optimizer(config(optimizer="adamw", learning_rate=0.1, weight_decay=0.5), 10)
    np.testing.assert_allclose(updates(decayed, gradient)[0], [-0.05, 0.1], rtol=1e-6)
    plain = optimizer(config(optimizer="adam", learning_rate=0.1, weight_decay=0.5), 10)
    np.testing.assert_array_equal(updates(plain, gradient)[0], [0.0, 0.0])


def test_embedding_tables_decay_apart():
    params = {"item": {"embedding": jnp.array([1.0, -2.0])}, "q": jnp.array([4.0])}
    gradient = jax.tree.map(jnp.zeros_like, params)

    def decayed(**values):
        rule = optimizer(config(optimizer="adamw", learning_rate=0.1, **values), 10)
        change, _ = rule.update(gradient, rule.init(params), params)
        return np.concatenate([change["item"]["embedding"], change["q"]])

    both = decayed(weight_decay=0.5)
    np.testing.assert_allclose(both, [-0.05, 0.1, -0.2], rtol=1e-6)
    apart = decayed(weight_decay=0.5, embedding_weight_decay=0.0)
    np.testing.assert_allclose(apart, [0.0, 0.0, -0.2], rtol=1e-6)
    np.testing.assert_allclose(decayed(embedding_weight_decay=0.25), [-0.025, 0.05, 0.0], rtol=1e-6)
    # With a gradient it is Adam's step and the decay, as without the split.
    gradient = jax.tree.map(lambda p: 0.3 * p, params)
    np.testing.assert_allclose(
        decayed(weight_decay=0.5, embedding_weight_decay=0.5), decayed(weight_decay=0.5), rtol=1e-6
    )
    with pytest.raises(UserError, match=r"embedding_weight_decay=-0\.1 must not be negative"):
        decayed(embedding_weight_decay=-0.1)


def test_the_decay_of_adamw_is_what_the_config_says():
    """Libraries disagree on a default (optax 1e-4, torch 1e-2); ours is 0 and always passed on."""
    rule = optimizer(config(optimizer="adamw", learning_rate=0.1), 10)
    np.testing.assert_array_equal(updates(rule, [0.0, 0.0])[0], [0.0, 0.0])


def test_sgd_has_momentum_b1():
    rule = optimizer(config(optimizer="sgd", b1=0.5, learning_rate=0.1), 10)
    found = updates(rule, [1.0, 0.0], [1.0, 2.0])
    np.testing.assert_allclose(found, [[-0.1, 0.0], [-0.15, -0.2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("gradient", "expected"), [([3.0, 4.0], [-0.6, -0.8]), ([0.3, 0.4], [-0.3, -0.4])]
)
def test_clipping_bounds_the_global_norm(gradient, expected):
    rule = optimizer(config(optimizer="sgd", b1=0.0, learning_rate=1.0, clip_norm=1.0), 10)
    np.testing.assert_allclose(updates(rule, gradient)[0], expected, rtol=1e-6)


def test_without_clipping_the_gradient_is_untouched():
    rule = optimizer(config(optimizer="sgd", b1=0.0, learning_rate=1.0), 10)
    np.testing.assert_allclose(updates(rule, [30.0, 40.0])[0], [-30.0, -40.0], rtol=1e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(optimizer="adamm"), r"optimizer='adamm'.*did you mean 'adam'"),
        (dict(schedule="cosin"), r"schedule='cosin'.*did you mean 'cosine'"),
        (dict(learning_rate=-1e-3), r"learning_rate=-0.001 must not be negative"),
        (dict(learning_rate=float("nan")), r"learning_rate=nan"),
        (dict(clip_norm=-1.0), r"clip_norm=-1.0"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(UserError, match=message):
        optimizer(config(**values), 10)
