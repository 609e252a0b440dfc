"""`xrec import`, `export-hf`, `export-peft`: from the command line to the files."""

import json
import os

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import runs
from tests.llm.io import hubs
from tests.llm.models import CONFIG, rewrite, write
from xrec_jax import cli
from xrec_jax.llm.io import bpe, checkpoint, hf, peft_io
from xrec_jax.llm.io.tokenizer import load_tokenizer
from xrec_jax.llm.model import lora


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    bpe.train_bpe(["a small text"], path, vocab_size=263)
    return path


@pytest.fixture
def folder(tmp_path, tokenizer):
    """`base` with a tokenizer, `adapter` on it, and a few wrong things."""
    write(tmp_path / "base", shards=2, eos_token_id=[1, 5], bos_token_id=0)
    for file in tokenizer.iterdir():
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    made = lora.init(lora.LoraConfig(2, 4.0), CONFIG, jax.random.key(0))
    made = jax.tree.map(lambda x: x + 0.01, made)
    base = peft_io.Base(str(tmp_path / "base"), hf.fingerprint(tmp_path / "base"))
    peft_io.save_adapter(tmp_path / "adapter", made, base=base)
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def run(folder, *arguments):
    return cli.main([text.format(folder=folder) for text in arguments])


def test_import_then_export(folder, capsys):
    assert run(folder, "import", "--path={folder}/base", "--output={folder}/new/in") == 0
    assert "parameters (float32) imported to" in capsys.readouterr().out
    assert run(folder, "export-hf", "--base={folder}/new/in", "--output={folder}/empty") == 0
    runs.assert_same_bits(hf.load_params(folder / "empty"), hf.load_params(folder / "base"))
    for name in ("new/in", "empty"):
        assert hf.read_generation(folder / name) == hf.Generation(0, (1, 5))
        assert load_tokenizer(folder / name).encode("a text") == load_tokenizer(
            folder / "base"
        ).encode("a text")


def test_former_name(folder, capsys):
    assert run(folder, "import-hf", "--path={folder}/base", "--output={folder}/in") == 0
    assert checkpoint.open_model(folder / "in").dtype == "float32"
    assert run(folder, "import-hf", "--help") == 0
    assert "usage: xrec import [flags]" in capsys.readouterr().out
    assert run(folder, "import", "--path={folder}/in", "--output={folder}/again") == 2
    assert "is an imported checkpoint already" in capsys.readouterr().err


def test_dtypes(folder):
    common = ["--path={folder}/base", "--output={folder}/half", "--dtype=bfloat16"]
    assert run(folder, "import", *common) == 0
    assert checkpoint.open_model(folder / "half").dtype == "bfloat16"
    assert run(folder, "export-hf", "--base={folder}/half", "--output={folder}/a") == 0
    assert hf.open_model(folder / "a").dtype == "bfloat16"
    wide = ["--base={folder}/half", "--output={folder}/b", "--dtype=float32"]
    assert run(folder, "export-hf", *wide) == 0
    assert hf.open_model(folder / "b").dtype == "float32"
    assert json.loads((folder / "b" / "config.json").read_text())["dtype"] == "float32"


def test_merged(folder):
    for base in ("base", "in"):
        if base == "in":
            assert run(folder, "import", "--path={folder}/base", "--output={folder}/in") == 0
        arguments = [f"--base={folder}/{base}", f"--output={folder}/out_{base}"]
        assert run(folder, "export-hf", *arguments, "--adapter={folder}/adapter") == 0
    adapter = peft_io.load_adapter(folder / "adapter", CONFIG)
    merged = lora.merge(jax.tree.map(jax.numpy.asarray, hf.load_params(folder / "base")), adapter)
    found = hf.load_params(folder / "out_base")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, merged)
    runs.assert_same_bits(hf.load_params(folder / "out_in"), found)


def test_export_peft(folder, monkeypatch):
    rewrite(folder / "adapter" / "adapter_config.json", use_rslora=True)
    arguments = ["--adapter={folder}/adapter", "--output={folder}/out"]
    assert run(folder, "export-peft", *arguments) == 0
    config = json.loads((folder / "out" / "adapter_config.json").read_text())
    assert config["use_rslora"] is False and config["lora_alpha"] == pytest.approx(4 * 2**0.5)
    assert config["base_model_name_or_path"] == str(folder / "base")
    before, after = (
        load_file(folder / n / "adapter_model.safetensors") for n in ("adapter", "out")
    )
    runs.assert_same_bits(before, after)
    assert peft_io.base_of(folder / "out") == peft_io.base_of(folder / "adapter")
    monkeypatch.chdir(folder)
    rewrite(folder / "adapter" / "adapter_config.json", base_model_name_or_path="org/name")
    (folder / "adapter" / "xrec.json").unlink()
    arguments = ["--adapter=adapter", "--output=other", "--base=base"]
    assert run(folder, "export-peft", *arguments) == 0
    assert peft_io.base_of("other").path == os.path.abspath("base")


