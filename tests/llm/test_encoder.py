"""Encodings of texts against one plain pass a text."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.encoder import TextEncoder
from xrec_jax.llm.language_model import shardings
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import put_sharded, use_mesh

CONFIG = dataclasses.replace(tiny.LLAMA, num_layers=1)
MODEL = Llama(CONFIG)


def texts(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 64, length).tolist() for length in lengths]


LENGTHS = (5, 0, 17, 16, 5, 0, 40)


@jax.jit
def states(ids):
    return MODEL.hidden(tiny.llama_params(CONFIG), ids)


def naive(text):
    """One text alone, no padding, no batch."""
    if not text:
        return np.zeros(16)
    return np.asarray(states(jnp.asarray([text], jnp.int32))[0], np.float64).mean(0)


def test_an_encoding_is_the_mean_of_the_last_states():
    some = texts(LENGTHS)
    found, there = TextEncoder(MODEL, tiny.llama_params(CONFIG), batch=4)(some)
    assert found.shape == (len(some), 16) and found.dtype == np.float32
    np.testing.assert_array_equal(there, [length > 0 for length in LENGTHS])
    np.testing.assert_allclose(found, [naive(text) for text in some], atol=2e-5)
    assert not found[1].any() and np.abs(found[0] - found[4]).max() > 0.1


def test_an_encoding_of_embeddings_is_the_mean_of_table_rows():
    some, params = texts(LENGTHS), tiny.llama_params(CONFIG)
    table = np.asarray(params["embed"]["table"], np.float64)
    found, there = TextEncoder(MODEL, params, batch=4, layer="embedding")(some)
    assert found.shape == (len(some), 16) and found.dtype == np.float32
    np.testing.assert_array_equal(there, [length > 0 for length in LENGTHS])
    for row, text in zip(found, some, strict=True):
        expected = sum((table[token] for token in text), np.zeros(16)) / max(1, len(text))
        np.testing.assert_allclose(row, expected, atol=1e-6)


def test_company_and_padding_change_nothing():
    some = texts(LENGTHS)
    encoder = TextEncoder(MODEL, tiny.llama_params(CONFIG), batch=8)
    found, _ = encoder(some)
    turned, _ = encoder(some[::-1])
    np.testing.assert_allclose(turned[::-1], found, atol=1e-5)
    for number in (0, 6):
        np.testing.assert_allclose(
            encoder(some[number : number + 1])[0][0], found[number], atol=1e-5
        )


def test_few_shapes():
    shapes = []
    encoder = TextEncoder(MODEL, tiny.llama_params(CONFIG), batch=16)
    encoder._encode = lambda params, ids, lengths: (
        shapes.append(ids.shape) or np.zeros((len(ids), 16), np.float32)
    )
    encoder(texts(np.arange(60)))
    assert set(shapes) <= {(rows, width) for rows in (8, 16) for width in (16, 24, 32, 48, 64)}
    assert len(shapes) == 5 and (16, 16) in shapes


def test_rows_split_over_a_mesh():
    some, mesh = texts(LENGTHS), tiny.mesh(8, 2, 2)
    with use_mesh(mesh):
        params = put_sharded(tiny.llama_params(CONFIG), shardings(MODEL, mesh))
        encoder = TextEncoder(MODEL, params, batch=5)
        found, there = encoder(some)
        made = encoder._run([np.asarray(text) for text in some], np.array([0, 4]))
    parts = {s.data.shape for s in made.addressable_shards}
    assert parts == {(8 // 4, 16)}
    np.testing.assert_array_equal(there, [length > 0 for length in LENGTHS])
    np.testing.assert_allclose(found, [naive(text) for text in some], atol=2e-5)


def test_no_texts():
    found, there = TextEncoder(MODEL, tiny.llama_params(CONFIG))([])
    assert found.shape == (0, 16) and there.shape == (0,)
    found, there = TextEncoder(MODEL, tiny.llama_params(CONFIG))([[], []])
    assert not found.any() and not there.any()


def test_what_cannot_be_read_is_refused():
    encoder = TextEncoder(MODEL, tiny.llama_params(CONFIG))
    with pytest.raises(UserError, match="text 1 has 65 tokens, but the model takes 64"):
        encoder([[3], [1] * 65])
    with pytest.raises(UserError, match="text 0 must hold ids from 0 to 63"):
        encoder([[3, 64]])
    with pytest.raises(UserError, match="batch=0 must be at least 1"):
        TextEncoder(MODEL, tiny.llama_params(CONFIG), batch=0)
    with pytest.raises(UserError, match="layer='embeding' is not valid; did you mean 'embedding'"):
        TextEncoder(MODEL, tiny.llama_params(CONFIG), layer="embeding")


def test_attention_of_fixed_lengths_is_not_asked_for_any_length():
    some, params = texts((5, 17)), tiny.llama_params(CONFIG)
    chosen = dataclasses.replace(MODEL, attention="splash")  # multiples of 128, on a TPU
    found, _ = TextEncoder(chosen, params)(some)
    np.testing.assert_array_equal(found, TextEncoder(MODEL, params)(some)[0])
