"""Models in GGUF files: the same as in a Hugging Face directory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import runs
from tests.llm import models
from tests.llm.io.gguf import files, vocabularies
from tests.llm.io.gguf.files import CONFIG, WIDE
from tests.llm.test_hf import shardings
from xrec_jax import cli
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import checkpoint, hf, peft_io
from xrec_jax.llm.io.gguf import reader
from xrec_jax.llm.io.gguf.model import open_model
from xrec_jax.llm.io.gguf.names import is_rotated
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.language_model import load_llm
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.config import RopeScaling
from xrec_jax.llm.model.layout import parameters
from xrec_jax.llm.model.llama import Llama
from xrec_jax.parallel.mesh import make_mesh

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


def test_bfloat16_files_keep_their_dtype(tmp_path):
    """Writers store the vectors of a bfloat16 model in float32, where they are exact."""
    weights = models.tensors(CONFIG, "bfloat16")
    files.write(tmp_path / "narrow.gguf", weights=weights, dtype="BF16")
    model = open_model(tmp_path / "narrow.gguf")
    assert model.dtype == "bfloat16"
    assert model.load_params()["final_norm"]["scale"].dtype == jnp.bfloat16
    weights["model.norm.weight"] = np.full(64, 1.0001, np.float32)
    files.write(tmp_path / "wide.gguf", weights=weights, dtype="BF16")
    assert open_model(tmp_path / "wide.gguf").dtype == "float32"


@pytest.mark.parametrize("chunk", [None, 3 * 64 * 4])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_sharded_is_unsharded(tmp_path, monkeypatch, dtype, chunk):
    if chunk is not None:  # less than a head at once
        monkeypatch.setattr("xrec_jax.llm.io.gguf.reader._CHUNK", chunk)
        monkeypatch.setattr("xrec_jax.llm.io.gguf.model._CHUNK", chunk)
    ours, theirs = both(tmp_path, dtype="Q4_1")
    wanted = theirs.load_params(dtype=dtype)
    for mesh in (make_mesh(2, 2, 2), make_mesh(1, 4, 2)):
        splits = shardings(mesh, CONFIG)
        params = ours.load_params(dtype=dtype, shardings=splits)
        runs.assert_same_bits(jax.device_get(params), wanted)
        same = jax.tree.map(lambda p, s: p.sharding == s, params, splits)
        assert all(jax.tree.leaves(same))


def test_parts_of_heads(tmp_path):
    """Rows of queries from the middle of one head to that of another, and some columns."""
    ours, theirs = both(tmp_path, dtype="Q8_0")
    for parameter in parameters(CONFIG):
        if is_rotated(parameter):
            index = (slice(0, 2), slice(5, 40), slice(9, 27))
            parts = [model.part(parameter, index, np.float32) for model in (ours, theirs)]
            np.testing.assert_array_equal(*parts)


def test_only_own_rows_are_read(tmp_path, monkeypatch):
    ours, _ = both(tmp_path, dtype="Q8_0")
    read = []
    chunks = reader.Tensor.chunks

    def counted(tensor, start, stop):
        read.append((tensor.name, start, stop))
        return chunks(tensor, start, stop)

    monkeypatch.setattr(reader.Tensor, "chunks", counted)
    query = next(p for p in parameters(CONFIG) if is_rotated(p))
    ours.part(query, (slice(1, 2), slice(0, 64), slice(20, 30)), np.float32)
    assert read == [("blk.1.attn_q.weight", 16, 32)]


def test_import_and_adapters(tmp_path, capsys):
    """From the command line: an import, a merged export, an adapter that knows its base."""
    file = vocabularies.write(tmp_path / "x.gguf", vocabularies.byte_level(), dtype="Q8_0")
    source = checkpoint.open_model(file)
    params = source.load_params()
    assert cli.main(["import", f"--path={file}", f"--output={tmp_path / 'in'}"]) == 0
    imported = checkpoint.open_model(tmp_path / "in")
    assert imported.config == source.config and imported.generation == source.generation
    runs.assert_same_bits(imported.load_params(), params)

    adapter = lora.init(lora.LoraConfig(2, 4.0), source.config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 0.01, adapter)
    base = peft_io.Base(str(file), source.fingerprint())
    peft_io.save_adapter(tmp_path / "adapter", adapter, base=base)
    arguments = [f"--base={file}", f"--adapter={tmp_path / 'adapter'}"]
    assert cli.main(["export-hf", *arguments, f"--output={tmp_path / 'merged'}"]) == 0
    merged = lora.merge(jax.tree.map(jnp.asarray, params), adapter)
    found = hf.load_params(tmp_path / "merged")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, merged)
    assert load_tokenizer(tmp_path / "merged").encode("hello") == load_tokenizer(file).encode(
        "hello"
    )
    peft = ["export-peft", f"--adapter={tmp_path / 'adapter'}", f"--output={tmp_path / 'peft'}"]
    assert cli.main(peft) == 0
    assert peft_io.base_of(tmp_path / "peft") == base
    assert capsys.readouterr().err == ""


def test_progress_of_an_import_ends_at_its_total(tmp_path, monkeypatch):
    bars = []

    class Bar:
        def __init__(self, label, total, **options):
            self.total, self.count = total, 0
            bars.append(self)

        def advance(self, count):
            self.count += count

        def close(self):
            pass

    monkeypatch.setattr("xrec_jax.api.convert._MIB", 1000)
    monkeypatch.setattr("xrec_jax.api.convert.Progress", Bar)
    file = vocabularies.write(tmp_path / "x.gguf", vocabularies.byte_level(), dtype="Q4_0")
    assert cli.main(["import", f"--path={file}", f"--output={tmp_path / 'in'}"]) == 0
    assert [bar.count for bar in bars] == [bar.total for bar in bars] and bars[0].total > 300


def test_load_llm(tmp_path):
    """A model answers from its file as from a directory made of it."""
    file = vocabularies.write(tmp_path / "x.gguf", vocabularies.byte_level(), dtype="Q5_0")
    assert cli.main(["export-hf", f"--base={file}", f"--output={tmp_path / 'hf'}"]) == 0
    prompts = ["hello world", [{"role": "user", "content": "12 3"}]]
    options = dict(max_new_tokens=6, temperature=0.7, seed=3)
    answers = [load_llm(p, batch=2).generate(prompts, **options) for p in (file, tmp_path / "hf")]
    assert answers[0] == answers[1] and all(len(answer["ids"]) > 1 for answer in answers[0])


def test_errors_of_the_command_line(tmp_path, capsys):
    files.write(tmp_path / "whole.gguf")
    data = (tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "short.gguf").write_bytes(data[:-1])
    files.write(tmp_path / "x-00001-of-00002.gguf", metadata={"split.count": 2})
    before = runs.contents(tmp_path)
    cases = {
        "short.gguf": "is truncated",
        "whole.gguf": "no tokenizer: tokenizer.ggml.model is missing",
        "x-00001-of-00002.gguf": "one of 2 files of a split model",
        "nowhere.gguf": "nowhere.gguf: no such file",
    }
    for name, words in cases.items():
        path = tmp_path / name
        for arguments in (["import", f"--path={path}"], ["export-hf", f"--base={path}"]):
            assert cli.main([*arguments, f"--output={tmp_path / 'out'}"]) == 2
            out, error = capsys.readouterr()
            assert error.startswith("xrec: error: ") and error.count("\n") == 1 and out == ""
            assert words in error
        assert runs.contents(tmp_path) == before


def test_a_directory_of_gguf_files_names_them(tmp_path):
    (tmp_path / "hub").mkdir()
    files.write(tmp_path / "hub" / "x.gguf")
    with pytest.raises(UserError, match=r"give the GGUF file itself: .*hub/x\.gguf"):
        checkpoint.open_model(tmp_path / "hub")
    models.write(tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors nor .*the GGUF file itself: .*x\.gguf"):
        checkpoint.open_model(tmp_path / "hub")
