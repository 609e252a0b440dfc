"""KL estimates against exact sums, and the controller against values computed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from xrec_jax.core.errors import UserError
from xrec_jax.training.rl import kl

LOGITS = np.random.default_rng(0).normal(size=(2, 7)) * 1.5
TEMPERATURES = (0.3, 0.7, 1.0, 1.7)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_the_mean_estimate_is_the_exact_kl(kind, temperature):
    """The expectation over a categorical distribution, as a sum over all it can draw."""
    log_p, log_q = log_softmax(LOGITS / temperature, axis=-1)
    exact = np.sum(np.exp(log_p) * (log_p - log_q))
    found = kl.estimate(jnp.asarray(log_p, "float32"), jnp.asarray(log_q, "float32"), kind=kind)
    assert exact > 0.3
    assert np.sum(np.exp(log_p) * np.asarray(found)) == pytest.approx(exact, rel=1e-5)


def test_k2_approaches_it_for_close_distributions():
    log_p, log_q = log_softmax(LOGITS[0]), log_softmax(LOGITS[0] + 0.01 * LOGITS[1])
    exact = np.sum(np.exp(log_p) * (log_p - log_q))
    with jax.enable_x64(True):
        found = kl.estimate(jnp.asarray(log_p), jnp.asarray(log_q), kind="k2")
        assert np.sum(np.exp(log_p) * np.asarray(found)) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("kind", kl.KINDS)
def test_equals_have_none_at_any_temperature(kind, temperature):
    log_p = jax.nn.log_softmax(jnp.asarray(LOGITS[0]) / temperature)
    assert np.all(np.asarray(kl.estimate(log_p, log_p, kind=kind)) == 0.0)


def test_which_are_never_negative():
    differences = jnp.linspace(-5, 5, 41)
    zeros = jnp.zeros(41)
    assert np.asarray(kl.estimate(differences, zeros, kind="k1")).min() == -5
    for kind in ("k2", "k3"):
        assert np.asarray(kl.estimate(differences, zeros, kind=kind)).min() == 0


def test_far_away_it_stays_finite():
    far = jnp.array([-1e4, 1e4])
    for kind in kl.KINDS:
        assert np.isfinite(kl.estimate(far, jnp.zeros(2), kind=kind)).all()
        assert np.isfinite(jax.grad(lambda x: kl.estimate(x, 0.0 * x, kind=kind).sum())(far)).all()  # noqa: B023


def test_half_precision_and_whole_numbers_come_out_as_float32():
    for dtype in ("bfloat16", "int32"):
        assert kl.estimate(jnp.ones(3, dtype), jnp.zeros(3, dtype)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (6.0, 0.2),  # on target
        (6.6, 0.202),  # a tenth too much: 1 + 0.1 * 0.1
        (5.7, 0.199),  # a twentieth too little
        (9.0, 0.204),  # half too much counts as a fifth
        (0.0, 0.196),  # so does all too little
    ],
)
def test_the_controller_moves_as_computed_by_hand(measured, expected):
    after = jax.jit(lambda state, kl_: kl.adapt(state, kl_, target=6.0))(
        kl.controller(0.2), measured
    )
    assert after.beta.dtype == jnp.float32
    assert float(after.beta) == pytest.approx(expected, rel=1e-6)


def test_the_controller_with_its_own_gain_and_limit():
    after = kl.adapt(kl.controller(0.5), 3.0, target=2.0, gain=0.3, limit=0.4)
    assert float(after.beta) == pytest.approx(0.5 * (1 + 0.3 * 0.4), rel=1e-6)
    after = kl.adapt(after, 1.5, target=2.0, gain=0.3, limit=0.4)
    assert float(after.beta) == pytest.approx(0.56 * (1 - 0.3 * 0.25), rel=1e-6)


def test_it_settles_where_the_kl_meets_the_target():
    """A policy whose KL is 1 / beta, and a target of 8."""
    state = kl.controller(1.0)
    for _ in range(200):
        state = kl.adapt(state, 1.0 / state.beta, target=8.0)
    assert float(state.beta) == pytest.approx(1 / 8, rel=1e-3)


def test_without_a_target_it_stays():
    state = kl.controller(0.05)
    assert kl.adapt(state, 100.0, target=0.0).beta is state.beta


def test_a_kl_that_is_not_a_number_is_not_hidden():
    assert np.isnan(kl.adapt(kl.controller(0.1), np.nan, target=1.0).beta)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kl.estimate(jnp.ones(1), jnp.ones(1), kind="k4"), "kind='k4'"),
        (lambda: kl.controller(-0.1), "beta=-0.1"),
        (lambda: kl.controller(float("nan")), "beta=nan"),
        (lambda: kl.adapt(kl.controller(0.1), 1.0, target=-1.0), "target=-1.0"),
        (lambda: kl.adapt(kl.controller(0.1), 1.0, target=1.0, gain=9.0), "gain=9.0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(UserError, match=message):
        call()
