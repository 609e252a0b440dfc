"""Flipped bytes and values that are not finite, in bases, imports and adapters."""

import re

import ml_dtypes
import numpy as np
import pytest

from tests.llm import models
from tests.llm.test_hf import CONFIG, mesh, shardings
from tests.llm.test_peft_io import adapter
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import checkpoint, hf, hf_export, tensorfile
from xrec_jax.llm.io.peft_io import WEIGHTS, load_adapter, save_adapter

NAME = "model.layers.1.self_attn.k_proj.weight"


def flip(file, tensor: tensorfile.Tensor, byte: int = 0) -> None:
    """Changes the lowest bit of a byte of a tensor: of a float32's first, its last place."""
    data = bytearray(file.read_bytes())
    data[tensor.offset + byte] ^= 1
    file.write_bytes(data)


def test_a_flipped_byte_of_a_base_is_named(tmp_path):
    params = hf.load_params(models_at(tmp_path / "source"))
    hf_export.save_params(tmp_path / "out", params, CONFIG)
    file = tmp_path / "out" / "model.safetensors"
    header = tensorfile.read_header(file)
    assert all(tensor.crc is not None for tensor in header.values())
    hf.load_params(tmp_path / "out")
    flip(file, header[NAME])
    message = re.escape(f"{file}: tensor '{NAME}' is damaged: its bytes are not those that were")
    with pytest.raises(UserError, match=message):
        hf.load_params(tmp_path / "out")


def models_at(path):
    models.write(path)
    return path


def test_a_flipped_byte_of_an_adapter_is_named(tmp_path):
    save_adapter(tmp_path / "a", adapter())
    file = tmp_path / "a" / WEIGHTS
    before = load_adapter(tmp_path / "a", CONFIG)
    name, tensor = next(iter(tensorfile.read_header(file).items()))
    flip(file, tensor, byte=4)
    with pytest.raises(UserError, match=re.escape(f"{file}: tensor '{name}' is damaged")):
        load_adapter(tmp_path / "a", CONFIG)
    flip(file, tensor, byte=4)
    after = load_adapter(tmp_path / "a", CONFIG)
    assert str(after) == str(before)


def test_files_of_others_have_no_sums_and_load(tmp_path):
    path = models_at(tmp_path / "base")
    header = tensorfile.read_header(path / "model.safetensors")
    assert all(tensor.crc is None for tensor in header.values())
    flip(path / "model.safetensors", header[NAME])
    hf.load_params(path)  # other values; nobody can know


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_a_value_that_is_not_finite_is_named(tmp_path, dtype, bad):
    rows = np.ones((6, 3), dtype)
    rows[4, 1] = bad
    file = tmp_path / "w.safetensors"
    with tensorfile.Writer(file, [("layer.w", (6, 3))], np.dtype(dtype)) as writer:
        writer.append(rows)
    tensor = tensorfile.read_header(file)["layer.w"]
    message = re.escape(f"{file}: tensor 'layer.w' holds a value that is not finite (row 4)")
    with pytest.raises(UserError, match=message):
        list(tensor.chunks(0, 6))
    assert len(list(tensor.chunks(0, 4))) == 1


def test_the_largest_values_are_fine(tmp_path):
    file = tmp_path / "w.safetensors"
    rows = np.array([np.finfo(np.float32).max, -np.finfo(np.float32).max, 0.0, -0.0], np.float32)
    with tensorfile.Writer(file, [("w", (4,))], np.dtype(np.float32)) as writer:
        writer.append(rows)
    (found,) = [part for _, part in tensorfile.read_header(file)["w"].chunks(0, 4)]
    np.testing.assert_array_equal(found, rows)


@pytest.mark.parametrize("split", [False, True], ids=["host", "devices"])
@pytest.mark.parametrize("key", ["embed", "layers"])
def test_an_import_that_restores_other_values_is_named(tmp_path, monkeypatch, key, split):
    source = hf.open_model(models_at(tmp_path / "hf"))
    honest = checkpoint.tree_checksums

    def wrong(tree):  # as if the bytes had changed between import and restore
        found = honest(tree)
        is_there = (len(tree) > 1) == (key == "layers")
        return {n: (*one[:2], "0" * 8) for n, one in found.items()} if is_there else found

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "tree_checksums", wrong)
        checkpoint.import_model(source, tmp_path / "out")
    folder = checkpoint._folder(tmp_path / "out", key, 0 if key == "layers" else None)
    with pytest.raises(UserError, match=re.escape(str(folder)) + ": .* is damaged: its values"):
        checkpoint.open_model(tmp_path / "out").load_params(
            shardings=shardings(mesh()) if split else None
        )
