"""The choice of a token against Hugging Face's filters, written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.llm.generation.sampling import Sampling, choose

VOCAB = 13


@functools.cache
def logits(rows=4):
    """No two alike, and not in order."""
    rng = np.random.default_rng(11)
    return (2.0 * rng.normal(size=(rows, VOCAB))).astype(np.float32)


def softmax(scores):
    shares = np.exp(scores - scores.max())
    return shares / shares.sum()


def distribution(row, options, seen=()):
    """The filters in the order of transformers' generation, each on what the one before left."""
    scores = row.astype(np.float64)
    for token in seen:
        penalty = options.repetition_penalty
        scores[token] = scores[token] / penalty if scores[token] > 0 else scores[token] * penalty
    scores = scores / options.temperature
    if options.top_k:
        kth = np.sort(scores)[-min(options.top_k, len(scores))]
        scores[scores < kth] = -np.inf
    if options.top_p < 1:
        ascending = np.argsort(scores)
        below = np.cumsum(softmax(scores[ascending]))
        removed = below <= 1 - options.top_p
        removed[-1] = False
        scores[ascending[removed]] = -np.inf
    if options.min_p > 0:
        shares = softmax(scores)
        scores[shares < options.min_p * shares.max()] = -np.inf
    return softmax(scores)


@functools.cache
def compiled(options):
    def many(logits, seeds, counts, seen):
        return choose(logits, options, seeds=seeds, counts=counts, seen=seen)

    return jax.jit(many)


def draw(row, options, draws, seen=None):
    """Tokens and log-probabilities of `draws` rows that differ in their seeds only."""
    rows = np.tile(row, (draws, 1))
    marks = np.zeros((draws, len(row)), bool)
    marks[:, list(seen or ())] = True
    seeds = np.arange(draws, dtype=np.uint32)
    return jax.tree.map(
        np.asarray, compiled(options)(rows, seeds, np.full(draws, 3, np.int32), marks)
    )


FILTERS = {
    "none": Sampling(temperature=1.0),
    "hot": Sampling(temperature=1.9),
    "top_k": Sampling(temperature=1.3, top_k=4),
    "top_p": Sampling(temperature=1.3, top_p=0.8),
    "min_p": Sampling(temperature=1.3, min_p=0.15),
    "penalty": Sampling(temperature=0.9, repetition_penalty=1.7),
    "top_k and top_p": Sampling(temperature=1.5, top_k=6, top_p=0.85),
    "top_p and min_p": Sampling(temperature=1.5, top_p=0.9, min_p=0.2),
    "all": Sampling(temperature=1.6, top_k=8, top_p=0.9, min_p=0.08, repetition_penalty=1.4),
}
SEEN = (1, 4, 7, 12)


@pytest.mark.parametrize("name", FILTERS)
def test_distribution(name):
    options, draws = FILTERS[name], 4000
    seen = SEEN if options.penalises else ()
    row = logits()[1]
    expected = distribution(row, options, seen)
    tokens, _ = draw(row, options, draws, SEEN)
    counts = np.bincount(tokens, minlength=VOCAB)
    # What a filter removes never comes; everything likely that it leaves does.
    assert not np.any(counts[expected == 0])
    assert np.all(counts[expected > 0.005])
    kept = expected > 0
    statistic = np.sum((counts - draws * expected)[kept] ** 2 / (draws * expected[kept]))
    freedom = kept.sum() - 1
    assert freedom >= 2
    # 4 standard deviations of a chi-square (mean k, variance 2k) at fixed seeds.
    assert statistic < freedom + 4 * np.sqrt(2 * freedom)


def test_filters_leave_what_they_should():
    """The cases above would be weak if a filter removed nothing, or different ones the same."""
    kept = {
        name: tuple(np.flatnonzero(distribution(logits()[1], options, SEEN)))
        for name, options in FILTERS.items()
    }
    assert len(kept["none"]) == VOCAB and len(kept["top_k"]) == 4
    assert len({kept[n] for n in ("top_k", "top_p", "min_p", "top_k and top_p", "all")}) >= 4


@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (VOCAB, 1.0, 0.0),
        (VOCAB + 9, 0.5, 0.0),
        (VOCAB - 1, 1.0, 0.0),
        (5, 1e-6, 0.0),
        (0, 0.5, 0.3),
        (0, 1.0, 1.0),
        (5, 0.7, 0.3),
    ],
)
def test_support_of_every_row(top_k, top_p, min_p):
    """Every token that is left comes up, no other: 300 seeds of a flat distribution."""
    options = Sampling(temperature=2.0, top_k=top_k, top_p=top_p, min_p=min_p)
    row = 0.4 * logits()[2]
    expected = np.flatnonzero(distribution(row, options))
    tokens, _ = draw(row, options, 300)
    assert sorted(set(tokens.tolist())) == expected.tolist()


@pytest.mark.parametrize("options", [Sampling(temperature=1.3, top_p=1e-9), Sampling()])
def test_the_best_token_is_always_left(options):
    tokens, _ = draw(logits()[0], options, 50)
    assert set(tokens.tolist()) == {int(np.argmax(logits()[0]))}


