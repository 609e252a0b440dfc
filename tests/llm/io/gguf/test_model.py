"""Models in GGUF files: the same as in a Hugging Face directory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
from tests.llm import models
from tests.llm.io.gguf import files
from tests.llm.io.gguf.files import CONFIG, WIDE
from xrec_jax.llm.io import checkpoint, hf
from xrec_jax.llm.io.gguf.model import open_model
from xrec_jax.llm.model.config import RopeScaling
from xrec_jax.llm.model.llama import Llama

KINDS = {**dict.fromkeys(("F32", "F16", "BF16", "Q8_0", "Q4_1"), CONFIG), "Q4_K": WIDE}


def logits(source):
    """Logits of two sequences, in float32."""
    ids = np.random.default_rng(0).integers(0, source.config.vocab_size, (2, 24))
    params = jax.tree.map(jnp.asarray, source.load_params(dtype=np.float32))
    return np.asarray(jax.jit(Llama(source.config).logits)(params, ids))


def both(folder, config=CONFIG, **options):
    """The same model from a GGUF file and from a directory."""
    folder.mkdir(exist_ok=True)
    weights = files.write(folder / "model.gguf", config, **options)
    models.write(folder / "hf", config, weights=weights)
    return checkpoint.open_model(folder / "model.gguf"), hf.open_model(folder / "hf")


@pytest.mark.parametrize("dtype", KINDS)
def test_a_model_is_that_of_the_directory(tmp_path, dtype):
    ours, theirs = both(tmp_path, KINDS[dtype], dtype=dtype)
    assert ours.config == theirs.config
    runs.assert_same_bits(ours.load_params(dtype=np.float32), theirs.load_params())
    np.testing.assert_array_equal(logits(ours), logits(theirs))


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_scaled_rotary_frequencies(tmp_path, factor):
    scaled = dataclasses.replace(
        CONFIG, rope_scaling=RopeScaling(factor, original_max_positions=16), rope_theta=500.0
    )
    ours, theirs = both(tmp_path, scaled)
    assert ours.config == theirs.config
    np.testing.assert_array_equal(logits(ours), logits(theirs))
    plain = both(tmp_path / "plain", dataclasses.replace(scaled, rope_scaling=None))[0]
    assert np.abs(logits(ours) - logits(plain)).max() > 0.1


def test_tied_embeddings(tmp_path):
    ours, theirs = both(tmp_path, dataclasses.replace(CONFIG, tie_embeddings=True), dtype="Q8_0")
    assert ours.config == theirs.config and ours.config.tie_embeddings
    np.testing.assert_array_equal(logits(ours), logits(theirs))


def test_order_of_the_rotary_rows_counts(tmp_path, monkeypatch):
    weights = models.tensors(CONFIG)
    files.write(tmp_path / "right.gguf", weights=weights)
    monkeypatch.setattr(files, "interleaved", lambda rows, head_dim: rows)
    files.write(tmp_path / "wrong.gguf", weights=weights)
    right, wrong = (logits(open_model(tmp_path / f"{name}.gguf")) for name in ("right", "wrong"))
    assert np.abs(right - wrong).max() > 0.1
