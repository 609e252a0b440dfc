"""Keyed random numbers: golden values, an integer reference, uniformity, independence."""

import ast
import pathlib

import numpy as np
import pytest

import xrec_jax
from xrec_jax.core import rng

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x):
    """SplitMix64's finaliser in whole numbers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def bits(key, counter):
    first = mix((counter * GOLDEN + key) & MASK)
    return mix((first + key * 0xBF58476D1CE4E5B9) & MASK)


# Pinned: if one of these changes, every run's data order changes with it.
def test_golden_values():
    assert rng.fold(0, 0) == 16294208416658607535
    assert rng.fold(17, 3, 5) == 6690248390609071223
    assert rng.random_bits(42, np.arange(3)).tolist() == [
        8575442924938739861,
        14001610513326942053,
        11903104841779981119,
    ]
    assert rng.random_integers(42, np.arange(8), 1000).tolist() == [
        464,
        759,
        645,
        979,
        388,
        692,
        429,
        994,
    ]
    assert rng.permutation(7, 10).tolist() == [6, 3, 9, 1, 2, 0, 5, 7, 8, 4]


def test_fold_is_splitmix64():
    # The published generator's first outputs from seed 1234567.
    assert rng.fold(0, 1234567) == 6457827717110365317
    assert rng.fold(1, 1234567) == 3203168211198807973
    state = 17
    for value in (3, 5, MASK):
        state = mix((state * GOLDEN + value + GOLDEN) & MASK)
    assert rng.fold(17, 3, 5, MASK) == state
    assert rng.fold(17) == 17


def test_fold_tells_keys_apart():
    keys = {rng.fold(a, b, c) for a in range(12) for b in range(12) for c in range(12)}
    keys |= {rng.fold(a, b) for a in range(12) for b in range(12)}
    assert len(keys) == 12**3 + 12**2


@pytest.mark.parametrize("key", [0, 1, 5_000_000_019, MASK])
def test_bits_against_whole_numbers(key):
    counter = np.array([0, 1, 2, 3**30, 2**63], np.uint64)
    words = rng.random_bits(key, counter)
    assert words.dtype == np.uint64
    assert words.tolist() == [bits(key, int(c)) for c in counter]
    uniform = rng.random_uniform(key, counter)
    assert uniform.tolist() == [(bits(key, int(c)) >> 11) / 2**53 for c in counter]
    assert ((uniform >= 0) & (uniform < 1)).all()
    high = np.array([1, 2, 7, 2**20 + 1, 2**32 - 1])
    drawn = rng.random_integers(key, counter, high)
    assert drawn.dtype == np.int64
    assert drawn.tolist() == [
        ((bits(key, int(c)) >> 32) * int(h)) >> 32 for c, h in zip(counter, high, strict=True)
    ]


def test_pure_function_of_key_and_counter():
    counter = np.arange(60).reshape(3, 4, 5)
    whole = rng.random_bits(9, counter)
    assert whole.shape == counter.shape
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_array_equal(rng.random_bits(9, order), whole.reshape(-1)[order])
    np.testing.assert_array_equal(rng.random_bits(9, counter[1, 2]), whole[1, 2])
    np.testing.assert_array_equal(rng.random_bits(9, counter.astype(np.int32)), whole)
    assert not np.intersect1d(rng.random_bits(10, counter), whole).size


def chi_square(counts, expected):
    return float(((counts - expected) ** 2 / expected).sum())


def sequences():
    """Words along the counter, for some keys, and along the key, as epochs do."""
    counter = np.arange(1 << 15)
    yield from (rng.random_bits(key, counter) for key in (0, 1, 2, rng.fold(3, 1, 0)))
    keys = (rng.fold(11, epoch) for epoch in range(4096))
    yield np.array([rng.random_bits(key, 5) for key in keys], np.uint64).reshape(-1)


def test_words_are_uniform():
    for words in sequences():
        n = len(words)
        # 64 bits and 3 tables of 255 degrees of freedom, a mean +- 5 standard deviations each.
        ones = ((words[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(0)
        assert np.abs(ones - 0.5).max() < 5 * 0.5 / np.sqrt(n)
        for shift in (0, 31, 56):
            octet = ((words >> np.uint64(shift)) & np.uint64(255)).astype(int)
            found = chi_square(np.bincount(octet, minlength=256), n / 256)
            assert abs(found - 255) < 5 * np.sqrt(2 * 255)


def test_words_are_independent():
    for words in sequences():
        x = (words >> np.uint64(11)) * 2.0**-53 - 0.5
        for lag in (1, 2, 7, 64):
            # The product of two uniforms on (-1/2, 1/2) has variance 1/144.
            assert abs((x[lag:] * x[:-lag]).mean()) < 5 / 12 / np.sqrt(len(x) - lag)
        pairs = (np.floor((x[::2] + 0.5) * 16) * 16 + np.floor((x[1::2] + 0.5) * 16)).astype(int)
        found = chi_square(np.bincount(pairs, minlength=256), len(pairs) / 256)
        assert abs(found - 255) < 5 * np.sqrt(2 * 255)
    a, b = (rng.random_uniform(key, np.arange(1 << 15)) - 0.5 for key in (6, 7))
    assert abs((a * b).mean()) < 5 / 12 / np.sqrt(1 << 15)


@pytest.mark.parametrize("high", [2, 3, 61, 100])
def test_integers_are_uniform(high):
    drawn = rng.random_integers(rng.fold(4, high), np.arange(1 << 15), high)
    counts = np.bincount(drawn, minlength=high)
    assert len(counts) == high
    freedom = high - 1
    assert abs(chi_square(counts, len(drawn) / high) - freedom) < 5 * np.sqrt(2 * freedom) + 5


def test_permutation_is_one():
    for size in (0, 1, 2, 37):
        order = rng.permutation(3, size)
        assert order.dtype == np.int64
        assert sorted(order.tolist()) == list(range(size))
        np.testing.assert_array_equal(order, rng.permutation(3, size))
    assert rng.permutation(3, 37).tolist() != rng.permutation(4, 37).tolist()
    assert sorted(rng.permutation(MASK, 5).tolist()) == list(range(5))
    # Every order of three is as likely as another: 6 cells, 5 degrees of freedom.
    orders = [tuple(rng.permutation(rng.fold(1, epoch), 3).tolist()) for epoch in range(1200)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert chi_square(counts, 200) < 5 + 5 * np.sqrt(10)


def bare_purposes(source: str) -> list[int]:
    """Lines where a purpose is folded into a seed as a bare number."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if ast.unparse(call.func).split(".")[-1] == "fold"
        and len(call.args) > 1
        and isinstance(call.args[1], ast.Constant)
        and isinstance(call.args[1].value, int)
    ]


def test_every_stream_has_a_name():
    assert bare_purposes("x = 1\nrng.fold(seed, 53, x)") == [2]
    assert bare_purposes("rng.fold(seed, Stream.ROWS, 3)\nrng.fold(3)") == []
    for path in pathlib.Path(xrec_jax.__file__).parent.rglob("*.py"):
        assert bare_purposes(path.read_text(encoding="utf-8")) == [], path


def test_names_of_streams_fold_as_their_numbers():
    assert rng.fold(17, rng.Stream.WINDOWS, 5) == rng.fold(17, 2, 5)
    assert rng.fold(0, rng.Stream.SHARED_53) == rng.fold(0, 53)
    numbers = [int(stream) for stream in rng.Stream]
    assert numbers == sorted(set(numbers))
