"""Whitened encodings against singular values, and the recommender that reads them."""

import jax
import numpy as np
import pytest

from tests.recommenders.test_fused import SMALL, WIDTH, base_of, batch_of, compiled, params_of
from tests.tiny import data
from xrec_jax.core.errors import UserError
from xrec_jax.recommenders.explained.build import fuse
from xrec_jax.recommenders.whitening import whitening


def encodings(rows, width, seed=0):
    """Features that depend on each other, on scales far apart; some parts are not there."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(rows, 2, width)) @ rng.normal(size=(width, width))
    found = (mixed * 10.0 ** rng.uniform(-2, 2, width) + 3.0).astype(np.float32)
    return found, rng.random((rows, 2)) < 0.8


def test_components_are_those_of_the_singular_values():
    encoding, present = encodings(43, 9)
    encoding[:, 0, 4] = 0.7  # tells nothing
    encoding[:, 1, 2] = 2 * encoding[:, 1, 0] - 5  # tells nothing new
    mean, basis = whitening(encoding, present, 6)
    assert mean.shape == (2, 9) and basis.shape == (2, 9, 6)
    assert mean.dtype == basis.dtype == np.float32
    for part, constant in ((0, [4]), (1, [])):
        rows = encoding[present[:, part], part].astype(np.float64)
        made = (rows - mean[part]) @ basis[part]
        np.testing.assert_allclose(made.mean(axis=0), 0, atol=1e-4)
        np.testing.assert_allclose(made.T @ made / len(rows), np.eye(6), atol=1e-3)
        kept = np.setdiff1d(np.arange(9), constant)
        plain = (rows - rows.mean(axis=0))[:, kept] / rows.std(axis=0)[kept]
        left, _, right = np.linalg.svd(plain, full_matrices=False)
        for k in range(6):
            sign = np.sign(right[k, np.abs(right[k]).argmax()])  # the largest entry is positive
            np.testing.assert_allclose(
                made[:, k], sign * np.sqrt(len(rows)) * left[:, k], atol=2e-3
            )
    assert not basis[0, 4].any()  # whatever a constant feature is in other texts


def test_directions_in_which_nothing_differs_are_zero():
    encoding, present = encodings(4, 7, seed=1)
    present[:, 0], present[:, 1] = True, [True, False, False, False]
    mean, basis = whitening(encoding, present, 7)
    assert basis[0].any(axis=0).tolist() == [True] * 3 + [False] * 4  # of four texts
    assert not mean[1].any() and not basis[1].any()  # of one
    encoding[:, 0] = encoding[0, 0]
    mean, basis = whitening(encoding, present, 3)
    np.testing.assert_allclose(mean[0], encoding[0, 0], rtol=1e-6)
    assert not basis.any()
    for array in whitening(encoding[:0], present[:0], 3):
        assert not array.any()


def test_a_recommender_reads_components():
    """As one that is given the very components in place of the encodings."""
    batch = batch_of(13)
    encoding, present = encodings(50, WIDTH, seed=2)
    batch["encoding"] = encoding[:13]
    mean, basis = whitening(encoding, present, 4)
    plain = fuse(base_of("bpr"), null_dropout=0.0, **SMALL | {"encoding": 4})
    model = fuse(base_of("bpr"), null_dropout=0.0, components=4, **SMALL)
    params, train = params_of(plain), data().split.train
    arrays = dict(model.frozen(train.user, train.item).arrays)
    assert arrays["basis"].shape == basis.shape and "std" not in arrays
    arrays |= {"mean": mean, "basis": basis}
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(
        jax.eval_shape(plain.init, jax.random.key(0))
    )
    made = np.einsum("npe,pek->npk", encoding[:13].astype(np.float64) - mean, basis)
    other = dict(plain.frozen(train.user, train.item).arrays)
    expected = compiled(plain)(params, other, batch | {"encoding": made.astype(np.float32)})
    found = compiled(model)(params, arrays, batch)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, two, rtol=2e-4, atol=2e-4)
    with pytest.raises(UserError, match="components need `basis`"):
        model.item_scores(params, {k: v for k, v in arrays.items() if k != "basis"}, batch)
    with pytest.raises(UserError, match="components"):
        fuse(base_of("bpr"), components=WIDTH + 1, **SMALL)