@pytest.mark.parametrize("penalty", [1.0, 3.0, 0.4])
def test_greedy_with_penalty(penalty):
    seen = np.zeros((4, VOCAB), bool)
    seen[np.arange(4), np.argmax(logits(), axis=1)] = True
    seen[1, 2:6] = True
    options = Sampling(repetition_penalty=penalty)
    tokens, log_p = choose(
        jnp.asarray(logits()),
        options,
        seeds=np.zeros(4, np.uint32),
        counts=np.zeros(4, np.int32),
        seen=jnp.asarray(seen),
    )
    for i, row in enumerate(logits()):
        scores = row.copy()
        for token in np.flatnonzero(seen[i]):
            scores[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
        assert tokens[i] == np.argmax(scores)
        np.testing.assert_allclose(log_p[i], np.log(softmax(row)[tokens[i]]), rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.3])
def test_log_prob_is_of_the_whole_distribution(temperature):
    """At the sampling temperature, before any filter and penalty."""
    options = Sampling(
        temperature=temperature, top_k=3, top_p=0.7, min_p=0.1, repetition_penalty=2.0
    )
    tokens, log_p = draw(logits()[3], options, 40, SEEN)
    shares = softmax(logits()[3].astype(np.float64) / (temperature or 1.0))
    np.testing.assert_allclose(log_p, np.log(shares[tokens]), rtol=1e-5)
    assert tokens.dtype == np.int32 and log_p.dtype == np.float32


@pytest.mark.parametrize("name", ["none", "all"])
def test_a_row_does_not_depend_on_its_batch(name):
    rows = logits(9)
    seeds, counts = np.arange(9, dtype=np.uint32) * 7, np.arange(9, dtype=np.int32)
    seen = np.zeros((9, VOCAB), bool)
    seen[::2, 3] = True
    run = compiled(FILTERS[name])
    together, log_p = run(rows, seeds, counts, seen)
    order = np.random.default_rng(0).permutation(9)[:5]
    some, some_log_p = run(rows[order], seeds[order], counts[order], seen[order])
    np.testing.assert_array_equal(some, np.asarray(together)[order])
    np.testing.assert_allclose(some_log_p, np.asarray(log_p)[order], rtol=1e-6)


def test_seeds_and_counts_both_matter():
    row, run = logits()[1], compiled(FILTERS["hot"])
    seeds, counts = np.meshgrid(np.arange(30, dtype=np.uint32), np.arange(30, dtype=np.int32))
    seen = np.zeros((900, VOCAB), bool)
    tokens = run(np.tile(row, (900, 1)), seeds.ravel(), counts.ravel(), seen)[0]
    tokens = np.asarray(tokens).reshape(30, 30)
    assert len(np.unique(tokens, axis=0)) == 30 and len(np.unique(tokens, axis=1).T) == 30
    # The draw of seed s at step t + 1 is not that of seed s + 1 at step t.
    assert np.mean(tokens[1:, :-1] == tokens[:-1, 1:]) < 0.6
    last = run(
        np.tile(row, (1, 1)), np.array([2**32 - 1], np.uint32), np.array([5], np.int32), seen[:1]
    )[0]
    assert 0 <= int(last[0]) < VOCAB


@pytest.mark.parametrize("temperature", [9e-5, 1e-10, 1e-30, 1e-45, 5e-324, np.float32(1e-38)])
def test_tiny_temperatures_are_greedy(temperature):
    """Divided by them, logits leave the range of float32; ties are told apart by their place."""
    logits = jnp.array([[-90.0, 88.0, 3.0, 87.9], [5.0, 2e4, 2e4, -2e4], [0.0, 0.0, 0.0, 0.0]])
    seeds, counts = jnp.arange(3, dtype=jnp.uint32), jnp.zeros(3, jnp.int32)
    for filters in ({}, {"top_k": 2, "top_p": 0.9, "min_p": 0.1}):
        options = Sampling(temperature, **filters)
        tokens, log_probs = choose(logits, options, seeds=seeds, counts=counts)
        assert tokens.tolist() == [1, 1, 0] and options.greedy
        np.testing.assert_allclose(log_probs, [0.0, -np.log(2), -np.log(4)], atol=1e-6)


REFUSED = {
    "temperature=None must be a finite number": {"temperature": None},
    "temperature=True must be a finite number": {"temperature": True},
    "top_k=2.0 must be a whole number": {"top_k": 2.0},
    "repetition_penalty=inf must be a finite number": {"repetition_penalty": float("inf")},
    "temperature=-0.1 must be a finite number from 0": dict(temperature=-0.1),
    "temperature=nan": dict(temperature=float("nan")),
    "temperature=inf": dict(temperature=float("inf")),
    "top_k=-1 must be a whole number from 0": dict(top_k=-1),
    "top_p=0.0 must be above 0 and at most 1": dict(top_p=0.0),
    "top_p=1.1": dict(top_p=1.1),
    "min_p=-0.1 must be from 0 to 1": dict(min_p=-0.1),
    "min_p=1.5": dict(min_p=1.5),
    "repetition_penalty=0.0 must be positive": dict(repetition_penalty=0.0),
    "repetition_penalty=nan": dict(repetition_penalty=float("nan")),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    with pytest.raises(UserError) as error:
        Sampling(**REFUSED[message])
    assert message in str(error.value)
