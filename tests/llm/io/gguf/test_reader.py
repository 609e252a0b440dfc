"""Headers of GGUF files, rows of all types, and damaged files."""

import struct

import gguf
import numpy as np
import pytest

from tests.llm import models
from tests.llm.io.gguf import blocks, files
from tests.llm.io.gguf.files import CONFIG
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.gguf import reader
from xrec_jax.llm.io.gguf.model import open_model

NAME = "blk.1.ffn_up.weight"
COUNTS = 8  # where the numbers of tensors and entries lie


def single(path, data, dtype):
    """Writes a file with one tensor; returns it as read."""
    writer = gguf.GGUFWriter(None, "llama")
    writer.add_tensor("x", data, raw_dtype=gguf.GGMLQuantizationType[dtype])
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return reader.read_file(path).tensors["x"]


@pytest.mark.parametrize("dtype", blocks.LAYOUTS)
def test_blocks_mean_what_the_format_says(tmp_path, dtype):
    data = blocks.random(dtype, 5, 512)
    tensor = single(tmp_path / "x.gguf", data, dtype)
    expected = blocks.values(dtype, data)
    assert tensor.dtype == dtype and tensor.shape == (5, 512)
    np.testing.assert_allclose(tensor.read(), expected, rtol=1e-6, atol=1e-7)
    assert 0.001 < expected.std() < 5
    parts = list(tensor.chunks(1, 4))
    assert [first for first, _ in parts] == [1]
    np.testing.assert_array_equal(parts[0][1], tensor.read()[1:4])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_plain_numbers_stay_as_they_are(tmp_path, dtype):
    values = np.random.default_rng(0).normal(size=(6, 10)).astype(np.float32)
    tensor = single(
        tmp_path / "x.gguf", gguf.quantize(values, gguf.GGMLQuantizationType[dtype]), dtype
    )
    assert tensor.read().dtype == tensor.array_dtype
    tolerance = {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2}[dtype]
    np.testing.assert_allclose(tensor.read().astype(np.float32), values, rtol=tolerance)


def test_chunks_meet(tmp_path, monkeypatch):
    data = blocks.random("Q8_0", 9, 64)
    tensor = single(tmp_path / "x.gguf", data, "Q8_0")
    whole = tensor.read()
    monkeypatch.setattr(reader, "_CHUNK", 2 * 4 * 64)
    parts = list(tensor.chunks(1, 8))
    assert [(first, len(rows)) for first, rows in parts] == [(1, 2), (3, 2), (5, 2), (7, 1)]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), whole[1:8])


