"""Configuration of a LLaMA, and its translation to and from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

from xrec_jax.core.errors import UserError

ARCHITECTURE = "LlamaForCausalLM"
_ARCHITECTURES = (ARCHITECTURE, "LlamaModel")  # the second is stored without a head
_ACTIVATIONS = ("silu", "swish")  # two names of one function
_BIASES = ("attention_bias", "mlp_bias")  # this model has none
_TYPE = ("rope_type", "type")  # the second is the older name
# Keys read by each kind of scaling; a value under any other key would be ignored silently.
_SCALINGS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_UNREAD = ("original_max_position_embeddings", "partial_rotary_factor")  # by other kinds
_BORDERS = ("low_freq_factor", "high_freq_factor")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary frequencies for sequences longer than those of the training.

    Attributes:
      factor: low frequencies are divided by it; in "linear" all are.
      low_freq_factor: wavelengths above `original_max_positions / low_freq_factor` are scaled.
      high_freq_factor: wavelengths below `original_max_positions / high_freq_factor` are kept.
      original_max_positions: context length before the extension.
      kind: "llama3" (Llama 3.1 and 3.2), "linear", or "dynamic", which has no effect up to
        `LlamaConfig.max_positions`, the longest sequence accepted. The three fields before belong
        to "llama3" only.
    """

    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192
    kind: str = "llama3"


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a LLaMA.

    Attributes:
      vocab_size: rows of the embedding.
      hidden_size: width of the residual stream.
      intermediate_size: width of the feed-forward layer.
      num_layers: transformer blocks.
      num_heads: query heads.
      num_kv_heads: key and value heads; divides `num_heads`.
      head_dim: features of a head; need not be `hidden_size / num_heads`.
      max_positions: longest sequence that the model supports.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None for LLaMA 2 and 3.
      rms_eps: added to the mean square in RMSNorm.
      tie_embeddings: use the embedding as the output layer.
      initializer_range: standard deviation of random kernels.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_eps: float = 1e-5
    tie_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise UserError(f"language model: {field.name}={value!r} must be a positive number")
        if not 0.0 < self.rope_theta < float("inf") or not 0.0 < self.rms_eps < 1.0:
            raise UserError(
                f"language model: rope_theta={self.rope_theta} and rms_eps={self.rms_eps} must be "
                "positive"
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"language model: num_heads={self.num_heads} is not a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise UserError(f"language model: head_dim={self.head_dim} must be even")

    @property
    def matmul_parameters(self) -> int:
        """Number of parameters in matrix products: N of the 4N and 6N FLOPs a token."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)
        return self.num_layers * layer + self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """Total number of parameters."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return self.matmul_parameters + norms + embedding


def from_hf(config: Mapping[str, Any], *, where: str = "config.json") -> LlamaConfig:
    """Reads the content of a Hugging Face `config.json`, of transformers 4 or 5.

    Of two equivalent keys, the one that transformers 5 reads takes precedence. A null means the
    default only for the keys where transformers does so.

    Raises:
      UserError: names the key whose value is not one of LLaMA 2 to 3.2.
    """
    # Refuse whatever this implementation would compute differently.
    _check_architecture(config, where)
    if config.get("hidden_act", "silu") not in _ACTIVATIONS:
        raise UserError(
            f"{where}: hidden_act={config['hidden_act']!r} is not supported; only 'silu' is"
        )
    for key in _BIASES:
        if _flag(config, key, where):
            raise UserError(f"{where}: {key}=True is not supported; only False is")
    # Sizes, with the defaults of transformers.
    hidden = _integer(config, "hidden_size", where)
    heads = _integer(config, "num_attention_heads", where)
    kv, head_dim = config.get("num_key_value_heads"), config.get("head_dim")
    if head_dim is None and hidden % heads:
        raise UserError(
            f"{where}: hidden_size={hidden} is not a multiple of num_attention_heads={heads}, and "
            "head_dim is not there"
        )
    theta, scaling = _rope(config, where)
    values: dict[str, Any] = {
        "vocab_size": _integer(config, "vocab_size", where),
        "hidden_size": hidden,
        "intermediate_size": _integer(config, "intermediate_size", where),
        "num_layers": _integer(config, "num_hidden_layers", where),
        "num_heads": heads,
        "num_kv_heads": heads if kv is None else _integer(config, "num_key_value_heads", where),
        "head_dim": hidden // heads if head_dim is None else _integer(config, "head_dim", where),
        "max_positions": _integer(config, "max_position_embeddings", where, default=2048),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "rms_eps": _number(config, "rms_norm_eps", where, default=1e-6),
        "tie_embeddings": _flag(config, "tie_word_embeddings", where),
        "initializer_range": _number(config, "initializer_range", where, default=0.02),
    }
    try:
        return LlamaConfig(**values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _check_architecture(config: Mapping[str, Any], where: str) -> None:
    named, kind = config.get("architectures"), config.get("model_type", "llama")
    if named is None or named == []:
        named = [ARCHITECTURE] if config.get("model_type") else [None]
    if kind != "llama" or not isinstance(named, list) or named[0] not in _ARCHITECTURES:
        name = named[0] if isinstance(named, list) else named
        raise UserError(
            f"{where}: architecture {name!r} (model_type {config.get('model_type')!r}) is not "
            f"supported; only {ARCHITECTURE} is"
        )


def _integer(values: Mapping[str, Any], key: str, where: str, *, default: int | None = None) -> int:
    """Reads an integer above 0; `default` is used for a missing key."""
    if key not in values and default is None:
        raise UserError(f"{where}: key {key!r} is missing")
    value = values.get(key, default)
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {key}={value!r} must be a positive whole number")
    return value


def _number(
    values: Mapping[str, Any], key: str, where: str, *, default: float | None = None
) -> float:
    """Reads a finite number above 0; `default` is used for a missing key."""
    if key not in values and default is None:
        raise UserError(f"{where}: key {key!r} is missing")
    value = values.get(key, default)
    # An integer of JSON may exceed float64.
    fine = type(value) in (int, float) and 0 < value <= sys.float_info.max
    if not fine:
        raise UserError(f"{where}: {key}={str(value)[:40]} must be a positive number")
    return float(value)  # type: ignore[arg-type]


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise UserError(f"{where}: {key}={value!r} must be true or false")
    return value


def _rope(config: Mapping[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Reads base and scaling of the rotary frequencies, under their newer or older key."""
    # As in transformers 5: the older key, which users add to files, overrides the newer one.
    at = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(at) or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"{where}: {at}={rope!r} must be an object")
    rope_where = f"{where}: {at}"
    kind = next((rope[key] for key in _TYPE if key in rope), "default")
    if not isinstance(kind, str) or kind not in _SCALINGS:
        raise UserError(
            f"{where}: rope scaling {kind!r} is not supported; only "
            f"{', '.join(repr(known) for known in _SCALINGS)} are"
        )
    for key, value in rope.items():
        neutral = key in _TYPE or key == "rope_theta" or value is None
        if not neutral and key not in _SCALINGS[kind] and key not in _UNREAD:
            raise UserError(
                f"{rope_where}: {key}={value!r} is not read by rope scaling {kind!r}; name the "
                "scaling it belongs to as rope_type, or remove it"
            )
    if kind != "default":  # transformers ignores it there
        for mapping in (rope, config):
            if mapping.get("partial_rotary_factor") not in (None, 1):
                raise UserError(f"{where}: partial_rotary_factor is not supported; only 1 is")
    source = (rope, rope_where) if "rope_theta" in rope else (config, where)
    theta = _number(source[0], "rope_theta", source[1], default=10000.0)
    if kind == "default":
        return theta, None
    factor = _number(rope, "factor", rope_where)
    if kind != "llama3":
        return theta, RopeScaling(factor, kind=kind)
    low, high = (_number(rope, key, rope_where) for key in _BORDERS)
    if low >= high:
        raise UserError(f"{where}: rope scaling needs low_freq_factor below high_freq_factor")
    return theta, RopeScaling(factor, low, high, _original(config, rope, where, rope_where))


def _original(
    config: Mapping[str, Any], rope: Mapping[str, Any], where: str, rope_where: str
) -> int:
    """Context length before the extension, under any of the keys that transformers reads."""
    key = "original_max_position_embeddings"
    if key in config:
        return _integer(config, key, where)
    if key in rope:
        return _integer(rope, key, rope_where)
    return _integer(config, "max_position_embeddings", where, default=2048)


def to_hf(config: LlamaConfig, *, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    """Content of a `config.json` for transformers 4.43 and later, and vLLM.

    Args:
      config: the model.
      dtype: dtype of the stored weights.
      **more: further keys, such as `bos_token_id` and `eos_token_id`.
    """
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    # transformers 4 keeps base and scaling apart, transformers 5 in one object; both are written.
    old = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,  # this and the next key are for transformers 4
        "rope_scaling": old if scaling is not None else None,
        "rms_norm_eps": config.rms_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "dtype": dtype,
        "torch_dtype": dtype,
        **more,
    }
