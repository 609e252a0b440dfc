"""Quantised storage against loops over single weights, its products, gradients and shardings."""

from __future__ import annotations

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from xrec_jax.core.errors import UserError
from xrec_jax.llm.model import lora, quantize
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.llama import Llama
from xrec_jax.llm.model.quantize import NF4, Int8
from xrec_jax.parallel.mesh import RULES, make_mesh, sharding, use_mesh

# As printed in QLoRA (arXiv 2305.14314), appendix E.
PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]
KINDS = ("int8", "nf4")
SHAPES = [(1, 1), (1, 3), (2, 1), (7, 5), (33, 2), (64, 3), (65, 4), (70, 6), (128, 2), (200, 3)]


def kernel_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 0.3


def stored(kernel, kind):
    """What a 2-D kernel is stored as, one weight at a time: the values, and the widest gap."""
    size, out = kernel.shape
    blocks = 1 if kind == "int8" else math.ceil(size / 64)
    block = size if kind == "int8" else 2 * math.ceil(size / blocks / 2)
    result, bound = np.zeros_like(kernel), np.zeros_like(kernel)
    for column in range(out):
        for start in range(0, size, block):
            rows = range(start, min(start + block, size))
            top = max(abs(float(kernel[row, column])) for row in rows)
            for row in rows:
                weight = float(kernel[row, column])
                if kind == "int8":
                    levels = [step * top / 127 for step in range(-127, 128)]
                    bound[row, column] = top / 254
                else:
                    levels = [value * top for value in PUBLISHED]
                    bound[row, column] = top * (1 - 0.6961928) / 2
                result[row, column] = min(levels, key=lambda level: abs(level - weight))
    return result, bound


