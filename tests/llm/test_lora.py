"""Adapters: what they add, that they merge, and that they share nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.llm.model import lora, quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layers import Projection
from xrec_jax.llm.model.llama import Llama

CONFIG = LlamaConfig(
    vocab_size=37,
    hidden_size=20,
    intermediate_size=28,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_positions=32,
    initializer_range=0.3,
)
MODEL = Llama(CONFIG)
IDS = np.random.default_rng(0).integers(0, 37, (3, 9)).astype(np.int32)
logits = jax.jit(MODEL.logits)


@functools.cache
def params():
    return nn.unbox(jax.jit(MODEL.init)(jax.random.key(0)))


def trained(config, seed=1):
    """An adapter whose B is not zero."""
    made = lora.init(config, CONFIG, jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def moved(leaf):
        return leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32)

    return made.replace(params=jax.tree.map(moved, made.params))


CONFIGS = {
    "all": lora.LoraConfig(rank=3, alpha=4.0),
    "q and v": lora.LoraConfig(rank=5, alpha=2.5, targets=("q", "v")),
    "mlp": lora.LoraConfig(rank=2, alpha=7.0, targets=("down", "gate")),
}


def test_init():
    made = lora.init(CONFIGS["all"], CONFIG, jax.random.key(0))
    sizes = {
        "q": (20, 24),
        "k": (20, 12),
        "v": (20, 12),
        "o": (24, 20),
        "gate": (20, 28),
        "up": (20, 28),
        "down": (28, 20),
    }
    for target, (size_in, size_out) in sizes.items():
        pair = made.params["layers"][lora.GROUPS[target]][target]
        a, b = np.asarray(pair["a"]), np.asarray(pair["b"])
        assert a.shape == (2, size_in, 3) and b.shape == (2, 3, size_out)
        assert not b.any() and not np.allclose(a[0], a[1])
        bound = size_in**-0.5
        assert np.abs(a).max() <= bound
        assert abs(a.std() / (bound / 3**0.5) - 1) < 0.2
    q_only = lora.init(CONFIGS["q and v"], CONFIG, jax.random.key(0))
    assert list(q_only.params["layers"]) == ["attn"]
    assert sorted(q_only.params["layers"]["attn"]) == ["q", "v"]


@pytest.mark.parametrize("name", ["all", "q and v"])
def test_merged_base_equals_applied_adapter(name):
    adapter = trained(CONFIGS[name])
    applied = np.asarray(logits(params(), IDS, adapter=adapter))
    merged = lora.merge(params(), adapter)
    np.testing.assert_allclose(logits(merged, IDS), applied, atol=5e-5)
    assert np.abs(applied - logits(params(), IDS)).max() > 0.05
    back = lora.unmerge(merged, adapter)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(params()), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_merge_adds_alpha_over_rank_times_the_product():
    adapter = trained(CONFIGS["q and v"])
    merged = lora.merge(params(), adapter)["layers"]["attn"]
    base = params()["layers"]["attn"]
    for target in ("q", "v"):
        pair = adapter.params["layers"]["attn"][target]
        for layer in range(2):
            a, b = (np.asarray(pair[x][layer], np.float64) for x in "ab")
            update = np.asarray(merged[target]["kernel"][layer] - base[target]["kernel"][layer])
            np.testing.assert_allclose(update, 0.5 * a @ b, atol=1e-6)
    for target in ("k", "o"):
        assert merged[target]["kernel"] is base[target]["kernel"]


def test_merge_rounds_once():
    """In bfloat16 the sum is made in float32 and then rounded."""
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    adapter = trained(CONFIGS["mlp"])
    merged = lora.merge(half, adapter)["layers"]["mlp"]["down"]["kernel"]
    pair = adapter.params["layers"]["mlp"]["down"]
    base = np.asarray(half["layers"]["mlp"]["down"]["kernel"], np.float64)
    exact = base + 3.5 * np.asarray(pair["a"], np.float64) @ np.asarray(pair["b"], np.float64)
    assert merged.dtype == jnp.bfloat16
    error = np.abs(np.asarray(merged, np.float64) - exact)
    assert np.all(error <= np.abs(exact) * 2.0**-8 + 1e-6)


def test_several_adapters_share_one_base():
    before = jax.tree.map(np.array, params())
    named = {name: trained(CONFIGS[name], seed) for seed, name in enumerate(("all", "q and v"))}
    named["other"] = trained(CONFIGS["q and v"], seed=7)
    first = {name: np.asarray(logits(params(), IDS, adapter=a)) for name, a in named.items()}
    # One adapter changes; the others and the base do not.
    named["all"] = named["all"].replace(params=jax.tree.map(lambda x: x + 1, named["all"].params))
    for name, adapter in named.items():
        same = np.array_equal(logits(params(), IDS, adapter=adapter), first[name])
        assert same == (name != "all")
    for found, expected in zip(jax.tree.leaves(params()), jax.tree.leaves(before), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_dropout_only_with_a_key():
    plain = trained(CONFIGS["all"])
    dropped = lora.Adapter(plain.params, lora.LoraConfig(rank=3, alpha=4.0, dropout=0.4))
    expected = logits(params(), IDS, adapter=plain)
    np.testing.assert_array_equal(logits(params(), IDS, adapter=dropped), expected)
    one = logits(params(), IDS, adapter=dropped, key=jax.random.key(1))
    np.testing.assert_array_equal(
        logits(params(), IDS, adapter=dropped, key=jax.random.key(1)), one
    )
    other = logits(params(), IDS, adapter=dropped, key=jax.random.key(2))
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_array_equal(
        logits(params(), IDS, adapter=plain, key=jax.random.key(1)), expected
    )
    fresh = lora.init(dropped.config, CONFIG, jax.random.key(0))
    base = logits(params(), IDS)
    np.testing.assert_array_equal(logits(params(), IDS, adapter=fresh, key=jax.random.key(1)), base)


@pytest.mark.parametrize("width", [8, 7])
def test_dropout_keeps_the_mean(width):
    """Of the update alone: what the base adds is not dropped."""
    rng = np.random.default_rng(0)
    kernel, a, b, x = (
        rng.normal(size=s).astype(np.float32) for s in ((width, 5), (width, 3), (3, 5), (1, width))
    )
    layer = Projection(5, ("embed", "heads"), 0.02, jnp.float32, lora_dropout=0.3)
    variables = {"params": {"kernel": kernel}, "lora": {"a": a, "b": b}}
    draw = jax.jit(jax.vmap(lambda key: layer.apply(variables, x, rngs={"dropout": key})))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))[:, 0]
    error = drawn.std(axis=0) / 4000**0.5
    assert (error > 0).all()
    assert np.all(np.abs(drawn.mean(axis=0) - (x @ kernel + x @ a @ b)[0]) < 4 * error)
    # An input feature is dropped for all of the update, about 30 % of the time.
    single = np.zeros_like(x)
    single[0, 2] = 1.0
    draw = jax.jit(jax.vmap(lambda key: layer.apply(variables, single, rngs={"dropout": key})))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(1), 4000)))[:, 0]
    zero = np.all(np.isclose(drawn, kernel[2], atol=1e-6), axis=1)
    assert abs(zero.mean() - 0.3) < 0.03
    np.testing.assert_allclose(
        drawn[~zero], np.tile(kernel[2] + a[2] @ b / 0.7, (sum(~zero), 1)), rtol=0.01, atol=0.01
    )


REFUSED = {
    "lora.rank=0 must be a positive whole number": dict(rank=0),
    "lora.dropout=1.0 must be from 0 to below 1": dict(dropout=1.0),
    "lora.dropout=-0.1 must be": dict(dropout=-0.1),
    "lora.targets is empty; valid: q, k": dict(targets=()),
    "lora.targets: no 'gat'; did you mean 'gate'?": dict(targets=("q", "gat")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(UserError) as error:
        lora.LoraConfig(**REFUSED[message])
    assert message in str(error.value)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_is_not_merged(kind):
    small = quantize.quantize_params(params(), kind)
    with pytest.raises(UserError, match="quantised base"):
        lora.merge(small, trained(CONFIGS["q and v"]))
