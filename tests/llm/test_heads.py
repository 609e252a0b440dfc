"""Soft-prompt projector and value head against numpy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.llm.model.heads import (
    init_projector,
    init_value_head,
    num_vectors,
    soft_vectors,
    state_values,
)

SIZES = dict(user_dim=5, inner=12, vectors=3, hidden=8)
RNG = np.random.default_rng(0)
USER = RNG.normal(size=(4, 5)).astype(np.float32)
PLACEHOLDER = RNG.normal(size=8).astype(np.float32)


def gelu(x):
    """Hendrycks and Gimpel's tanh form."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_a_fresh_projector_changes_nothing():
    projector = nn.unbox(init_projector(jax.random.key(0), **SIZES))
    assert num_vectors(projector) == 3
    found = soft_vectors(projector, jnp.asarray(PLACEHOLDER), USER)
    assert found.dtype == jnp.float32 and found.shape == (4, 3, 8)
    assert np.array_equal(found, np.broadcast_to(PLACEHOLDER, (4, 3, 8)))


def test_it_learns_from_there():
    """The second layer has a gradient at once; the first from the second step on."""
    projector = nn.unbox(init_projector(jax.random.key(0), **SIZES))
    weights = RNG.normal(size=(4, 3, 8))
    grads = jax.grad(lambda p: jnp.sum(soft_vectors(p, jnp.asarray(PLACEHOLDER), USER) * weights))(
        projector
    )
    assert np.abs(grads["second"]["kernel"]).max() > 0.1
    assert np.abs(grads["second"]["bias"]).max() > 0.1
    assert np.all(grads["first"]["kernel"] == 0)


def test_it_is_two_layers_with_gelu():
    projector = jax.tree.map(
        lambda x: RNG.normal(size=x.shape).astype(np.float32),
        nn.unbox(init_projector(jax.random.key(0), **SIZES)),
    )
    found = soft_vectors(projector, jnp.asarray(PLACEHOLDER, jnp.bfloat16), USER)
    first, second = projector["first"], projector["second"]
    wide = gelu(USER.astype(float) @ first["kernel"] + first["bias"])
    kernel = second["kernel"].reshape(12, 24).astype(float)
    expected = (wide @ kernel).reshape(4, 3, 8) + second["bias"]
    expected += np.asarray(jnp.asarray(PLACEHOLDER, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_value_head_starts_at_zero_and_is_linear():
    states = RNG.normal(size=(4, 7, 8)).astype(np.float32)
    head = nn.unbox(init_value_head(jax.random.key(0), hidden=8))
    assert np.all(np.asarray(state_values(head, states)) == 0)
    head = {"kernel": jnp.asarray(PLACEHOLDER), "bias": jnp.float32(0.7)}
    found = state_values(head, states)
    assert found.dtype == jnp.float32 and found.shape == (4, 7)
    np.testing.assert_allclose(found, states @ PLACEHOLDER + 0.7, rtol=1e-5, atol=1e-5)
    half = jnp.asarray(states, jnp.bfloat16)
    found = state_values(head, half)
    assert found.dtype == jnp.float32
    expected = np.asarray(half, np.float64) @ PLACEHOLDER + 0.7
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_arrays_know_their_axes():
    boxed = {
        "projector": init_projector(jax.random.key(0), **SIZES),
        "head": init_value_head(jax.random.key(0), hidden=8),
    }
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    assert all(isinstance(leaf, nn.Partitioned) for leaf in leaves) and len(leaves) == 6
    assert boxed["projector"]["second"]["kernel"].names == ("inner", None, "embed")


@pytest.mark.parametrize("name", SIZES)
def test_a_size_of_zero_is_refused(name):
    with pytest.raises(UserError, match=f"{name}=0"):
        init_projector(jax.random.key(0), **SIZES | {name: 0})
