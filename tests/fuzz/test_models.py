"""Damaged models: safetensors headers, `config.json`, tokenizers and adapters."""

import json
import pathlib

import jax
import numpy as np
import pytest

from tests.fuzz.mutate import mutant, odd_value, survives
from tests.llm.io.gguf import vocabularies
from tests.llm.models import CONFIG, write
from xrec_jax.llm.io import hf, tensorfile
from xrec_jax.llm.io.bpe import train_bpe
from xrec_jax.llm.io.gguf.model import open_model
from xrec_jax.llm.io.gguf.reader import read_file
from xrec_jax.llm.io.hf import Generation
from xrec_jax.llm.io.peft_io import load_adapter, save_adapter
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.llm.model import lora
from xrec_jax.llm.model.config import LlamaConfig, to_hf

pytestmark = pytest.mark.slow
CHAT = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "is near"}]


@pytest.fixture
def model(tmp_path):
    write(tmp_path / "model", bos_token_id=1, eos_token_id=[2, 3])
    return tmp_path / "model"


def test_tensors(model):
    """What is read has the shapes of the model, whatever the header says."""

    def check(params):
        assert jax.tree.map(np.shape, params) == wanted

    wanted = jax.tree.map(np.shape, hf.load_params(model))
    path = model / "model.safetensors"
    survives(lambda _: hf.load_params(model), path.read_bytes(), path, count=100, check=check)


@pytest.mark.parametrize("seed", range(2))
def test_headers(tmp_path, seed):
    """The header alone, small, so that most damage falls into it."""
    path = tmp_path / "model.safetensors"
    shapes = [("a", (2, 3)), ("b", ()), ("model.norm.weight", (0, 4))]
    with tensorfile.Writer(path, shapes, np.dtype(np.float32)) as file:
        for _, shape in shapes:
            file.append(np.ones(shape, np.float32))

    def read(path: pathlib.Path) -> dict[str, np.ndarray]:
        header = tensorfile.read_header(path)
        known = {n: t for n, t in header.items() if t.shape and t.dtype in tensorfile.DTYPES}
        return {n: [rows for _, rows in t.chunks(0, t.shape[0])] for n, t in known.items()}

    survives(read, path.read_bytes(), path, seed=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("vocabulary", [vocabularies.byte_level, vocabularies.sentencepiece])
def test_gguf(tmp_path, vocabulary, seed):
    """The header of a GGUF file: model, tokenizer and what lies where."""
    path = vocabularies.write(tmp_path / "model.gguf", vocabulary(), dtype="Q8_0")
    end = min(tensor.offset for tensor in read_file(path).tensors.values())

    def damage(data: bytes, seed: int, index: int) -> tuple[str, bytes]:
        what, header = mutant(data[:end], seed, index)
        return what, header + data[end:]

    def read(path: pathlib.Path):
        tokenizer = load_tokenizer(path)
        tokenizer.encode("hello world 12")
        return jax.tree.map(np.shape, open_model(path).load_params())

    survives(read, path.read_bytes(), path, seed=seed, count=200, damage=damage)


@pytest.mark.parametrize(("damage", "seed"), [(mutant, 0), (odd_value, 0), (odd_value, 1)])
def test_config(model, damage, seed):
    def read(path: pathlib.Path) -> LlamaConfig:
        found = hf.open_model(model)
        assert isinstance(found.generation, Generation)
        return found.config

    def check(config):
        assert hf.from_hf(to_hf(config)) == config

    path = model / "config.json"
    survives(read, path.read_bytes(), path, seed=seed, check=check, damage=damage)


def test_index(model):
    write(model, shards=2)
    (model / "model.safetensors").unlink()
    path = model / "model.safetensors.index.json"
    data = path.read_bytes()
    for damage in (mutant, odd_value):
        survives(lambda _: hf.open_model(model), data, path, damage=damage)


@pytest.fixture
def tokenizer(tmp_path):
    texts = ["the cat likes the small café by the river", "it is near 12"] * 9
    train_bpe(texts, tmp_path / "tokenizer", vocab_size=280)
    return tmp_path / "tokenizer"


def use(folder: pathlib.Path) -> Tokenizer:
    """A tokenizer at work, as far as it goes."""
    made = load_tokenizer(folder)
    made.check_fits(512)
    ids = made.encode("the café \U0001f642 12\n\nriver")
    assert all(0 <= token < 512 for token in ids)
    made.decode(ids)
    if made.has_template:
        made.render(CHAT)
    return made


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tokenizer.json", 200),
        ("tokenizer_config.json", 200),
        ("chat_template.jinja", 300),
        ("special_tokens_map.json", 50),
        ("generation_config.json", 50),
    ],
)
def test_tokenizer(tokenizer, name, count):
    path = tokenizer / name
    content = {"bos_token": "<s>", "eos_token": "</s>"} if name[0] == "s" else {"eos_token_id": 1}
    data = path.read_bytes() if path.exists() else json.dumps(content).encode()
    survives(lambda _: use(tokenizer), data, path, count=count)
    if name.endswith(".json"):
        survives(lambda _: use(tokenizer), data, path, count=count, damage=odd_value)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "xrec.json"])
def test_adapter(tmp_path, name):
    config = lora.LoraConfig(rank=2, targets=("q", "down"))
    save_adapter(tmp_path / "adapter", lora.init(config, CONFIG, jax.random.key(0)))

    def check(adapter):
        assert set(adapter.config.targets) == {"q", "down"} and adapter.config.rank == 2
        jax.tree.map(lambda x: np.testing.assert_array_equal(np.isfinite(x), True), adapter.params)

    path = tmp_path / "adapter" / name
    data = path.read_bytes()
    for damage in (mutant, odd_value) if name.endswith(".json") else (mutant,):
        survives(
            lambda path: load_adapter(path.parent, CONFIG), data, path, check=check, damage=damage
        )


def test_imported_mark(tmp_path):
    """`xrec.json` of an imported checkpoint."""
    from xrec_jax.llm.io import checkpoint

    write(tmp_path / "model")
    checkpoint.import_model(hf.open_model(tmp_path / "model"), tmp_path / "imported")
    path = tmp_path / "imported" / "xrec.json"
    data = path.read_bytes()
    for damage in (mutant, odd_value):
        survives(lambda _: checkpoint.open_model(path.parent), data, path, count=100, damage=damage)
