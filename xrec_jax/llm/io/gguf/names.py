"""Names of a LLaMA in a GGUF file: keys of the metadata, tensors, and the order of their rows.

The keys and tensor names are those of the format's specification (`docs/gguf.md` of ggml); the
order of the rows is that of llama.cpp's converter (`permute` of its `LlamaModel`).
"""

from __future__ import annotations

import numpy as np

from xrec_jax.llm.model.layout import Parameter

ARCHITECTURE = "llama"
TYPE = "model"  # value of `general.type`; others are adapters, projectors and so on


class Key:
    """Keys of the metadata."""

    ARCHITECTURE = "general.architecture"
    TYPE = "general.type"
    NAME = "general.name"
    ALIGNMENT = "general.alignment"
    FILE_TYPE = "general.file_type"
    QUANTIZATION_VERSION = "general.quantization_version"
    SPLIT_COUNT = "split.count"

    VOCAB_SIZE = "llama.vocab_size"
    CONTEXT_LENGTH = "llama.context_length"
    EMBEDDING_LENGTH = "llama.embedding_length"
    FEED_FORWARD_LENGTH = "llama.feed_forward_length"
    BLOCK_COUNT = "llama.block_count"
    HEAD_COUNT = "llama.attention.head_count"
    HEAD_COUNT_KV = "llama.attention.head_count_kv"
    KEY_LENGTH = "llama.attention.key_length"
    VALUE_LENGTH = "llama.attention.value_length"
    RMS_EPS = "llama.attention.layer_norm_rms_epsilon"
    ROPE_DIMENSIONS = "llama.rope.dimension_count"
    ROPE_BASE = "llama.rope.freq_base"
    ROPE_SCALING_TYPE = "llama.rope.scaling.type"
    ROPE_SCALING_FACTOR = "llama.rope.scaling.factor"
    ROPE_SCALING_ORIGINAL = "llama.rope.scaling.original_context_length"
    ROPE_SCALE_LINEAR = "llama.rope.scale_linear"  # older name of the factor

    TOKENIZER_MODEL = "tokenizer.ggml.model"
    TOKENIZER_PRE = "tokenizer.ggml.pre"
    TOKENS = "tokenizer.ggml.tokens"
    TOKEN_TYPES = "tokenizer.ggml.token_type"
    SCORES = "tokenizer.ggml.scores"
    MERGES = "tokenizer.ggml.merges"
    BOS_ID = "tokenizer.ggml.bos_token_id"
    EOS_ID = "tokenizer.ggml.eos_token_id"
    EOT_ID = "tokenizer.ggml.eot_token_id"
    EOM_ID = "tokenizer.ggml.eom_token_id"
    UNK_ID = "tokenizer.ggml.unknown_token_id"
    PAD_ID = "tokenizer.ggml.padding_token_id"
    ADD_BOS = "tokenizer.ggml.add_bos_token"
    ADD_EOS = "tokenizer.ggml.add_eos_token"
    ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
    CHAT_TEMPLATE = "tokenizer.chat_template"


ROPE_FACTORS = "rope_freqs.weight"  # what each rotary frequency is divided by, `[head_dim / 2]`
# Tensor of each parameter, by its path in our tree.
TENSORS = {
    "embed/table": "token_embd.weight",
    "layers/attn_norm/scale": "blk.{layer}.attn_norm.weight",
    "layers/attn/q/kernel": "blk.{layer}.attn_q.weight",
    "layers/attn/k/kernel": "blk.{layer}.attn_k.weight",
    "layers/attn/v/kernel": "blk.{layer}.attn_v.weight",
    "layers/attn/o/kernel": "blk.{layer}.attn_output.weight",
    "layers/mlp_norm/scale": "blk.{layer}.ffn_norm.weight",
    "layers/mlp/gate/kernel": "blk.{layer}.ffn_gate.weight",
    "layers/mlp/up/kernel": "blk.{layer}.ffn_up.weight",
    "layers/mlp/down/kernel": "blk.{layer}.ffn_down.weight",
    "final_norm/scale": "output_norm.weight",
    "head/table": "output.weight",
}
_ROTATED = ("layers/attn/q/kernel", "layers/attn/k/kernel")


def tensor_name(parameter: Parameter, layer: int | None) -> str:
    """Name of the tensor of a parameter, or of one layer of a stacked one.

    Its shape is `Parameter.hf_shape`, which the file's header lists in reverse.
    """
    return TENSORS[parameter.name].format(layer=layer)


def is_rotated(parameter: Parameter) -> bool:
    """True for queries and keys, whose rows are in another order in a GGUF file."""
    return parameter.name in _ROTATED


def to_interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorders rows of queries or keys from Hugging Face's order to that of GGUF.

    Hugging Face rotates feature i of a head with feature `i + head_dim / 2`; in GGUF the two are
    neighbours.

    Args:
      rows: `[heads * head_dim, in]`, whole heads.
      head_dim: features of a head.
    """
    pairs = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def from_interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Reorders rows of queries or keys from GGUF's order to that of Hugging Face.

    Args:
      rows: `[heads * head_dim, in]`, whole heads.
      head_dim: features of a head.
    """
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
