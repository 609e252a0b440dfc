"""Models written as GGUF files: exact in float32, in the format's order, never half written."""

import dataclasses
import json

import gguf
import jax
import numpy as np
import pytest
import tokenizers
from tokenizers import models as bpe_models
from tokenizers import normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests import runs
from tests.llm import models
from tests.llm.io.gguf import files
from tests.llm.io.gguf.files import CONFIG
from tests.llm.io.gguf.vocabularies import MERGES, byte_level, sentencepiece
from xrec_jax import cli
from xrec_jax.api import convert
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import bpe, checkpoint, hf, hf_export, hub, peft_io
from xrec_jax.llm.io.gguf import export
from xrec_jax.llm.io.gguf.pretokenizers import PRE_TOKENIZERS
from xrec_jax.llm.io.gguf.tokenizer import build_tokenizer, read_vocabulary
from xrec_jax.llm.io.gguf.tokenizer_export import to_metadata
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.config import RopeScaling

TEXTS = ["hello world  123\n\n1", " hello</s><|im_end|><think>", "é 東京 😀", "", "12 312"]
SCALED = RopeScaling(8.0, 1.0, 4.0, 16, "llama3")


def save(folder, metadata, config=CONFIG, *, spare=0, **ids):
    """A Hugging Face directory with random weights and a vocabulary; `spare` rows have no token."""
    rows = len(metadata["tokenizer.ggml.tokens"]) + spare
    config = dataclasses.replace(config, vocab_size=rows)
    models.write(folder, config, **ids)
    build_tokenizer(read_vocabulary(metadata, "x"), "x").save_pretrained(str(folder))
    return folder


def same_tokenizer(a, b):
    """Whether two models encode, decode and prompt alike."""
    a, b = load_tokenizer(a), load_tokenizer(b)
    ids = a.encode_batch(TEXTS)
    assert b.encode_batch(TEXTS) == ids and b.decode_batch(ids) == a.decode_batch(ids)
    assert (a.bos_id, a.eos_ids, a.pad_id) == (b.bos_id, b.eos_ids, b.pad_id)
    assert a.special_texts == b.special_texts and a.has_template == b.has_template
    assert a.render(("hello", "world")) == b.render(("hello", "world"))


