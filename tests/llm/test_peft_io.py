"""Adapters in PEFT's format: round trips, every way to name targets, everything refused."""

import json
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import runs
from tests.llm.models import CONFIG, rewrite
from xrec_jax.core.errors import UserError
from xrec_jax.llm.io import peft_io
from xrec_jax.llm.io.peft_io import Base, base_of, is_adapter, load_adapter, save_adapter
from xrec_jax.llm.model import lora
from xrec_jax.parallel.mesh import make_mesh

KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def adapter(*targets: str, rank: int = 2, alpha: float = 6.0) -> lora.Adapter:
    """A random adapter."""
    config = lora.LoraConfig(rank, alpha, 0.25, targets or ("q", "v", "down"))
    made = lora.init(config, CONFIG, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), made)


@pytest.fixture
def saved(tmp_path):
    save_adapter(tmp_path / "adapter", adapter(), base=Base("models/base", "abc"))
    return tmp_path / "adapter"


@pytest.mark.parametrize("targets", [("q",), ("o", "up"), lora.TARGETS])
def test_round_trip(tmp_path, targets):
    made = adapter(*targets)
    save_adapter(tmp_path / "a", made)
    found = load_adapter(tmp_path / "a", CONFIG)
    assert found.config == made.config
    runs.assert_same_bits(found.params, made.params)


def test_from_devices(tmp_path):
    made = adapter()
    split = jax.sharding.NamedSharding(make_mesh(2, 2, 2), jax.P(None, "fsdp"))
    split_a = jax.tree.map(lambda x: jax.device_put(x, split) if x.shape[1] % 2 == 0 else x, made)
    save_adapter(tmp_path / "a", split_a)
    runs.assert_same_bits(load_adapter(tmp_path / "a", CONFIG).params, made.params)