def test_nf4_values_are_the_published_ones():
    np.testing.assert_allclose(quantize.NF4_VALUES, PUBLISHED, rtol=0, atol=2e-7)
    assert quantize.NF4_VALUES[[0, 7, 15]].tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_a_loop_over_weights(kind, shape):
    kernel = kernel_of(*shape)
    kernel[:, -1] *= 1e-3  # columns have scales of their own
    expected, bound = stored(kernel, kind)
    found = np.asarray(quantize.dequantize(quantize.quantize_kernel(kernel, kind)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)
    assert (np.abs(found - kernel) <= bound * (1 + 1e-5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_extremes_and_what_is_exact(kind):
    kernel = kernel_of(70, 4)
    kernel[:, 1] = 0.0
    kernel[:, 2] = np.where(np.arange(70) % 2, 1.5, -1.5)
    kernel[:, 3] = 1e-42  # subnormal: the scale may vanish, the result must not be NaN
    found = np.asarray(quantize.dequantize(quantize.quantize_kernel(kernel, kind)))
    assert (found[:, 1] == 0).all()
    np.testing.assert_allclose(found[:, 2], kernel[:, 2], rtol=1e-6)
    np.testing.assert_allclose(found[:, 3], 0, atol=1e-41)
    again = np.asarray(quantize.dequantize(quantize.quantize_kernel(found, kind)))
    np.testing.assert_allclose(again, found, rtol=1e-6)  # a stored kernel is stored without loss


def test_storage():
    kernel = kernel_of(3, 128, 10)
    small = quantize.quantize_kernel(kernel, "int8")
    assert (small.values.shape, small.values.dtype) == ((3, 128, 10), jnp.int8)
    assert (small.scale.shape, small.scale.dtype) == ((3, 1, 10), jnp.float32)
    assert quantize.bytes_of(small) == 3 * 10 * (128 + 4)
    tiny = quantize.quantize_kernel(kernel, "nf4")
    assert (tiny.packed.shape, tiny.packed.dtype) == ((3, 2, 32, 10), jnp.uint8)
    assert (tiny.scale.shape, tiny.size) == ((3, 2, 1, 10), 128)
    assert quantize.bytes_of(tiny) == 3 * 10 * (64 + 2 * 4)
    odd = quantize.quantize_kernel(kernel_of(65, 1), "nf4")
    assert odd.packed.shape == (2, 17, 1) and odd.size == 65  # two blocks of 34, 3 places unused
    for stack in (small, tiny):
        assert quantize.shape_of(stack) == (3, 128, 10)
        one = quantize.quantize_kernel(kernel[1], "int8" if isinstance(stack, Int8) else "nf4")
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda a: a[1], stack), one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_and_its_gradient(kind, shape):
    kernel = quantize.quantize_kernel(kernel_of(*shape), kind)
    plain = np.asarray(quantize.dequantize(kernel), np.float64)
    x, g = kernel_of(2, 3, shape[0], seed=1), kernel_of(2, 3, shape[1], seed=2)
    y, back = jax.vjp(lambda x: quantize.matmul(x, kernel), x)
    np.testing.assert_allclose(y, x @ plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back(jnp.asarray(g))[0], g @ plain.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ("none", *KINDS))
def test_bfloat16_sums_in_float32(kind):
    kernel = quantize.quantize_kernel(np.full((4097, 2), 1.0, np.float32), kind)
    y, back = jax.vjp(lambda x: quantize.matmul(x, kernel, jnp.bfloat16), jnp.ones((1, 4097)))
    assert y.dtype == jnp.bfloat16  # a sum in bfloat16 would stop at 256
    np.testing.assert_allclose(np.asarray(y, np.float32), 4097, rtol=2**-8)
    wide = np.asarray(back(jnp.ones((1, 2), jnp.bfloat16))[0], np.float32)
    np.testing.assert_allclose(wide, 2.0, rtol=2**-8)


def test_plain_kernels_get_gradients_and_quantised_ones_none():
    x, kernel = kernel_of(4, 6), kernel_of(6, 5, seed=1)
    gradient = jax.grad(lambda kernel: quantize.matmul(x, kernel).sum())(jnp.asarray(kernel))
    np.testing.assert_allclose(gradient, x.sum(0)[:, None].repeat(5, 1), rtol=1e-6, atol=1e-6)
    for kind in KINDS:
        small = quantize.quantize_kernel(kernel, kind)
        gradient = jax.grad(lambda k: quantize.matmul(x, k).sum(), allow_int=True)(small)
        assert not gradient.scale.any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("remat", [False, True])
def test_scan_over_layers_keeps_no_dequantised_copy(kind, remat):
    layers, size = 6, 192
    kernel = kernel_of(layers, size, size) * 0.2
    small = quantize.quantize_kernel(kernel, kind)
    plain = quantize.dequantize(small)
    x = jnp.asarray(kernel_of(2, size, seed=3))

    def loss(x, stack, dtype=jnp.float32):
        def layer(x, kernel):
            return jnp.tanh(quantize.matmul(x, kernel, dtype)).astype(x.dtype), None

        body = jax.checkpoint(layer) if remat else layer
        return jax.lax.scan(body, x, stack)[0].sum()

    step = jax.jit(jax.grad(loss), static_argnums=2)
    np.testing.assert_allclose(step(x, small), step(x, plain), rtol=1e-4, atol=1e-5)
    for dtype in (jnp.float32, jnp.bfloat16):
        memory = step.lower(x, small, dtype).compile().memory_analysis()
        if memory is not None:  # one layer at a time, and some room for what is fused badly
            assert memory.temp_size_in_bytes < 0.75 * layers * size * size * 4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [256, 688, 70])  # 688 is 11 blocks: not divisible
@pytest.mark.parametrize("axes", [("fsdp", "tensor"), ("tensor", "fsdp"), (None, "tensor")])
def test_sharded_equals_unsharded(kind, size, axes):
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    kernel = kernel_of(2, size, 24)
    x = kernel_of(8, 3, size, seed=1)
    expected = quantize.quantize_kernel(kernel, kind)
    whole = NamedSharding(mesh, PartitionSpec(None, None, axes[1]))
    split = NamedSharding(mesh, PartitionSpec(None, *axes))
    split = split if size % 4 == 0 else whole
    places = quantize.shardings(expected, split)
    assert places.scale.spec[-1] == axes[1]
    with jax.set_mesh(mesh):
        small = quantize.quantize_kernel(jax.device_put(kernel, split), kind)
        jax.tree.map(np.testing.assert_array_equal, small, expected)
        for leaf, place in zip(jax.tree.leaves(small), jax.tree.leaves(places), strict=True):
            assert leaf.sharding == place
        if kind == "int8" and size % 4 == 0:
            assert small.values.sharding.spec[1] == axes[0]
        if kind == "nf4" and size == 256:
            assert small.packed.sharding.spec[1] == small.scale.sharding.spec[1] == axes[0]

        def both(x, stack):
            def layer(total, kernel):
                y = quantize.matmul(x, kernel)
                return total + (y * y).sum(), y

            return jax.lax.scan(layer, 0.0, stack)

        function = jax.jit(jax.value_and_grad(both, has_aux=True))
        (total, y), gradient = function(
            jax.device_put(x, NamedSharding(mesh, jax.P("fsdp"))), small
        )
        jax.block_until_ready(gradient)
    (total_1, y_1), gradient_1 = function(x, expected)
    np.testing.assert_allclose(y, y_1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(total, total_1, rtol=1e-5)
    np.testing.assert_allclose(gradient, gradient_1, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axes", [("embed", "heads"), ("heads", "embed")])
def test_split_kernels_travel_small(kind, axes):
    mesh = make_mesh(data=1, fsdp=4, tensor=2)
    kernel, x = kernel_of(2, 512, 256), kernel_of(8, 512, seed=1)

    def loss(x, stack):
        def layer(total, kernel):
            return total + quantize.matmul(x, kernel, axes=axes).sum(), None

        return jax.lax.scan(layer, 0.0, stack)[0]

    with use_mesh(mesh):
        split = jax.device_put(kernel, sharding(mesh, "layers", *axes))
        small = quantize.quantize_kernel(split, kind)
        function = jax.jit(jax.value_and_grad(loss))
        arguments = jax.device_put(x, sharding(mesh, "batch")), small
        program = function.lower(*arguments).compile().as_text()
        total, gradient = jax.block_until_ready(function(*arguments))
    gathered = re.findall(r"(\w+)\[([0-9,]+)\]\S* all-gather\(", program)
    sizes = {name: math.prod(map(int, shape.split(","))) for name, shape in sorted(gathered)}
    assert ("s8" if kind == "int8" else "u8") in sizes
    assert sizes.get("f32", 0) <= 8 * 512  # activations and scales only
    expected, wanted = jax.value_and_grad(
        lambda x: sum((x @ layer).sum() for layer in quantize.dequantize(small))
    )(x)
    np.testing.assert_allclose(total, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


def tiny_params(layers=2, hidden=10, inner=14, vocab=9):
    """A tree of the model's layout with odd sizes."""
    sizes = {"q": (hidden, 8), "k": (hidden, 4), "v": (hidden, 4), "o": (8, hidden)}
    more = {"gate": (hidden, inner), "up": (hidden, inner), "down": (inner, hidden)}

    def group(sizes):
        return {
            name: {"kernel": jnp.asarray(kernel_of(layers, *shape, seed=number))}
            for number, (name, shape) in enumerate(sizes.items())
        }

    ones = jnp.ones((layers, hidden))
    return {
        "embed": {"table": jnp.asarray(kernel_of(vocab, hidden))},
        "layers": {
            "attn_norm": {"scale": ones},
            "attn": group(sizes),
            "mlp_norm": {"scale": ones},
            "mlp": group(more),
        },
        "final_norm": {"scale": ones[0]},
        "head": {"table": jnp.asarray(kernel_of(vocab, hidden, seed=5))},
    }


@pytest.mark.parametrize("kind", KINDS)
def test_params(kind):
    params = tiny_params()
    small = quantize.quantize_params(params, kind)
    assert isinstance(params["layers"]["attn"]["q"]["kernel"], jax.Array)  # left as it was
    assert quantize.quantize_params(params, "none") is params
    for group, name in quantize.PROJECTIONS:
        kernel = small["layers"][group][name]["kernel"]
        assert isinstance(kernel, Int8 if kind == "int8" else NF4)
        expected = stored(np.asarray(params["layers"][group][name]["kernel"][1]), kind)[0]
        np.testing.assert_allclose(quantize.dequantize(kernel)[1], expected, rtol=1e-6, atol=1e-7)
    for path in (("embed", "table"), ("head", "table"), ("final_norm", "scale")):
        assert small[path[0]][path[1]] is params[path[0]][path[1]]
    again = quantize.quantize_params(params, kind)
    jax.tree.map(np.testing.assert_array_equal, small, again)
    shapes = jax.eval_shape(lambda p: quantize.quantize_params(p, kind), params)
    assert quantize.bytes_of(shapes) == quantize.bytes_of(small) < quantize.bytes_of(params)
    plain = quantize.dequantize_params(small)
    assert jax.tree.structure(plain) == jax.tree.structure(params)
    mesh = make_mesh(data=8)
    where = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), params)
    placed = jax.device_put(small, quantize.shardings(small, where))
    assert jax.tree.structure(placed) == jax.tree.structure(small)


@pytest.mark.parametrize("kind", KINDS)
def test_model_and_adapter_gradients_on_a_quantised_base(kind):
    config = LlamaConfig(40, 16, 24, 2, 2, 1, 8, 32)
    model = Llama(config)
    boxed = jax.jit(model.init)(jax.random.key(0))
    params = quantize.quantize_params(nn.unbox(boxed), kind)
    plain = quantize.dequantize_params(params)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 40, (4, 6)), jnp.int32)
    adapter = lora.init(lora.LoraConfig(rank=2, targets=("q", "down")), config, jax.random.key(1))
    adapter = jax.tree.map(lambda leaf: leaf + 0.1, adapter)

    def loss(adapter, params):
        logits = model.logits(params, ids, adapter=adapter)
        return jax.nn.log_softmax(logits)[..., 0].mean()

    expected = jax.jit(jax.value_and_grad(loss))(adapter, plain)
    check = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with use_mesh(mesh):
        spec = nn.get_partition_spec(jax.eval_shape(model.init, jax.random.key(0)))
        split = nn.logical_to_mesh_sharding(spec, mesh, RULES)
        placed = jax.device_put(params, quantize.shardings(params, split))
        found = jax.block_until_ready(jax.jit(jax.value_and_grad(loss))(adapter, placed))
    jax.tree.map(check, found, expected)