def test_bases_by_name(folder, monkeypatch):
    """A model of the hub's cache is imported and merged; PEFT finds it by the same name."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "cache"))
    hubs.lay_out(folder / "cache", "org/name", hubs.files_of(folder / "base"), refs=("v1",))
    rewrite(folder / "adapter" / "adapter_config.json", base_model_name_or_path="org/name")
    rewrite(folder / "adapter" / "adapter_config.json", revision="v1")
    (folder / "adapter" / "xrec.json").unlink()
    arguments = ["--adapter={folder}/adapter", "--output={folder}/peft"]
    assert run(folder, "export-peft", *arguments) == 0
    config = json.loads((folder / "peft" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/name", "v1")
    assert peft_io.base_of(folder / "peft").path == "org/name@v1"
    assert run(folder, "import", "--path=org/name@v1", "--output={folder}/in") == 0
    arguments = ["--base=org/name@v1", "--adapter={folder}/adapter", "--output={folder}/merged"]
    assert run(folder, "export-hf", *arguments) == 0
    assert (folder / "merged" / "tokenizer.json").is_file()
    runs.assert_same_bits(hf.load_params(folder / "base"), checkpoint.restore_params(folder / "in"))


BAD = {
    "import without --path": (["import", "--output={folder}/o"], "--path is missing"),
    "import without --output": (["import", "--path={folder}/base"], "--output is missing"),
    "import of nothing": (["import", "--path={folder}/nix", "--output={folder}/o"], "nix"),
    "import by a hub name": (
        ["import", "--path=meta-llama/Llama-2-7b", "--output={folder}/o"],
        "HF_HUB_OFFLINE",
    ),
    "import of a file": (["import", "--path={folder}/file", "--output={folder}/o"], "file"),
    "import of an empty folder": (
        ["import", "--path={folder}/empty", "--output={folder}/o"],
        "config.json",
    ),
    "import of an adapter": (
        ["import", "--path={folder}/adapter", "--output={folder}/o"],
        "is an adapter, not",
    ),
    "import onto something": (
        ["import", "--path={folder}/base", "--output={folder}/adapter"],
        "not empty",
    ),
    "import onto itself": (
        ["import", "--path={folder}/base", "--output={folder}/base"],
        "not empty",
    ),
    "import below a file": (
        ["import", "--path={folder}/base", "--output={folder}/file/o"],
        "cannot write",
    ),
    "unknown dtype": (
        ["import", "--path={folder}/base", "--output={folder}/o", "--dtype=bflaot16"],
        "'bflaot16'",
        "did you mean 'bfloat16'",
    ),
    "unknown flag": (["import", "--pth=x"], "--pth", "did you mean 'path'"),
    "mistyped verb": (["import_hf"], "did you mean 'import'"),
    "export without --base": (["export-hf", "--output={folder}/o"], "--base is missing"),
    "export of no model": (
        ["export-hf", "--base={folder}/empty", "--output={folder}/o"],
        "xrec.json",
        "config.json",
    ),
    "export with no adapter there": (
        ["export-hf", "--base={folder}/base", "--adapter={folder}/empty", "--output={folder}/o"],
        "adapter_config.json",
    ),
    "export onto something": (
        ["export-hf", "--base={folder}/base", "--output={folder}/adapter"],
        "not empty",
    ),
    "export with an unknown dtype": (
        ["export-hf", "--base={folder}/base", "--output={folder}/o", "--dtype=int8"],
        "'int8'",
    ),
    "peft without --adapter": (["export-peft", "--output={folder}/o"], "--adapter is missing"),
    "peft of no adapter": (
        ["export-peft", "--adapter={folder}/base", "--output={folder}/o"],
        "adapter_config.json",
    ),
    "peft with another base": (
        ["export-peft", "--adapter={folder}/adapter", "--base={folder}/nix", "--output={folder}/o"],
        "nix",
        "--base",
    ),
    "peft with a base that is not in the cache": (
        ["export-peft", "--adapter={folder}/adapter", "--base=org/nix", "--output={folder}/o"],
        "org/nix",
        "HF_HUB_OFFLINE",
        "name another with --base",
    ),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD.keys())
def test_mistakes(folder, capsys, case):
    arguments, *named = case
    before = runs.contents(folder)
    assert run(folder, *arguments) == 2
    out, error = capsys.readouterr()
    assert error.startswith("xrec: error: ") and error.count("\n") == 1 and out == ""
    for name in named:
        assert name in error
    assert runs.contents(folder) == before


def test_damaged_model(folder, capsys):
    file = folder / "base" / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    before = runs.contents(folder)
    for arguments in (["import", "--path={folder}/base"], ["export-hf", "--base={folder}/base"]):
        assert run(folder, *arguments, "--output={folder}/o") == 2
        assert f"{file}: the file is truncated" in capsys.readouterr().err
    assert runs.contents(folder) == before