def test_what_peft_expects(saved):
    config = json.loads((saved / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.25)
    assert config["target_modules"] == ["q_proj", "v_proj", "down_proj"]
    assert config["base_model_name_or_path"] == "models/base" and config["bias"] == "none"
    tensors = load_file(saved / "adapter_model.safetensors")
    assert len(tensors) == 3 * 3 * 2
    pair = adapter().params["layers"]["attn"]["q"]
    np.testing.assert_array_equal(tensors[KEY], pair["a"][1].T)
    np.testing.assert_array_equal(tensors[KEY.replace("lora_A", "lora_B")], pair["b"][1].T)


def test_its_base(saved):
    assert is_adapter(saved) and not is_adapter(saved.parent)
    assert base_of(saved) == Base("models/base", "abc")
    (saved / "xrec.json").unlink()
    assert base_of(saved) == Base("models/base", "")


def test_rslora_is_a_larger_alpha(saved):
    rewrite(saved / "adapter_config.json", use_rslora=True)
    assert load_adapter(saved, CONFIG).config.scale == pytest.approx(6.0 / math.sqrt(2))


def test_fractional_alpha(tmp_path):
    save_adapter(tmp_path / "a", adapter(alpha=1.5))
    assert load_adapter(tmp_path / "a", CONFIG).config.alpha == 1.5


@pytest.mark.parametrize(
    "asked",
    [
        ["q_proj", "v_proj", "down_proj"],
        ["self_attn.q_proj", "v_proj", "mlp.down_proj"],
        [
            f"model.layers.{n}.{m}"
            for n in range(3)
            for m in ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
        ],
        r".*\.(q_proj|v_proj|down_proj)",
        r"model\.layers\.\d+\.(self_attn\.[qv]|mlp\.down)_proj",
        None,
    ],
)
def test_spellings_of_targets(saved, asked):
    rewrite(saved / "adapter_config.json", target_modules=asked)
    assert load_adapter(saved, CONFIG).config.targets == ("q", "v", "down")


def test_all_linear(tmp_path, saved):
    save_adapter(tmp_path / "all", adapter(*lora.TARGETS))
    rewrite(tmp_path / "all" / "adapter_config.json", target_modules="all-linear")
    assert load_adapter(tmp_path / "all", CONFIG).config.targets == lora.TARGETS
    rewrite(
        saved / "adapter_config.json",
        target_modules="all-linear",
        exclude_modules=r".*[koe]_proj|.*up_proj",
    )
    assert load_adapter(saved, CONFIG).config.targets == ("q", "v", "down")


def _config(**changed):
    return lambda path: rewrite(path / "adapter_config.json", **changed)


def _weights(change):
    def damage(path):
        weights = load_file(path / "adapter_model.safetensors")
        change(weights)
        save_file(weights, path / "adapter_model.safetensors")

    return damage


def _rename(old, new):
    return _weights(lambda w: w.update({new: w.pop(old)}))


def _cut(path):
    file = path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


ENDLESS = r"(?:(.)|(.)|.)*(?<=Z)\1"


def _double(path):
    """Names one tensor as another, so that the header has one name twice."""
    file, other = path / "adapter_model.safetensors", KEY.replace("layers.1", "layers.0")
    assert other != KEY
    file.write_bytes(file.read_bytes().replace(other.encode(), KEY.encode(), 1))


REFUSED = {
    "another method": (_config(peft_type="IA3"), "'IA3'"),
    "no method": (_config(peft_type=None), "peft_type"),
    "DoRA": (_config(use_dora=True), "use_dora"),
    "modules to save": (_config(modules_to_save=["lm_head"]), "modules_to_save", "lm_head"),
    "rank pattern": (_config(rank_pattern={"q_proj": 4}), "rank_pattern"),
    "alpha pattern": (_config(alpha_pattern={"q_proj": 4}), "alpha_pattern"),
    "bias": (_config(bias="lora_only"), "bias", "lora_only"),
    "lora_bias": (_config(lora_bias=True), "lora_bias"),
    "some layers": (_config(layers_to_transform=[0]), "layers_to_transform"),
    "repeated layers": (_config(layer_replication=[[0, 2]]), "layer_replication"),
    "changes the base": (_config(init_lora_weights="pissa"), "init_lora_weights", "pissa"),
    "transposed": (_config(fan_in_fan_out=True), "fan_in_fan_out"),
    "single parameters": (_config(target_parameters=["x"]), "target_parameters"),
    "a classifier": (_config(task_type="SEQ_CLS"), "task_type", "SEQ_CLS"),
    "a key of the future": (_config(use_something=True), "use_something"),
    "no rank": (_config(r=None), "r=None"),
    "rank no number": (_config(r="8"), "r='8'"),
    "no alpha": (_config(lora_alpha=None), "lora_alpha=None"),
    "another rank": (_config(r=4), "[2, 40]", "r=4", "[4, 40]"),
    "dropout of 1": (_config(lora_dropout=1.0), "dropout=1.0"),
    "a target too many": (_config(target_modules=["q_proj", "v_proj"]), "down_proj", "not asked"),
    "a target missing": (
        _config(target_modules=["q_proj", "k_proj", "v_proj", "down_proj"]),
        "k_proj",
        "missing",
    ),
    "a pattern of many ways": (_config(target_modules="([a-z._0-9]+)+!"), "was not asked for"),
    "a pattern without end": (_config(target_modules=ENDLESS), "target_modules", "takes too long"),
    "excluded without end": (_config(exclude_modules=ENDLESS), "exclude_modules", "takes too long"),
    "a pattern too long": (_config(target_modules="(a|b)" * 9999), "no pattern", "49995 char"),
    "a pattern too deep": (_config(target_modules="(" * 3000 + ")" * 3000), "no pattern"),
    "a pattern too large": (_config(target_modules="a{99999999999999999999}"), "no pattern"),
    "targets no texts": (_config(target_modules=[1, "v_proj"]), "target_modules", "list of texts"),
    "targets a number": (_config(target_modules=5), "target_modules='5'", "list of texts"),
    "rank true": (_config(r=True), "r=True"),
    "rank a float": (_config(r=2.0), "r=2.0"),
    "alpha infinite": (_config(lora_alpha=1e400), "adapter_config.json, line 1"),
    "alpha 0": (_config(lora_alpha=0), "adapter_config.json: lora_alpha=0"),
    "alpha negative": (_config(lora_alpha=-4), "adapter_config.json: lora_alpha=-4"),
    "alpha true": (_config(lora_alpha=True), "lora_alpha=True"),
    "dropout below 0": (_config(lora_dropout=-0.1), "lora_dropout=-0.1"),
    "rsLoRA a text": (_config(use_rslora="false"), "use_rslora='false' must be true or false"),
    "a tensor twice": (_double, "twice"),
    "bad pattern": (_config(target_modules="(q_proj"), "no pattern"),
    "no config": (lambda p: (p / "adapter_config.json").unlink(), "adapter_config.json"),
    "config no JSON": (lambda p: (p / "adapter_config.json").write_text("{"), "line 1"),
    "no weights": (lambda p: (p / "adapter_model.safetensors").unlink(), "missing"),
    "pickled weights": (
        lambda p: (p / "adapter_model.safetensors").rename(p / "adapter_model.bin"),
        ".bin",
    ),
    "truncated": (_cut, "adapter_model.safetensors", "truncated"),
    "empty": (_weights(lambda w: w.clear()), "no tensor"),
    "missing tensor": (_weights(lambda w: w.pop(KEY)), KEY, "missing"),
    "embedding": (
        _rename(KEY, "base_model.model.model.embed_tokens.lora_embedding_A"),
        "embed_tokens",
    ),
    "another module": (_rename(KEY, KEY.replace("q_proj", "qkv_proj")), "qkv_proj"),
    "another architecture": (_rename(KEY, KEY.replace("model.layers", "layers")), "LLaMA"),
    "too many layers": (_rename(KEY, KEY.replace("layers.1", "layers.3")), "layers.3", "3 layers"),
    "wrong shape": (
        _weights(lambda w: w.update({KEY: np.zeros((2, 17), np.float32)})),
        KEY,
        "[2, 17]",
        "[2, 16]",
    ),
    "wrong dtype": (_weights(lambda w: w.update({KEY: np.zeros((2, 16), np.int8)})), KEY, "I8"),
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(peft_io, "_PATTERN_SECONDS", 0.05)


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_refused(saved, case):
    damage, *named = case
    damage(saved)
    with pytest.raises(UserError) as error:
        load_adapter(saved, CONFIG)
    for name in named:
        assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_overwritten(saved):
    before = runs.contents(saved)
    with pytest.raises(UserError, match="not empty"):
        save_adapter(saved, adapter())
    assert runs.contents(saved) == before