def test_mistakes():
    params = tiny_params()
    with pytest.raises(UserError, match="no kind 'int4'; did you mean 'int8'"):
        quantize.quantize_params(params, "int4")
    with pytest.raises(UserError, match="no kind 'fp8'"):
        quantize.quantize_kernel(np.ones((2, 2), np.float32), "fp8")
    with pytest.raises(UserError, match="layers/attn/q is already quantised"):
        quantize.quantize_params(quantize.quantize_params(params, "nf4"), "int8")
    for bad in (np.nan, np.inf):
        kernel = params["layers"]["mlp"]["up"]["kernel"].at[1, 2, 3].set(bad)
        params["layers"]["mlp"]["up"] = {"kernel": kernel}
        for kind in KINDS:
            with pytest.raises(UserError, match="layers/mlp/up holds NaN or infinite"):
                quantize.quantize_params(params, kind)
    stack = quantize.quantize_kernel(kernel_of(2, 6, 4), "nf4")
    for x in (np.ones((3, 6)), np.ones((3, 5))):
        with pytest.raises(ValueError, match=r"quantised kernel \(2, 6, 4\)"):
            quantize.matmul(jnp.asarray(x), stack)


@pytest.mark.parametrize(("backend", "wide"), [("cpu", True), ("gpu", False), ("tpu", False)])
def test_only_a_cpu_is_asked_for_float32_products(monkeypatch, backend, wide):
    """Elsewhere a product that is summed over devices keeps its 16 bits on the way."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    x, kernel = jnp.ones((3, 4), jnp.bfloat16), jnp.ones((4, 5), jnp.bfloat16)
    traced = str(jax.make_jaxpr(lambda *a: quantize.matmul(*a, jnp.bfloat16))(x, kernel))
    assert traced.count("dot_general") == 1
    assert ("preferred_element_type=float32" in traced) is wide
