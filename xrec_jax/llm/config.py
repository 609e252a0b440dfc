"""The shape of a LLaMA, and its translation to and from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from xrec_jax.core.errors import UserError

ARCHITECTURE = "LlamaForCausalLM"
# Keys whose other values would change the computation in a way this model does not do.
_ONLY = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "pretraining_tp": 1,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The frequency scaling of Llama 3.1 and 3.2.

    Attributes:
      factor: low frequencies are divided by it.
      low_freq_factor: wavelengths above `original_max_positions / low_freq_factor` are scaled.
      high_freq_factor: wavelengths below `original_max_positions / high_freq_factor` are kept.
      original_max_positions: context length before the extension.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


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
      max_positions: longest sequence the model is meant for.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None for LLaMA 2 and 3.
      rms_eps: added to the mean square in RMSNorm.
      tie_embeddings: whether the output layer is the embedding.
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
        """Parameters that every token is multiplied with: N of the 4N and 6N FLOPs a token."""
        heads = 2 * self.num_heads + 2 * self.num_kv_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size)
        return self.num_layers * layer + self.vocab_size * self.hidden_size

    @property
    def num_parameters(self) -> int:
        """All parameters."""
        norms = (2 * self.num_layers + 1) * self.hidden_size
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        return self.matmul_parameters + norms + embedding


def from_hf(config: Mapping[str, Any], *, where: str = "config.json") -> LlamaConfig:
    """Reads the content of a Hugging Face `config.json`, of transformers 4 or 5.

    Raises:
      UserError: names the key if the architecture or a value is not one of LLaMA 2 to 3.2.
    """
    names = config.get("architectures") or [config.get("model_type")]
    if config.get("model_type", "llama") != "llama" or names[0] not in (ARCHITECTURE, "llama"):
        raise UserError(
            f"{where}: architecture {names[0]!r} (model_type {config.get('model_type')!r}) is not "
            f"supported; only {ARCHITECTURE} is"
        )
    for key, valid in _ONLY.items():
        if config.get(key, valid) != valid:
            raise UserError(f"{where}: {key}={config[key]!r} is not supported; only {valid!r} is")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return LlamaConfig(
            vocab_size=int(config["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // max(heads, 1)),
            max_positions=int(config.get("max_position_embeddings", 2048)),
            rope_theta=_theta(config),
            rope_scaling=_scaling(config, where),
            rms_eps=float(config.get("rms_norm_eps", 1e-6)),
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            initializer_range=float(config.get("initializer_range", 0.02)),
        )
    except KeyError as error:
        raise UserError(f"{where}: key {error.args[0]!r} is missing") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: {error}") from error


def _theta(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters") or {}  # transformers 5; before, a key of its own
    return float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))


def _scaling(config: Mapping[str, Any], where: str) -> RopeScaling | None:
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise UserError(
            f"{where}: rope scaling {kind!r} is not supported; only 'default' and 'llama3' are"
        )
    if float(rope["low_freq_factor"]) >= float(rope["high_freq_factor"]):
        raise UserError(f"{where}: rope scaling needs low_freq_factor below high_freq_factor")
    return RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope["original_max_position_embeddings"]),
    )


def to_hf(config: LlamaConfig, *, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    """The content of a `config.json` that transformers 4.43 and later, and vLLM, read.

    Args:
      config: the model.
      dtype: of the stored weights.
      **more: further keys, such as `bos_token_id` and `eos_token_id`.
    """
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    scaling = config.rope_scaling
    if scaling is not None:
        rope |= {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
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
        "rope_theta": config.rope_theta,  # transformers 4 reads this one and the next
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