def refused(folder, *arguments, capsys):
    """The one line of error of `xrec export-gguf`."""
    capsys.readouterr()
    assert cli.main(["export-gguf", f"--base={folder}", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "metadata, config",
    [
        (byte_level(), CONFIG),
        (byte_level(pre="llama-bpe"), dataclasses.replace(CONFIG, rope_scaling=SCALED)),
        (
            sentencepiece(),
            dataclasses.replace(
                CONFIG, tie_embeddings=True, rope_scaling=RopeScaling(2.0, kind="linear")
            ),
        ),
        (sentencepiece(add_space_prefix=False, add_bos_token=False), CONFIG),
    ],
)
def test_round_trip_is_exact_in_float32(tmp_path, metadata, config):
    base = save(tmp_path / "base", metadata, config, spare=3, bos_token_id=1, eos_token_id=[2, 0])
    export_to(tmp_path / "x.gguf", base, "f32")
    before, after = (checkpoint.open_model(p) for p in (base, tmp_path / "x.gguf"))
    assert after.config == before.config
    assert after.generation.eos_ids == before.generation.eos_ids
    runs.assert_same_bits(after.load_params(), before.load_params())
    same_tokenizer(base, tmp_path / "x.gguf")
    # And once more from what was written.
    export_to(tmp_path / "y.gguf", tmp_path / "x.gguf", "f32")
    same_tokenizer(base, tmp_path / "y.gguf")
    first, second = (gguf.GGUFReader(tmp_path / f"{name}.gguf") for name in "xy")
    assert first.fields.keys() == second.fields.keys()
    for a, b in zip(first.tensors, second.tensors, strict=True):
        assert a.name == b.name and np.array_equal(a.data, b.data)


def export_to(path, base, out_type, **options):
    """Exports a directory or file."""
    model = checkpoint.open_model(base)
    vocabulary = to_metadata(load_tokenizer(base), model.config.vocab_size)
    export.save_model(path, model, model.config, vocabulary, out_type=out_type, **options)


def test_another_reader_finds_names_shapes_and_order(tmp_path):
    base = save(
        tmp_path / "base",
        byte_level(),
        dataclasses.replace(CONFIG, rope_scaling=SCALED, rope_theta=1e5),
    )
    export_to(tmp_path / "x.gguf", base, "f32", name="tuned")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.architecture"] == "llama" and values["general.name"] == "tuned"
    assert values["llama.attention.head_count_kv"] == CONFIG.num_kv_heads
    assert values["llama.rope.freq_base"] == 1e5 and values["tokenizer.ggml.pre"] == "smollm"
    assert values["tokenizer.ggml.eot_token_id"] == 2
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = hf.open_model(base).tensors
    expected = {"rope_freqs.weight": files.rope_factors(hf.open_model(base).config)}
    for name, tensor in weights.items():
        rows = np.concatenate([chunk for _, chunk in tensor.chunks(0, tensor.shape[0])])
        rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
        rows = files.interleaved(rows, CONFIG.head_dim) if rotated else rows
        expected[files.name_of(name)] = rows
    assert stored.keys() == expected.keys()
    for name, rows in expected.items():
        np.testing.assert_allclose(stored[name].data.reshape(rows.shape), rows, rtol=1e-6)


@pytest.mark.parametrize("out_type", ["f16", "q8_0"])
def test_narrow_types(tmp_path, out_type):
    # Rows of 40 numbers are no whole blocks.
    config = dataclasses.replace(CONFIG, intermediate_size=40)
    base = save(tmp_path / "base", byte_level(), config)
    export_to(tmp_path / "x.gguf", base, out_type)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    kind = tensors["blk.0.ffn_gate.weight"].tensor_type.name
    assert kind == ("F16" if out_type == "f16" else "Q8_0")
    before, after = (checkpoint.open_model(p).load_params() for p in (base, tmp_path / "x.gguf"))
    gate, stored = (tree["layers"]["mlp"]["gate"]["kernel"] for tree in (before, after))
    if out_type == "f16":
        np.testing.assert_array_equal(stored, gate.astype(np.float16).astype(np.float32))
        return
    # A block shares a 127th of its largest number as the step.
    blocks = np.moveaxis(gate, 1, 2).reshape(-1, 32)
    step = np.abs(blocks).max(axis=1, keepdims=True) / 127
    error = np.abs(np.moveaxis(stored, 1, 2).reshape(-1, 32) - blocks)
    assert (error <= 0.5 * step + 127 * step * 2**-11).all() and error.max() > 0.2 * step.min()
    np.testing.assert_array_equal(
        after["layers"]["attn_norm"]["scale"], before["layers"]["attn_norm"]["scale"]
    )


def test_adapter_is_merged(tmp_path, capsys):
    base = save(tmp_path / "base", byte_level())
    config = hf.open_model(base).config
    adapter = lora.init(lora.LoraConfig(2, 4.0), config, jax.random.key(0))
    adapter = jax.tree.map(lambda x: x + 0.01, adapter)
    peft_io.save_adapter(tmp_path / "adapter", adapter, base=peft_io.Base(str(base), ""))
    flags = [f"--base={base}", f"--adapter={tmp_path}/adapter", "--outtype=f32"]
    assert cli.main(["export-gguf", *flags, f"--output={tmp_path}/new/x.gguf"]) == 0
    assert f"(f32) with {tmp_path}/adapter merged written to" in capsys.readouterr().out
    merged = hf_export.Merged(
        hf.open_model(base), peft_io.load_adapter(tmp_path / "adapter", config)
    )
    hf_export.save_model(tmp_path / "merged", merged, config)
    runs.assert_same_bits(
        checkpoint.open_model(tmp_path / "new" / "x.gguf").load_params(),
        hf.load_params(tmp_path / "merged"),
    )
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.gguf"]


def test_imports_export_alike(tmp_path):
    base = save(tmp_path / "base", sentencepiece())
    checkpoint.import_model(checkpoint.open_model(base), tmp_path / "in")
    for name in ("base", "in"):
        export_to(tmp_path / f"{name}.gguf", tmp_path / name, "f16")
    a, b = ((tmp_path / f"{name}.gguf").read_bytes() for name in ("base", "in"))
    assert a == b


def test_tokenizer_trained_here(tmp_path):
    bpe.train_bpe(["hello world 12", "hello there 1999"], tmp_path / "base", vocab_size=280)
    rows = len(load_tokenizer(tmp_path / "base"))
    models.write(
        tmp_path / "base",
        dataclasses.replace(CONFIG, vocab_size=rows),
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    export_to(tmp_path / "x.gguf", tmp_path / "base", "f32")
    same_tokenizer(tmp_path / "base", tmp_path / "x.gguf")


@pytest.mark.parametrize("pre", sorted(PRE_TOKENIZERS))
def test_pre_tokenizers_find_their_rules_again(pre):
    tokenizer = build_tokenizer(read_vocabulary(byte_level(pre=pre), "x"), "x")
    name = to_metadata(Tokenizer(tokenizer), len(tokenizer))["tokenizer.ggml.pre"]
    assert PRE_TOKENIZERS[name].splits == PRE_TOKENIZERS[pre].splits
    assert PRE_TOKENIZERS[name].ignore_merges == PRE_TOKENIZERS[pre].ignore_merges


@pytest.mark.parametrize(
    "pre_tokenizer, expected",
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
            "smollm",
        ),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Whitespace(), None),
        (pre_tokenizers.Digits(individual_digits=False), None),
        (pre_tokenizers.Split(" ", "isolated"), None),
        (None, None),
    ],
)
def test_names_of_pre_tokenizers(pre_tokenizer, expected):
    tokenizer = build_tokenizer(read_vocabulary(byte_level(), "x"), "x")
    if pre_tokenizer is None:
        content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"pre_tokenizer": None}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(json.dumps(content)),
            eos_token="<|im_end|>",
        )
    else:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizer
    if expected is None:
        with pytest.raises(UserError, match="its pre-tokenizer is none of those"):
            to_metadata(Tokenizer(tokenizer), len(tokenizer))
    else:
        metadata = to_metadata(Tokenizer(tokenizer), len(tokenizer))
        assert metadata["tokenizer.ggml.pre"] == expected


