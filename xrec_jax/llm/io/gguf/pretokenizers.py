"""Pre-tokenizers of byte-level BPE by the names that GGUF files give them.

A byte-level vocabulary was trained on pieces that a few regular expressions cut from the texts, and
its merges are right only for pieces cut alike. A GGUF file names them (`tokenizer.ggml.pre`); the
expressions of each name are those of llama.cpp (`src/llama-vocab.cpp`). `make parity` compares the
tokens of every name here with llama.cpp's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # GPT-2's own
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_LEAD}[{_UPPER}]*[{_LOWER}]+|{_LEAD}[{_UPPER}]+[{_LOWER}]*|\p{{N}}|{_SLASH}"
_GPT4O = (
    rf"{_LEAD}[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}?|{_LEAD}[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}?|"
    rf"\p{{N}}{{1,3}}|{_SLASH}"
)
DIGIT, _THREE = r"\p{N}", r"[0-9][0-9][0-9]"
_SIGNS = r"[\p{P}\$\+<=>\^~\|`]+"


@dataclasses.dataclass(frozen=True)
class PreTokenizer:
    """Rules of a byte-level vocabulary beside its tokens and merges.

    Attributes:
      splits: regular expressions, applied one after the other; each cuts every piece of the one
        before into its matches and what lies between them.
      ignore_merges: a whole piece that is a token becomes this token, whatever the merges give.
      add_bos: a text begins with the BOS token unless the file says otherwise.
    """

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_OF_LLAMA3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_SINGLE_DIGITS = PreTokenizer((DIGIT, GPT2))
_OF_GPT2 = PreTokenizer((GPT2,))
# Of several names with equal rules, the first is written by an export.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "command-r": _SINGLE_DIGITS,
    "codeshell": _SINGLE_DIGITS,
    "llama-bpe": _OF_LLAMA3,
    "llama3": _OF_LLAMA3,
    "llama-v3": _OF_LLAMA3,
    "falcon3": _OF_LLAMA3,
    "pixtral": _OF_LLAMA3,
    "gpt-2": _OF_GPT2,
    "mpt": _OF_GPT2,
    "olmo": _OF_GPT2,
    "phi-2": _OF_GPT2,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "stablelm2": PreTokenizer((_QWEN2,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenizer((_GPT4O,)),
    "llama4": PreTokenizer((_GPT4O,)),
    "falcon": PreTokenizer((_SIGNS, GPT2, _THREE)),
    "default": PreTokenizer((_SIGNS, GPT2, r"\p{N}+", _THREE)),
}


def name_of(splits: tuple[str, ...], ignore_merges: bool) -> str | None:
    """The first name of rules; None if no name stands for them."""
    for name, rules in PRE_TOKENIZERS.items():
        if (rules.splits, rules.ignore_merges) == (splits, ignore_merges):
            return name
    return None


def backend_of(pre_tokenizer: PreTokenizer) -> Any:
    """The pre-tokenizer as an object of the `tokenizers` package."""
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(Regex(split), "isolated") for split in pre_tokenizer.splits),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