def test_header_is_that_of_the_package(tmp_path):
    more = {
        "tokenizer.ggml.tokens": ["a", "Ġ", "…"],
        "tokenizer.ggml.scores": [0.5, -1.0, 2.0],
        "own.flag": True,
        "own.text": "naïve",
        "own.negative": [-1, 5],
        "general.alignment": 64,
    }

    def add(writer):
        writer.add_int16("own.short", -7)
        writer.add_uint64("own.long", 1 << 60)
        writer.add_float64("own.double", 0.1)
        writer.data_alignment = 64

    files.write(tmp_path / "x.gguf", metadata=more, dtype="Q4_1", change=add)
    file, theirs = reader.read_file(tmp_path / "x.gguf"), gguf.GGUFReader(tmp_path / "x.gguf")
    fields = {key: field.contents() for key, field in theirs.fields.items() if key[:5] != "GGUF."}
    ours = {
        key: value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in file.metadata.items()
    }
    assert ours == fields and fields["own.text"] == "naïve" and fields["own.long"] == 1 << 60
    assert list(file.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = file.tensors[tensor.name]
        assert mine.offset == tensor.data_offset and mine.dtype == tensor.tensor_type.name
        assert mine.shape == tuple(tensor.shape.tolist()[::-1])


def put(offset, kind, value):
    """A change that overwrites a number."""

    def change(data):
        size = struct.calcsize(f"<{kind}")
        return data[:offset] + struct.pack(f"<{kind}", value) + data[offset + size :]

    return change


def after(text, offset, kind, value):
    """A change that overwrites a number behind a text of the header."""
    return lambda data: put(data.index(text) + len(text) + offset, kind, value)(data)


DAMAGE = {
    "empty": (lambda data: b"", "not a GGUF file"),
    "another format": (lambda data: b"PK\3\4" + data[4:], "not a GGUF file"),
    "GGML": (lambda data: b"lmgg" + data[4:], "older format"),
    "Git LFS": (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "version": (put(4, "I", 1), "GGUF version 1 is not supported; only 2 and 3"),
    "future version": (put(4, "I", 4), "GGUF version 4 is not supported"),
    "big-endian": (put(4, "I", 3 << 24), "big-endian"),
    "tensor count": (put(COUNTS, "Q", 1 << 62), "promises 4611686018427387904 tensors"),
    "entry count": (put(COUNTS + 8, "Q", 1 << 40), "metadata entries"),
    "one tensor too many": (put(COUNTS, "Q", 22), "damaged or truncated"),
    "length of a key": (put(COUNTS + 16, "Q", 1 << 63), "a key of the metadata has a length of"),
    "length of a text": (after(b"general.architecture", 4, "Q", 1 << 40), "has a length of"),
    "type of a value": (after(b"general.architecture", 0, "I", 77), "value of unknown type 77"),
    "length of an array": (after(b"own.texts", 8, "Q", 1 << 61), "has 2305843009213693952 texts"),
    "length of numbers": (after(b"own.numbers", 8, "Q", 1 << 61), "'own.numbers' takes"),
    "array of arrays": (after(b"own.numbers", 4, "I", 9), "value of unknown type 9"),
    "a key twice": (lambda data: data.replace(b"own.numbers", b"own.another"), "twice"),
    "no UTF-8": (lambda data: data.replace(b"own.texts", b"own.t\xff\xffts"), "UTF-8"),
    "dimensions": (after(NAME.encode(), 0, "I", 99), "has 99 dimensions"),
    "size": (after(NAME.encode(), 4, "Q", 1 << 60), "has shape"),
    "no size": (after(NAME.encode(), 4, "Q", 0), "has shape"),
    "part of a block": (after(NAME.encode(), 4, "Q", 63), "cannot be of type Q8_0"),
    "unknown type": (after(NAME.encode(), 20, "I", 321), "is of type unknown (321)"),
    "removed type": (after(NAME.encode(), 20, "I", 4), "is of type unknown (4)"),
    "type of activations": (after(NAME.encode(), 20, "I", 15), "is of type Q8_K, which cannot"),
    "offset": (after(NAME.encode(), 24, "Q", 1 << 62), "does not lie behind"),
    "a tensor twice": (
        lambda data: data.replace(NAME.encode(), b"blk.0.ffn_up.weight"),
        "has tensor 'blk.0.ffn_up.weight' twice",
    ),
    "alignment": (lambda data: data.replace(b"own.alignment....", b"general.alignment"), "=48"),
    "truncated": (lambda data: data[:-100], "is truncated: it has"),
    "truncated header": (lambda data: data[:300], "damaged or truncated"),
}


@pytest.mark.parametrize("case", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage(tmp_path, case):
    change, words = case
    path = tmp_path / "x.gguf"
    more = {
        "own.texts": ["a", "b"],
        "own.numbers": [1, 2],
        "own.another": 1,
        "own.alignment....": 48,
    }
    files.write(path, dtype="Q8_0", metadata=more)
    data = path.read_bytes()
    open_model(path)
    path.write_bytes(change(data))
    assert path.read_bytes() != data
    with pytest.raises(UserError) as caught:
        open_model(path)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message
    assert len(message) < 400


def test_split_files_are_refused(tmp_path):
    path = tmp_path / "x-00001-of-00003.gguf"
    files.write(path, metadata={"split.count": 3, "split.no": 0})
    with pytest.raises(UserError, match=r"one of 3 files of a split model; join them"):
        open_model(path)


def test_version_two(tmp_path):
    files.write(tmp_path / "x.gguf")
    data = (tmp_path / "x.gguf").read_bytes()
    (tmp_path / "two.gguf").write_bytes(put(4, "I", 2)(data))
    assert open_model(tmp_path / "two.gguf").config == CONFIG


def test_a_value_that_is_not_finite(tmp_path):
    weights = models.tensors(CONFIG)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    files.write(tmp_path / "x.gguf", weights=weights)
    model = open_model(tmp_path / "x.gguf")
    with pytest.raises(UserError, match=rf"'{NAME}' holds a value that is not finite \(row 3\)"):
        model.load_params()


def test_a_scale_that_is_not_finite(tmp_path):
    data = blocks.random("Q4_K", 4, 256)
    data[2, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(UserError, match=r"not finite \(row 2\)"):
        single(tmp_path / "x.gguf", data, "Q4_K").read()


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    files.write(tmp_path / "x.gguf")
    model = open_model(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").write_bytes((tmp_path / "x.gguf").read_bytes()[:-8])
    with pytest.raises(UserError, match="it ends inside tensor"):
        model.load_params()
    (tmp_path / "x.gguf").unlink()
    with pytest.raises(UserError, match=r"cannot read .*x\.gguf: No such file"):
        model.load_params()


def test_is_gguf(tmp_path):
    files.write(tmp_path / "x.gguf")
    (tmp_path / "x.gguf").rename(tmp_path / "blob")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text").write_text("a")
    named = {"blob": True, "folder.gguf": False, "text": False, "nowhere.GGUF": True, ".": False}
    assert {name: reader.is_gguf(tmp_path / name) for name in named} == named
    assert reader.is_gguf("gs://bucket/x.gguf") and not reader.is_gguf("gs://bucket/x")
    assert not reader.is_gguf(tmp_path / ("x" * 300))