def test_tokens_without_a_row_are_left_out():
    tokenizer = build_tokenizer(read_vocabulary(byte_level(), "x"), "x")
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    metadata = to_metadata(Tokenizer(tokenizer), rows)
    assert len(metadata["tokenizer.ggml.tokens"]) == rows
    assert "tokenizer.ggml.padding_token_id" not in metadata


def test_tokenizers_that_llama_cpp_cannot_read():
    def refuses(model, message, **parts):
        backend = tokenizers.Tokenizer(model)
        for name, part in parts.items():
            setattr(backend, name, part)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
        with pytest.raises(UserError, match=message) as error:
            to_metadata(Tokenizer(tokenizer), len(tokenizer))
        assert "\n" not in str(error.value)

    words = {"</s>": 0, "a": 1, "b": 2, "▁": 3, "ab": 4, "▁ab": 5, "▁a": 6}
    unigram = bpe_models.Unigram([("</s>", 0.0), ("a", -1.0)], unk_id=0)
    refuses(unigram, "of kind 'Unigram' cannot be written")
    refuses(
        bpe_models.BPE(words, []),
        "its normalizer .NFC. cannot be written",
        normalizer=normalizers.NFC(),
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    pieces = pre_tokenizers.Metaspace("▁", split=False)
    # SentencePiece would merge "▁a" and "b", too.
    lacking = bpe_models.BPE(words, [("a", "b"), ("▁", "ab")], byte_fallback=True)
    refuses(lacking, "its merges are not those of a SentencePiece", pre_tokenizer=pieces)
    whole = [("a", "b"), ("▁a", "b"), ("▁", "ab"), ("▁", "a")]
    refuses(
        bpe_models.BPE(words, whole, byte_fallback=True),
        "its normalizer and pre-tokenizer are not those",
        pre_tokenizer=pieces,
        normalizer=normalizers.Lowercase(),
    )


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_the_newer_form_of_sentencepiece_is_written(scheme):
    # transformers' own puts the spaces in a pre-tokenizer, LLaMA 2's file in a normalizer.
    space = scheme != "never"
    tokenizer = build_tokenizer(read_vocabulary(sentencepiece(add_space_prefix=space), "x"), "x")
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    kinds = [step["type"] for step in content["normalizer"]["normalizers"]]
    assert kinds == (["Prepend", "Replace"] if space else ["Replace"])
    backend = tokenizers.Tokenizer.from_str(json.dumps(content | {"normalizer": None}))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    newer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    written = to_metadata(Tokenizer(newer), len(newer))
    assert written == to_metadata(Tokenizer(tokenizer), len(tokenizer))
    assert written["tokenizer.ggml.add_space_prefix"] is space


def test_too_many_ends_of_texts(tmp_path, capsys):
    base = save(tmp_path / "base", byte_level(), eos_token_id=[2, 0, 3, 4])
    error = refused(base, f"--output={tmp_path}/x.gguf", capsys=capsys)
    assert "4 tokens end a text; a GGUF file names 3 at most" in error


def test_bad_input(tmp_path, capsys):
    base = save(tmp_path / "base", byte_level())
    (tmp_path / "old.gguf").write_bytes(b"kept")
    for flags, message in (
        ([f"--output={tmp_path}/old.gguf"], "old.gguf: is there already"),
        ([f"--output={base}"], "is a directory; give the name of a new file"),
        (["--output=gs://bucket/x.gguf"], "the output must be on a local disk"),
        ([f"--output={tmp_path}/x.gguf", "--outtype=q4_0"], "outtype 'q4_0' is not supported; did"),
        ([f"--output={tmp_path}/x.gguf", f"--adapter={base}"], "adapter_config.json"),
        ([], "--output is missing"),
    ):
        assert message in refused(base, *flags, capsys=capsys)
    missing = refused(tmp_path / "none", f"--output={tmp_path}/x.gguf", capsys=capsys)
    assert "no such directory" in missing
    assert (tmp_path / "old.gguf").read_bytes() == b"kept"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "old.gguf"]


