"""Scan over layers that stores activations as integers, against a plain scan and a plain loop."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.llm.model import layer_scan
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.lora import Adapter, LoraConfig, init_params
from xrec_jax.llm.model.products import low_rank, wide_product

from .models import CONFIG

LAYERS, ROWS, WIDTH = 3, 5, 7


def layer(x, xs):
    kernel, key, shift = xs
    kept = jax.random.bernoulli(key, 0.7, x.shape)
    return jnp.tanh(x @ kernel.astype(x.dtype)) * kept.astype(x.dtype) + shift.astype(x.dtype)


def inputs(dtype):
    keys = jax.random.split(jax.random.key(3), 3)
    x = jax.random.normal(keys[0], (ROWS, WIDTH)).astype(dtype)
    kernels = jax.random.normal(keys[1], (LAYERS, WIDTH, WIDTH)).astype(dtype) / 3
    shifts = jax.random.normal(keys[2], (LAYERS, WIDTH))
    return x, (kernels, jax.random.split(jax.random.key(4), LAYERS), shifts)


def naive(x, xs):
    for i in range(LAYERS):
        x = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], xs))
    return x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_outputs_and_gradients_are_those_of_a_loop(dtype):
    """Gradients of the input, of one stacked array, and of another in another dtype."""
    x, (kernels, keys, shifts) = inputs(dtype)

    def loss(run, x, kernels, shifts):
        return jnp.sum(jnp.square(run(x, (kernels, keys, shifts)).astype(jnp.float32)))

    def ours(x, xs):
        return layer_scan.scan_layers(layer, x, xs)

    grad = jax.value_and_grad(loss, argnums=(1, 2, 3))
    expected = grad(naive, x, kernels, shifts)
    result = jax.jit(lambda *args: grad(ours, *args))(x, kernels, shifts)
    tolerance = 1e-6 if dtype == jnp.float32 else 3e-2
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def test_weights_without_a_gradient_are_not_differentiated():
    """Only the gradient that is asked for is computed: no product for a frozen kernel."""
    x, xs = inputs(jnp.bfloat16)

    def loss(shifts):
        out = layer_scan.scan_layers(layer, x, (xs[0], xs[1], shifts))
        return jnp.sum(out.astype(jnp.float32))

    text = str(jax.make_jaxpr(jax.grad(loss))(xs[2]))
    # One product a layer forwards, one backwards to the layer's input.
    assert text.count("dot_general") == 2


def test_activations_are_stored_as_integers_and_weights_not_at_all():
    x, (kernels, keys, shifts) = inputs(jnp.bfloat16)

    def loss(x, shifts):
        out = layer_scan.scan_layers(layer, x, (kernels, keys, shifts))
        return jnp.sum(out.astype(jnp.float32))

    closed = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(x, shifts)
    scans = [eqn for eqn in closed.eqns if eqn.primitive.name == "scan"]
    stacked = [v.aval for v in scans[0].outvars if v.aval.ndim == 3]
    assert stacked and all(aval.dtype != jnp.bfloat16 for aval in stacked)
    assert all(aval.shape != kernels.shape for aval in stacked)
    assert any(aval.dtype == jnp.uint16 for aval in stacked)


@pytest.mark.parametrize("bits", [np.float16, jnp.bfloat16])
def test_integers_keep_every_bit(bits):
    values = jnp.array([0.0, -0.0, 1.5, jnp.inf, jnp.nan, 1e-7], bits)
    back = layer_scan.as_floats(layer_scan.as_integers(values), values.dtype)
    assert np.asarray(back).tobytes() == np.asarray(values).tobytes()
    whole = jnp.arange(3)
    assert layer_scan.as_integers(whole) is whole


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_in_bfloat16_learns_as_by_a_plain_scan(monkeypatch, dropout):
    """Loss and adapter gradients of a LLaMA of 9 layers, more than are unrolled."""
    config = dataclasses.replace(CONFIG, num_layers=9)
    model = Llama(config, dtype=jnp.bfloat16)
    params = nn.unbox(model.init(jax.random.key(0)))
    lora = LoraConfig(rank=4, dropout=dropout)
    trained = nn.unbox(init_params(lora, config, jax.random.key(1)))
    trained = jax.tree.map(lambda leaf: leaf + 0.02, trained)  # B starts at zero
    ids = jax.random.randint(jax.random.key(2), (2, 9), 0, config.vocab_size)

    def loss(trained):
        hidden = model.hidden(params, ids, adapter=Adapter(trained, lora), key=jax.random.key(5))
        return jnp.mean(jnp.square(hidden.astype(jnp.float32)[..., :3] - 0.3))

    ours = jax.jit(jax.value_and_grad(loss))(trained)
    monkeypatch.setattr("xrec_jax.llm.model.llama.on_16_bit_cpu", lambda dtype: False)
    plain = jax.jit(jax.value_and_grad(lambda trained: loss(trained)))(trained)
    norms = [float(jnp.linalg.norm(leaf)) for leaf in jax.tree.leaves(plain[1])]
    assert min(norms) > 0
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * np.abs(b).max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_product_and_its_gradients_are_rounded_once(dtype):
    """Against float64 of the same 16-bit factors."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = ((5, 33), (33, 7), (5, 7))
    x, w, g = (
        jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    y, pullback = jax.vjp(wide_product, x, w)
    wide = [np.asarray(a, np.float64) for a in (x, w, g)]
    expected = (wide[0] @ wide[1], wide[2] @ wide[1].T, wide[0].T @ wide[2])
    # Sums of up to 33 float32 terms, then one rounding to the dtype.
    sums = 33 * float(jnp.finfo(jnp.float32).eps) * 4
    step = float(jnp.finfo(dtype).eps) / 2
    for result, exact in zip((y, *pullback(g)), expected, strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(np.asarray(result, np.float64), exact, rtol=step, atol=sums)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("rows", "rank"), [(5, 1), (37, 3), (64, 8)])
def test_gradients_of_a_low_rank_product(dtype, rows, rank):
    """Compiled, against float64 products whose narrow results are rounded to the dtype."""
    keys = jax.random.split(jax.random.key(1), 4)
    shapes = ((rows, 24), (24, rank), (rank, 17), (rows, 17))
    x, a, b, g = (
        jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=True)
    )

    def all_of(x, a, b, g):
        y, pullback = jax.vjp(low_rank, x, a, b)
        return y, *pullback(g)

    def rounded(array):
        return np.asarray(jnp.asarray(array).astype(dtype), np.float64)

    wide_x, wide_a, wide_b, wide_g = (np.asarray(array, np.float64) for array in (x, a, b, g))
    small, back = rounded(wide_x @ wide_a), rounded(wide_g @ wide_b.T)
    expected = (small @ wide_b, back @ wide_a.T, wide_x.T @ back, small.T @ wide_g)
    # Sums of up to 64 float32 terms, then a rounding to the dtype.
    step = float(jnp.finfo(dtype).eps) + 64 * float(jnp.finfo(jnp.float32).eps)
    for result, exact in zip(jax.jit(all_of)(x, a, b, g), expected, strict=True):
        assert result.dtype == dtype and result.shape == exact.shape
        difference = np.abs(np.asarray(result, np.float64) - exact).max()
        assert difference < step * np.abs(exact).max()
