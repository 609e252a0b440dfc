"""The model as a whole: packing, padding, remat, sharding and soft prompts change what they may."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.model import layer_scan, llama, lora
from xrec_jax.llm.model.config import LlamaConfig, RopeScaling
from xrec_jax.llm.model.layers import FullAttention, PrefixAttention
from xrec_jax.llm.model.llama import Llama, SoftPrompt, positions_of, unstack
from xrec_jax.parallel.mesh import RULES, put_batch, put_sharded, sharding, use_mesh

CONFIG = LlamaConfig(
    vocab_size=64,
    hidden_size=24,
    intermediate_size=40,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=10,
    max_positions=64,
    rope_theta=77.0,
    initializer_range=0.3,
    rope_scaling=RopeScaling(4.0, 1.0, 3.0, 16),
)
MODEL = Llama(CONFIG)


@functools.cache
def boxed():
    return jax.jit(MODEL.init)(jax.random.key(0))


@functools.cache
def params():
    """Random parameters, with norms that are not all ones."""
    leaves, tree = jax.tree.flatten(nn.unbox(boxed()))
    rng = np.random.default_rng(7)
    noise = [1 + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(tree, [a * b for a, b in zip(leaves, noise, strict=True)])


@functools.cache
def adapter(zero=False):
    made = lora.init(lora.LoraConfig(rank=3, alpha=4.5), CONFIG, jax.random.key(1))
    rng = np.random.default_rng(8)
    rows = [0.0 if zero else 0.2 * rng.normal(size=x.shape) for x in jax.tree.leaves(made.params)]
    tree = jax.tree.structure(made.params)
    noise = jax.tree.unflatten(tree, rows)
    return made.replace(
        params=jax.tree.map(lambda a, b: (a + b).astype(np.float32), made.params, noise)
    )


@functools.cache
def compiled(model=MODEL):
    return jax.jit(model.logits)


@functools.cache
def loss_and_grads(model=MODEL):
    """Of the adapter and of the base."""

    def loss(adapter, params, ids, segments, targets):
        logits = model.logits(params, ids, segments=segments, adapter=adapter)
        nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
        return jnp.sum(nll * (segments > 0))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def tokens(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.vocab_size, shape).astype(np.int32)


def batch():
    """Rows of two packed sequences and padding at both ends."""
    ids, targets = tokens(8, 15, seed=1), tokens(8, 15, seed=2)
    segments = np.zeros((8, 15), np.int32)
    for row in range(8):
        segments[row, row % 3 : 6] = 1
        segments[row, 6 : 15 - row % 2] = 2
    return ids, segments, targets


def assert_trees_close(found, expected, atol):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4)


def test_positions_of():
    segments = np.array([[0, 0, 1, 1, 1, 2, 2, 0], [3, 3, 1, 2, 2, 2, 2, 2], [0] * 8])
    expected = [[0, 1, 0, 1, 2, 0, 1, 0], [0, 1, 0, 0, 1, 2, 3, 4], list(range(8))]
    np.testing.assert_array_equal(positions_of(jnp.asarray(segments)), expected)


def test_parameters():
    layers = params()["layers"]
    assert layers["attn"]["k"]["kernel"].shape == (2, 24, 20)
    assert layers["attn"]["o"]["kernel"].shape == (2, 40, 24)
    assert layers["mlp"]["down"]["kernel"].shape == (2, 40, 24)
    assert params()["head"]["table"].shape == (64, 24)
    fresh = nn.unbox(boxed())
    assert sum(x.size for x in jax.tree.leaves(fresh)) == CONFIG.num_parameters
    q = np.asarray(fresh["layers"]["attn"]["q"]["kernel"])
    assert abs(q.std() / 0.3 - 1) < 0.1 and not np.allclose(q[0], q[1])
    assert np.all(np.asarray(fresh["final_norm"]["scale"]) == 1)


def test_packed_sequences_equal_separate_ones():
    parts = [tokens(1, n, seed=n) for n in (4, 9, 4)]
    row = np.concatenate([*parts, tokens(1, 2)], axis=1)
    segments = np.repeat([5, 2, 7, 0], [4, 9, 4, 2])[None].astype(np.int32)
    packed = compiled()(params(), row, segments=segments, adapter=adapter())
    alone = [compiled()(params(), part, adapter=adapter()) for part in parts]
    np.testing.assert_allclose(packed[:, :17], np.concatenate(alone, axis=1), atol=3e-5)
    assert np.isfinite(packed).all()


@pytest.mark.parametrize(("left", "right"), [(5, 0), (0, 3), (2, 7)])
def test_padding_changes_nothing(left, right):
    ids = tokens(3, 11)
    expected = compiled()(params(), ids)
    padded = np.pad(ids, ((0, 0), (left, right)), constant_values=13)
    segments = np.pad(np.ones_like(ids), ((0, 0), (left, right)))
    found = compiled()(params(), padded, segments=segments)
    np.testing.assert_allclose(found[:, left : left + 11], expected, atol=3e-5)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_nothing(remat):
    expected = loss_and_grads()(adapter(), params(), *batch())
    found = loss_and_grads(Llama(CONFIG, remat=remat))(adapter(), params(), *batch())
    assert_trees_close(found, expected, 2e-4)


@pytest.mark.parametrize("axes", [(8, 2, 2), (8, 4, 2)])
def test_sharded_equals_one_device(axes):
    expected = loss_and_grads()(adapter(), params(), *batch())
    mesh = tiny.mesh(*axes)
    with use_mesh(mesh):
        specs = nn.get_partition_spec(boxed())
        placed = put_sharded(params(), nn.logical_to_mesh_sharding(specs, mesh, RULES))
        local = placed["layers"]["mlp"]["gate"]["kernel"].addressable_shards[0].data.shape
        assert local == (2, 24 // axes[1], 40 // axes[2])
        shared = put_sharded(adapter(), jax.tree.map(lambda _: sharding(mesh), adapter()))
        found = loss_and_grads()(shared, placed, *put_batch(batch(), mesh))
        assert_trees_close(jax.block_until_ready(found), expected, 2e-4)


def test_no_adapter_is_an_adapter_of_zeros():
    ids = tokens(2, 9)
    base = compiled()(params(), ids)
    fresh = lora.init(lora.LoraConfig(), CONFIG, jax.random.key(3))
    np.testing.assert_array_equal(compiled()(params(), ids, adapter=fresh), base)
    assert np.abs(compiled()(params(), ids, adapter=adapter()) - base).max() > 0.1


def test_bfloat16_is_close():
    ids = tokens(2, 15)
    exact = np.asarray(compiled()(params(), ids, adapter=adapter()))
    half = compiled(Llama(CONFIG, dtype=jnp.bfloat16))(params(), ids, adapter=adapter())
    assert half.dtype == jnp.float32
    difference = np.abs(half - exact).mean() / exact.std()
    assert 0 < difference < 0.02


def test_soft_prompt_replaces_embeddings():
    """Vectors that are rows of the table do what the tokens of these rows do."""
    ids, other = tokens(3, 10), tokens(3, 10, seed=5)
    positions = np.array([[0, 4, -1], [9, 2, 3], [-1, -1, -1]], np.int32)
    replaced = ids.copy()
    for row, column in [(0, 0), (0, 4), (1, 9), (1, 2), (1, 3)]:
        replaced[row, column] = other[row, column]
    table = np.asarray(params()["embed"]["table"])
    vectors = table[np.take_along_axis(other, np.maximum(positions, 0), axis=1)]
    soft = SoftPrompt(positions, vectors)
    embedded = MODEL.embed(params(), ids, soft)
    np.testing.assert_array_equal(embedded, table[replaced])
    found = compiled()(params(), ids, soft=soft)
    expected = np.asarray(compiled()(params(), replaced))
    np.testing.assert_allclose(found, expected, atol=3e-5)
    contexts = [FullAttention(np.ones_like(ids))] * 2
    place = np.broadcast_to(np.arange(10), ids.shape)
    run = jax.jit(lambda p, *rest: MODEL.project(p, MODEL.cached(p, *rest)[0]))
    cached = run(params(), embedded, place, contexts)
    np.testing.assert_allclose(cached, expected, atol=3e-5)


def test_soft_prompt_gets_a_gradient():
    ids = tokens(2, 6)
    positions = np.array([[1, -1], [5, 0]], np.int32)

    def loss(vectors):
        logits = MODEL.logits(params(), ids, soft=SoftPrompt(positions, vectors))
        return jnp.sum(jax.nn.log_softmax(logits)[..., 3])

    grad = np.asarray(jax.jit(jax.grad(loss))(jnp.full((2, 2, 24), 0.3)))
    used = np.abs(grad).max(axis=-1) > 1e-3
    np.testing.assert_array_equal(used, positions >= 0)


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("stacked", [True, False])
def test_cached_continues_a_sequence(monkeypatch, stacked, scanned):
    """Keys and values of a first part, kept, and a second part that attends to both."""
    monkeypatch.setattr(llama, "_UNROLLED", 0 if scanned else 8)
    ids = tokens(2, 12)
    expected = compiled()(params(), ids, adapter=adapter())
    weights, extra = params(), adapter().scaled()["layers"]
    if not stacked:
        scan = {"scanned": layer_scan.stored(weights["layers"])}
        weights = weights | {"layers": unstack(weights["layers"], 2)} | scan
        extra = unstack(extra, 2)

    @jax.jit
    def run(weights, extra, ids):
        place = jnp.broadcast_to(jnp.arange(12), ids.shape)
        first = [FullAttention(jnp.ones((2, 7), jnp.int32))] * 2
        x = MODEL.embed(weights, ids)
        start, caches = MODEL.cached(weights, x[:, :7], place[:, :7], first, lora=extra)
        mask = jnp.broadcast_to(jnp.arange(12) <= jnp.arange(7, 12)[:, None], (2, 5, 12))
        rest = [PrefixAttention(cache, mask) for cache in caches]
        end, _ = MODEL.cached(weights, x[:, 7:], place[:, 7:], rest, lora=extra)
        return MODEL.project(weights, jnp.concatenate([start, end], axis=1))

    np.testing.assert_allclose(run(weights, extra, ids), expected, atol=3e-5)


def test_refused():
    with pytest.raises(UserError, match="remat='dot' is not valid; did you mean 'dots'"):
        Llama(CONFIG, remat="dot")
    with pytest.raises(UserError, match="attention='flash' is not valid"):
        Llama(CONFIG, attention="flash").logits(params(), tokens(1, 3))


def test_init_works_with_every_implementation():
    """It traces a short sequence, which kernels need not take."""
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    for name in ("cudnn", "splash"):
        other = jax.eval_shape(Llama(CONFIG, attention=name).init, jax.random.key(0))
        assert jax.tree.map(jnp.shape, nn.unbox(other)) == jax.tree.map(jnp.shape, nn.unbox(shapes))