def test_a_number_that_float16_cannot_hold(tmp_path, capsys):
    base = save(tmp_path / "base", byte_level())
    config = hf.open_model(base).config
    weights = models.tensors(config)
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = 7e4
    models.write(base, config, weights=weights)
    error = refused(base, f"--output={tmp_path}/x.gguf", capsys=capsys)
    assert "tensor 'blk.1.ffn_up.weight' would hold 7e+04, which is no number of F16" in error
    assert "--outtype=f32" in error and not list(tmp_path.glob("*x.gguf*"))
    assert (
        cli.main(["export-gguf", f"--base={base}", f"--output={tmp_path}/x.gguf", "--outtype=f32"])
        == 0
    )


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    base = save(tmp_path / "base", byte_level())
    model = checkpoint.open_model(base)

    class Failing:
        def tensor(self, parameter, layer):
            if layer == 1:
                raise UserError("the disk is gone")
            return model.tensor(parameter, layer)

    vocabulary = to_metadata(load_tokenizer(base), model.config.vocab_size)
    with pytest.raises(UserError, match="the disk is gone"):
        export.save_model(tmp_path / "out" / "x.gguf", Failing(), model.config, vocabulary)
    assert not list(tmp_path.glob("out/*"))


def test_model_and_tokenizer_are_of_one_snapshot(tmp_path, monkeypatch):
    """A branch of the hub that moves between two look-ups changes nothing."""
    snapshots = iter(
        [save(tmp_path / pre, byte_level(pre=pre)) for pre in ("smollm", "gpt-2", "qwen2")]
    )
    resolve = hub.resolve

    def moving(path):
        return str(next(snapshots)) if path == "org/name" else resolve(path)

    monkeypatch.setattr(hub, "resolve", moving)
    convert.export_gguf("org/name", str(tmp_path / "x.gguf"))
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert fields["general.name"].contents() == "name"


def test_merges_are_written_as_pairs():
    tokenizer = build_tokenizer(read_vocabulary(byte_level(), "x"), "x")
    assert to_metadata(Tokenizer(tokenizer), len(tokenizer))["tokenizer.ggml.merges"] == MERGES
