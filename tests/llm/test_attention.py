"""Every implementation of attention against a loop in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.model import attention, blocked
from xrec_jax.llm.model.layer_scan import as_floats, as_integers
from xrec_jax.parallel.mesh import put_batch, use_mesh

# Odd lengths cross the border of a block of queries; 128 is what the kernel for TPUs needs.
SHAPES = {"short": (3, 7, 4, 2, 6), "blocks": (2, 131, 3, 1, 10), "kernel": (2, 128, 4, 2, 16)}


@functools.cache
def case(name):
    batch, length, heads, kv, dim = SHAPES[name]
    rng = np.random.default_rng(length)
    q = rng.normal(size=(batch, length, heads, dim)).astype(np.float32)
    k, v = rng.normal(size=(2, batch, length, kv, dim)).astype(np.float32)
    segments = np.zeros((batch, length), np.int32)  # row 0: left and right padding, two segments
    segments[0, 1 : length // 3] = 1
    segments[0, length // 3 : length - 2] = 2
    segments[1] = 1
    return q, k, v, segments


@functools.cache
def expected(name):
    """Query by query, over the list of keys that it may see."""
    q, k, v, segments = case(name)
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        seen = [s for s in range(t + 1) if segments[b, s] == segments[b, t]]
        group = h // (q.shape[2] // k.shape[2])
        scores = np.array([q[b, t, h] @ k[b, s, group] for s in seen], np.float64)
        shares = np.exp((scores - scores.max()) / np.sqrt(q.shape[-1]))
        shares /= shares.sum()
        out[b, t, h] = sum(w * v[b, s, group] for w, s in zip(shares, seen, strict=True))
    return out


@functools.cache
def compiled(implementation):
    """Output and the three gradients of a random functional of the tokens that are not padding."""

    def loss(q, k, v, segments, weights):
        out = attention.attend(q, k, v, segments, implementation=implementation)
        real = jnp.where(segments[..., None, None] > 0, out * weights, 0.0)
        return jnp.sum(real), out

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def run(implementation, name):
    q, *rest = case(name)
    weights = np.random.default_rng(5).normal(size=q.shape).astype(np.float32)
    (_, out), grads = compiled(implementation)(q, *rest, weights)
    return np.asarray(out), [np.asarray(g) for g in grads]


def run_forward(implementation, *inputs):
    return jax.jit(functools.partial(attention.attend, implementation=implementation))(*inputs)


@pytest.mark.parametrize(
    ("implementation", "name"),
    [(i, n) for i in ("auto", "blocked", "xla") for n in SHAPES] + [("splash_interpret", "kernel")],
)
def test_equals_loop(implementation, name):
    out, grads = run(implementation, name)
    real = case(name)[3] > 0
    np.testing.assert_allclose(out[real], expected(name)[real], atol=3e-6)
    assert np.isfinite(out).all()
    for grad, reference in zip(grads, run("xla", name)[1], strict=True):
        assert np.isfinite(grad).all()
        np.testing.assert_allclose(grad, reference, atol=2e-5)


def test_gradient_by_finite_differences():
    q, k, v, segments = (np.asarray(x) for x in case("short"))
    weights = np.random.default_rng(5).normal(size=q.shape).astype(np.float32)
    grads = run("blocked", "short")[1]
    rng = np.random.default_rng(1)
    for which in range(3):
        direction = rng.normal(size=(q, k, v)[which].shape).astype(np.float32)
        values = []
        for sign in (1, -1):
            moved = [q, k, v]
            moved[which] = moved[which] + sign * np.float32(3e-3) * direction
            values.append(float(compiled("blocked")(*moved, segments, weights)[0][0]))
        slope = (values[0] - values[1]) / 6e-3
        np.testing.assert_allclose(np.sum(grads[which] * direction), slope, rtol=5e-3, atol=2e-3)


def test_later_and_foreign_tokens_do_not_matter():
    q, k, v, segments = case("blocks")
    cut = 70
    changed = [x.copy() for x in (q, k, v)]
    for x in changed:
        x[:, cut:] += 1.7
        x[0, :43] -= 2.3  # the first segment of row 0; the second starts at 43
    before = run_forward("blocked", q, k, v, segments)
    after = run_forward("blocked", *changed, segments)
    assert np.abs(before - after)[1, cut:].max() > 0.1
    np.testing.assert_array_equal(before[0, 43:cut], after[0, 43:cut])
    np.testing.assert_array_equal(before[1, :cut], after[1, :cut])


@pytest.mark.parametrize("implementation", ["blocked", "xla", "splash_interpret"])
def test_row_of_padding_is_finite(implementation):
    q, k, v, segments = case("kernel")
    weights = np.ones_like(q)
    (_, out), grads = compiled(implementation)(q, k, v, np.zeros_like(segments), weights)
    for array in (out, *grads):
        assert np.isfinite(array).all()


@pytest.mark.parametrize(
    ("implementation", "axes"), [("blocked", (4, 1, 2)), ("splash_interpret", (8, 2, 2))]
)
def test_on_a_mesh(implementation, axes):
    q, k, v, segments = (np.concatenate([x, x[::-1]]) for x in case("kernel"))
    weights = np.random.default_rng(5).normal(size=q.shape).astype(np.float32)
    (_, alone), alone_grads = compiled(implementation)(q, k, v, segments, weights)
    mesh = tiny.mesh(*axes)
    with use_mesh(mesh):
        batch = put_batch((q, k, v, segments, weights), mesh)
        (_, out), grads = jax.block_until_ready(compiled(implementation)(*batch))
    np.testing.assert_allclose(out, alone, atol=3e-6)
    for grad, reference in zip(grads, alone_grads, strict=True):
        np.testing.assert_allclose(grad, reference, atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("block", "score_bytes"), [(5, 1), (32, 1 << 14), (256, 1 << 30)])
def test_blocks_and_chunks_of_heads(monkeypatch, dtype, block, score_bytes):
    """However the work is cut: output, gradients and shared segments as with the whole mask."""
    monkeypatch.setattr(blocked, "_LEAST_BLOCK", block)
    monkeypatch.setattr(blocked, "_SCORE_BYTES", score_bytes)
    rng = np.random.default_rng(8)
    q, g = rng.normal(size=(2, 3, 37, 6, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 3, 37, 2, 8)).astype(np.float32)
    half = tuple(jnp.asarray(x, dtype) for x in (q, k, v))
    segments = np.ones((3, 37), np.int32)
    segments[0, 11:25], segments[0, 25:] = 2, 3
    segments[1, 30:] = 0
    g[segments == 0] = 0.0

    def both(implementation, *arrays):
        def run(*arrays):
            return attention.attend(*arrays, segments, implementation=implementation, shared=True)

        out, pullback = jax.vjp(run, *arrays)
        return out, *pullback(jnp.asarray(g, out.dtype))

    ours = jax.jit(functools.partial(both, "blocked"))(*half)
    exact = both("xla", *(np.asarray(x, np.float32) for x in half))
    real = segments > 0
    # Rounding of shares and results to bfloat16, 2^-9 each, in sums of up to 37 terms.
    tolerance = 4e-6 if dtype == "float32" else 0.06
    for name, a, b in zip("out q k v".split(), ours, exact, strict=True):
        assert a.dtype == dtype, name
        a, b = (np.asarray(x, np.float32)[real] for x in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance, err_msg=name)
        assert np.abs(a - b).mean() < tolerance / 4, name


def test_a_row_and_a_head_that_no_device_axis_divides():
    """Three rows and one key head on four devices: computed by all of them."""
    q, k, v, segments = (np.concatenate([x, x[:1]]) for x in case("blocks"))

    def both():
        def loss(*arrays):
            out = attention.attend(*arrays, segments, implementation="blocked")
            return jnp.sum(out * np.cos(np.arange(out.size)).reshape(out.shape)), out

        (_, out), grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
        return out, *grads

    alone = both()
    with use_mesh(tiny.mesh(4, 1, 2)):
        on_four = both()
    for found, expected_array in zip(on_four, alone, strict=True):
        np.testing.assert_allclose(found, expected_array, atol=1e-5)


def test_16_bit_arrays_carried_as_integers_have_no_silent_derivative():
    x = jnp.ones(3, jnp.bfloat16)
    np.testing.assert_array_equal(as_floats(as_integers(x), jnp.bfloat16), x)
    with pytest.raises(NotImplementedError, match="no derivative"):
        jax.grad(lambda x: as_floats(as_integers(x), x.dtype).sum())(x)


def test_cached_with_any_mask():
    """Also what decoding never does: gaps, and rows that may see nothing."""
    rng = np.random.default_rng(2)
    q = rng.normal(size=(3, 2, 6, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 3, 2, 11, 8)).astype(np.float32)
    mask = rng.random((3, 2, 11)) < 0.4
    mask[1, 0] = False
    out = np.asarray(attention.attend_cached(q, k.swapaxes(2, 3), v, mask))
    assert np.isfinite(out).all()
    for b, t, h in np.ndindex(3, 2, 6):
        if not mask[b, t].any():
            continue
        scores = k[b, h // 3, mask[b, t]] @ q[b, t, h] / np.sqrt(8)
        shares = np.exp(scores - scores.max())
        reference = shares / shares.sum() @ v[b, h // 3, mask[b, t]]
        np.testing.assert_allclose(out[b, t, h], reference, atol=2e-6)


def test_bfloat16_sums_in_float32():
    q, k, v, segments = case("blocks")
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    for implementation in ("blocked", "xla"):
        out = run_forward(implementation, *half, segments)
        assert out.dtype == jnp.bfloat16
        real = segments > 0
        difference = np.abs(np.asarray(out, np.float32)[real] - expected("blocks")[real])
        assert difference.max() < 0.06 and difference.mean() < 0.004


def test_refused():
    q, k, v, segments = case("short")
    with pytest.raises(UserError, match="attention='blokced' is not valid; did you mean 'blocked'"):
        attention.attend(q, k, v, segments, implementation="blokced")
    with pytest.raises(UserError, match="'splash' needs a length that 128 divides, not 7"):
        attention.attend(q, k, v, segments, implementation="splash_interpret")


def test_new_tokens_behind_a_prefix_attend_in_blocks():
    """Three blocks of new tokens behind a padded prefix, as with the whole mask at once."""
    batch, prefix, new, heads, kv, dim = 2, 11, 301, 4, 2, 6
    rng = np.random.default_rng(5)
    q = rng.normal(size=(batch, new, heads, dim)).astype(np.float32)
    k = rng.normal(size=(batch, kv, dim, prefix + new)).astype(np.float32)
    v = rng.normal(size=(batch, kv, prefix + new, dim)).astype(np.float32)
    column = np.arange(prefix + new)
    mask = (column[None] <= prefix + np.arange(new)[:, None]) & (column >= 3)
    mask = np.broadcast_to(mask, (batch, new, prefix + new))
    whole = attention.attend_cached(q, k, v, mask)
    blocks = attention.attend_prefix(q, k, v, mask)
    np.testing.assert_allclose(blocks, whole, atol=1e-5)


def test_a_cache_of_another_dtype_is_not_rounded():
    """bfloat16 queries and a float32 cache multiply in float32."""
    rng = np.random.default_rng(6)
    q = jnp.asarray(rng.normal(size=(2, 1, 4, 6)), jnp.bfloat16)
    k = rng.normal(size=(2, 2, 6, 9)).astype(np.float32)
    v = rng.normal(size=(2, 2, 9, 6)).astype(np.float32)
    mask = np.ones((2, 1, 9), bool)
    out = attention.attend_cached(q, k, v, mask)
    exact = attention.attend_cached(q.astype(jnp.float32), k, v, mask)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))
