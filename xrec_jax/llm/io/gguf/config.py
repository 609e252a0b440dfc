"""Configuration of a LLaMA in the metadata of a GGUF file, and back."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.llm.io.gguf.names import ARCHITECTURE, TYPE, Key
from xrec_jax.llm.model.config import LlamaConfig, RopeScaling
from xrec_jax.llm.model.rope import inverse_frequencies

# Keys of models that are called "llama" but compute something else, with their harmless values.
_OTHER_MODELS = {
    "llama.expert_count": (0,),
    "llama.attention.causal": (True,),
    "llama.attention.scale": (),
    "llama.attention.clamp_kqv": (0.0,),
    "llama.attention.max_alibi_bias": (0.0,),
    "llama.embedding_scale": (1.0,),
    "llama.residual_scale": (1.0,),
    "llama.logit_scale": (1.0,),
    "llama.use_parallel_residual": (False,),
}
_LARGEST = float(np.finfo(np.float32).max)
_WINDOW = "llama.attention.sliding_window"
_SCALINGS = ("none", "linear")
_PRECISION = 1e-5  # relative; factors are stored in float32
_ROUNDING = 3e-7  # of a quotient in float32
# Scalings that LLaMAs were published with come first; of equal ones the first is chosen.
_FACTORS = (8.0, 32.0, 2.0, 4.0, 16.0, 64.0)
_ORIGINALS = tuple(dict.fromkeys([8192, *(1 << n for n in range(3, 21))]))


def from_metadata(
    metadata: Mapping[str, Any], *, vocab_size: int, tied: bool, where: str
) -> LlamaConfig:
    """Reads the configuration, without factors of single frequencies: see `with_rope_factors`.

    Args:
      metadata: metadata of the file.
      vocab_size: rows of the embedding.
      tied: True if the file has no output matrix.
      where: path of the file, for messages.

    Raises:
      UserError: names the key whose value is missing or is not one of LLaMA 2 to 3.2.
    """
    values = _Values(metadata, where)
    values.check_model()
    hidden, heads = values.integer(Key.EMBEDDING_LENGTH), values.integer(Key.HEAD_COUNT)
    if Key.KEY_LENGTH not in metadata and hidden % heads:
        raise UserError(
            f"{where}: {Key.EMBEDDING_LENGTH}={hidden} is not a multiple of "
            f"{Key.HEAD_COUNT}={heads}, and {Key.KEY_LENGTH} is not there"
        )
    head_dim = values.integer(Key.KEY_LENGTH, default=hidden // heads)
    # All features of a head are rotated, and its values are as wide as its keys.
    for key in (Key.VALUE_LENGTH, Key.ROPE_DIMENSIONS):
        if values.integer(key, default=head_dim) != head_dim:
            raise UserError(
                f"{where}: {key}={metadata[key]} is not supported; only {head_dim}, the size of a "
                "head, is"
            )
    try:
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=values.integer(Key.FEED_FORWARD_LENGTH),
            num_layers=values.integer(Key.BLOCK_COUNT),
            num_heads=heads,
            num_kv_heads=values.integer(Key.HEAD_COUNT_KV, default=heads),
            head_dim=head_dim,
            max_positions=values.integer(Key.CONTEXT_LENGTH),
            rope_theta=values.number(Key.ROPE_BASE, default=10000.0),
            rms_eps=values.number(Key.RMS_EPS),
            tie_embeddings=tied,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    window = values.integer(_WINDOW, default=config.max_positions)
    if window < config.max_positions:
        raise UserError(f"{where}: {_WINDOW}={window} is not supported; only full attention is")
    return dataclasses.replace(config, rope_scaling=values.linear_scaling())


def to_metadata(config: LlamaConfig) -> dict[str, int | float | str]:
    """Metadata of a configuration, integers for uint32 and floats for float32.

    Llama 3's scaling is not among it: see `rope_factors`.

    Raises:
      UserError: for a scaling that the format cannot express.
    """
    scaling = config.rope_scaling
    values: dict[str, int | float | str] = {
        Key.VOCAB_SIZE: config.vocab_size,
        Key.CONTEXT_LENGTH: config.max_positions,
        Key.EMBEDDING_LENGTH: config.hidden_size,
        Key.FEED_FORWARD_LENGTH: config.intermediate_size,
        Key.BLOCK_COUNT: config.num_layers,
        Key.HEAD_COUNT: config.num_heads,
        Key.HEAD_COUNT_KV: config.num_kv_heads,
        Key.KEY_LENGTH: config.head_dim,
        Key.VALUE_LENGTH: config.head_dim,
        Key.RMS_EPS: config.rms_eps,
        Key.ROPE_DIMENSIONS: config.head_dim,
        Key.ROPE_BASE: config.rope_theta,
    }
    if scaling is not None and scaling.kind == "linear":
        values |= {Key.ROPE_SCALING_TYPE: "linear", Key.ROPE_SCALING_FACTOR: scaling.factor}
    return values


def rope_factors(config: LlamaConfig) -> np.ndarray | None:
    """Tensor of what Llama 3's scaling divides each frequency by, `[head_dim / 2]` float32.

    None for the scalings that need none: "linear" is metadata, and "dynamic" has no effect within
    the context length.
    """
    if config.rope_scaling is None or config.rope_scaling.kind != "llama3":
        return None
    return _factors(config)


def with_rope_factors(config: LlamaConfig, factors: np.ndarray, *, where: str) -> LlamaConfig:
    """Configuration with the scaling that divides the rotary frequencies by stored factors.

    Only the values at the frequencies of the model count, so whichever parameters give the stored
    factors describe the same model.

    Args:
      config: the configuration, without a scaling.
      factors: `[head_dim / 2]`, what each rotary frequency is divided by.
      where: path of the file, for messages.

    Raises:
      UserError: if no scaling that is supported gives these factors.
    """
    if config.rope_scaling is not None:
        raise UserError(
            f"{where}: it has both {Key.ROPE_SCALING_FACTOR} and factors of single frequencies"
        )
    factors = np.asarray(factors, np.float64)
    if factors.min() > 0 and np.allclose(factors, factors[0], rtol=_PRECISION, atol=0.0):
        scaling = _linear(_shortest(factors[0]))
        return dataclasses.replace(config, rope_scaling=scaling)
    stretched = factors.min() > 1 - _PRECISION
    for candidate in _candidates(factors, config) if stretched else ():
        scaled = dataclasses.replace(config, rope_scaling=candidate)
        if np.allclose(_factors(scaled), factors, rtol=_PRECISION, atol=0.0):
            return scaled
    raise UserError(
        f"{where}: its factors of single rotary frequencies (from {factors.min():.4g} to "
        f"{factors.max():.4g}) are not those of Llama 3's scaling, and no other is supported"
    )


def _factors(config: LlamaConfig) -> np.ndarray:
    plain = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    return (plain / inverse_frequencies(config)).astype(np.float32)


def _linear(factor: float) -> RopeScaling | None:
    return None if factor == 1.0 else RopeScaling(factor, kind="linear")


def _candidates(factors: np.ndarray, config: LlamaConfig) -> Iterator[RopeScaling]:
    """Llama 3 scalings that may give the factors: published ones, then a fitted one."""
    largest = _shortest(factors.max())
    if abs(float(f"{largest:.6g}") / largest - 1) < _ROUNDING:
        largest = float(f"{largest:.6g}")  # 5, stored as the quotient 4.9999995 of two frequencies
    # The largest factor is the scaling's own, unless no frequency is low enough to be fully scaled.
    possible = dict.fromkeys([largest, *(f for f in _FACTORS if f > largest)])
    for factor, length in itertools.product(possible, _ORIGINALS):
        yield RopeScaling(factor, original_max_positions=length)
    # Between the borders the share that is kept grows linearly with the frequency. The scale of
    # the three parameters is free: `low_freq_factor` is 1, or the length a published one.
    frequency = inverse_frequencies(dataclasses.replace(config, rope_scaling=None))
    for factor in possible:
        kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
        between = (kept > _PRECISION) & (kept < 1 - _PRECISION)
        if between.sum() < 2:
            continue
        slope, start = np.polyfit(frequency[between].astype(np.float64), kept[between], 1)
        if slope > 0 > start:
            high = 1 - 1 / start
            length = 2 * np.pi * slope * (high - 1)
            yield RopeScaling(factor, 1.0, round(high, 4), max(round(length), 1))
            # A length that is no whole number: the borders take the fraction.
            scale = _ORIGINALS[0] / length
            yield RopeScaling(factor, float(scale), float(scale * high), _ORIGINALS[0])


class _Values:
    """Metadata of the model, checked key by key.

    Args:
      metadata: metadata of the file.
      where: path of the file, for messages.
    """

    def __init__(self, metadata: Mapping[str, Any], where: str):
        self._metadata, self._where = metadata, where

    def check_model(self) -> None:
        """Refuses other architectures and whatever this implementation computes differently."""
        architecture = self._metadata.get(Key.ARCHITECTURE)
        if architecture != ARCHITECTURE:
            raise UserError(
                f"{self._where}: {Key.ARCHITECTURE}={architecture!r:.80} is not supported; only "
                f"{ARCHITECTURE!r} is"
            )
        kind = self._metadata.get(Key.TYPE, TYPE)
        if kind != TYPE:
            raise UserError(
                f"{self._where}: {Key.TYPE}={kind!r:.80} is not supported; only {TYPE!r} is"
            )
        for key, harmless in _OTHER_MODELS.items():
            value = self._metadata.get(key)
            if value is not None and not any(np.array_equal(value, each) for each in harmless):
                raise UserError(f"{self._where}: {key}={value!r:.80} is not supported")

    def integer(self, key: str, *, default: int | None = None) -> int:
        """A whole number above 0; an array of one number for every layer must be constant."""
        value = self._get(key, default)
        if isinstance(value, np.ndarray) and value.dtype.kind in "iu" and len(value):
            if (value != value[0]).any():
                raise UserError(
                    f"{self._where}: {key} differs from layer to layer ({value.tolist()!s:.80}), "
                    "which is not supported"
                )
            value = int(value[0])
        if type(value) is not int or not 0 < value < 1 << 31:
            raise UserError(f"{self._where}: {key}={value!r:.80} must be a positive whole number")
        return value

    def number(self, key: str, *, default: float | None = None) -> float:
        """A finite number above 0, as it was before it was stored in float32."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value <= _LARGEST:
            raise UserError(f"{self._where}: {key}={value!r:.80} must be a positive number")
        return _shortest(value)

    def linear_scaling(self) -> RopeScaling | None:
        """Scaling of all frequencies alike; without a type, a factor means "linear"."""
        kind = self._get(Key.ROPE_SCALING_TYPE, "linear")
        if kind not in _SCALINGS:
            raise UserError(
                f"{self._where}: {Key.ROPE_SCALING_TYPE}={kind!r:.80} is not supported; only "
                f"{', '.join(map(repr, _SCALINGS))} are"
            )
        factor = 1.0
        for key in (Key.ROPE_SCALE_LINEAR, Key.ROPE_SCALING_FACTOR):
            if self._metadata.get(key) not in (None, 0.0):  # 0 means no scaling, too
                factor = self.number(key)
        return None if kind == "none" else _linear(factor)

    def _get(self, key: str, default: Any) -> Any:
        value = self._metadata.get(key, default)
        if value is None:
            raise UserError(f"{self._where}: key {key!r} of its metadata is missing")
        return value


def _shortest(value: float) -> float:
    """The shortest decimal number with the same float32: 1e-5 for 9.999999747378752e-06."""
    single = np.float32(value)
    return float(str(single)) if float(single) == value else float(value)
