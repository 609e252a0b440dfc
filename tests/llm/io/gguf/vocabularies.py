"""Tiny vocabularies as GGUF metadata: byte-level BPE and SentencePiece."""

from __future__ import annotations

import dataclasses
from typing import Any

from tokenizers import pre_tokenizers

from tests.llm.io.gguf import files

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
# Merges of a byte-level vocabulary, in their order; each result is a token.
MERGES = "h e;l l;he ll;hell o;Ġ w;o r;Ġw or;Ġwor l;Ġworl d;Ġ Ġ;1 2;12 3;a Ġ;aĠ b;Ċ Ċ".split(";")
# Scores of the pieces of a SentencePiece vocabulary, best first.
PIECES = ["▁h", "el", "lo", "▁hel", "▁hello", "▁w", "or", "ld", "▁wor", "▁world", "▁▁", "12"]


def byte_level(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary: special tokens, all bytes and `MERGES`; keys by their last part."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*special, *letters, *(merge.replace(" ", "") for merge in MERGES)]
    values = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [CONTROL] * 3 + [USER_DEFINED] + [NORMAL] * (len(tokens) - 4),
        "merges": list(MERGES),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "padding_token_id": 2,
    }
    return _keyed(values | changes) | {"tokenizer.chat_template": TEMPLATE}


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary: special tokens, bytes, single letters and `PIECES`."""
    numbers = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted(set("".join(PIECES)) | set("▁ab3"))
    tokens = ["<unk>", "<s>", "</s>", *numbers, *PIECES, *letters]
    values = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [UNKNOWN, CONTROL, CONTROL]
        + [BYTE] * len(numbers)
        + [NORMAL] * (len(PIECES) + len(letters)),
        "scores": [0.0] * 259 + [-float(n) for n in range(len(PIECES) + len(letters))],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
    }
    return _keyed(values | changes)


def write(path: Any, metadata: dict[str, Any], **options: Any) -> Any:
    """Writes a random model with a vocabulary; returns its path."""
    rows = len(metadata["tokenizer.ggml.tokens"])
    files.write(
        path,
        dataclasses.replace(files.CONFIG, vocab_size=rows),
        metadata=metadata | {"llama.vocab_size": rows},
        **options,
    )
    return path


def _keyed(values: dict[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{key}": value for key, value in values.items() if value is not None}
