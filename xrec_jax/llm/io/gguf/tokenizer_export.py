"""Tokenizer of a model as metadata of a GGUF file: the way back of `gguf.tokenizer`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError, one_line
from xrec_jax.llm.io.gguf.names import Key
from xrec_jax.llm.io.gguf.pretokenizers import DIGIT, GPT2, name_of
from xrec_jax.llm.io.gguf.tokenizer import (
    BYTE_LEVEL,
    CONTROL,
    NORMAL,
    SENTENCE_PIECE,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    merges_of_scores,
)
from xrec_jax.llm.io.tokenizer import Tokenizer

UNUSED, BYTE = 5, 6  # further values of `tokenizer.ggml.token_type`
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_ENDS = (Key.EOS_ID, Key.EOT_ID, Key.EOM_ID)


def to_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Metadata of a tokenizer, without keys of other parts of the model.

    Args:
      tokenizer: byte-level BPE, or BPE as of a SentencePiece vocabulary.
      rows: rows of the model's embedding. Rows without a token get one that no text spells.

    Raises:
      UserError: if the tokenizer has parts that the format or llama.cpp does not know.
    """
    where = tokenizer.where
    tokenizer.check_fits(rows)
    content = json.loads(tokenizer.hf.backend_tokenizer.to_str())
    model = content["model"]
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix"):
        raise UserError(
            f"{where}: a tokenizer of kind {one_line(str(model.get('type')))!r} cannot be written "
            "to a GGUF file; only BPE, byte-level or of SentencePiece, can"
        )
    tokens, types = _tokens(content, rows)
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    if model.get("byte_fallback"):
        unknown = tokenizer.hf.unk_token_id
        kinds = _sentence_piece_types(tokens, types, unknown)
        values = _sentence_piece(content, tokens, merges, where) | {Key.TOKEN_TYPES: kinds}
    else:
        values = {
            Key.TOKENIZER_MODEL: BYTE_LEVEL,
            Key.TOKENIZER_PRE: _pre_tokenizer(content, where),
            Key.TOKENS: tokens,
            Key.TOKEN_TYPES: types,
            Key.MERGES: [f"{left} {right}" for left, right in merges],
            Key.ADD_SPACE_PREFIX: False,
        }
    return values | _special(tokenizer, rows)


def _tokens(content: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types of the tokens by id; added tokens without a row are left out."""
    by_id = {number: token for token, number in content["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for added in content["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    # The names of llama.cpp's converter for rows without a token.
    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(rows)]
    return tokens, [kinds.get(number, UNUSED) for number in range(rows)]


def _pre_tokenizer(content: Mapping[str, Any], where: str) -> str:
    """Name of a byte-level tokenizer's pre-tokenizer in GGUF files."""
    if content.get("normalizer") is not None:
        kind = content["normalizer"].get("type")
        raise UserError(
            f"{where}: its normalizer ({kind}) cannot be written to a GGUF file; llama.cpp would "
            "read other tokens"
        )
    splits = _splits(content.get("pre_tokenizer"))
    ignore_merges = bool(content["model"].get("ignore_merges"))
    name = None if splits is None else name_of(splits, ignore_merges)
    if name is None:
        raise UserError(
            f"{where}: its pre-tokenizer is none of those that llama.cpp knows by name; it would "
            "read other tokens"
        )
    return name


def _splits(node: Any) -> tuple[str, ...] | None:
    """Regular expressions of a pre-tokenizer; None if it is not made of such."""
    nodes = node["pretokenizers"] if node and node.get("type") == "Sequence" else [node]
    splits: list[str] = []
    for place, part in enumerate(nodes):
        kind = part.get("type") if part else None
        last = place == len(nodes) - 1
        if kind == "Digits" and part.get("individual_digits") and not last:
            splits.append(DIGIT)
        elif kind == "Split" and not last:
            pattern = part["pattern"].get("Regex")
            if pattern is None or part["behavior"] != "Isolated" or part.get("invert"):
                return None
            splits.append(pattern)
        elif kind == "ByteLevel" and last and not part.get("add_prefix_space"):
            splits += [GPT2] if part.get("use_regex", True) else []
        else:
            return None
    return tuple(splits)


def _sentence_piece(
    content: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[tuple[str, ...]], where: str
) -> dict[str, Any]:
    """Keys of a SentencePiece vocabulary; scores in the order of the merges.

    SentencePiece and llama.cpp merge by the scores of the results, so the merges must be those that
    the scores give.
    """
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(merges):
        rank.setdefault(left + right, number)
    # Tokens that no merge gives, single characters most often, have the lowest scores.
    scores = [-float(rank.get(token, len(merges))) for token in tokens]
    if list(merges_of_scores(tokens, scores)) != list(merges):
        raise UserError(
            f"{where}: its merges are not those of a SentencePiece vocabulary; llama.cpp would "
            "read other tokens"
        )
    return {
        Key.TOKENIZER_MODEL: SENTENCE_PIECE,
        Key.TOKENIZER_PRE: "default",
        Key.TOKENS: list(tokens),
        Key.SCORES: scores,
        Key.ADD_SPACE_PREFIX: _has_prefix(content, where),
    }


def _sentence_piece_types(
    tokens: Sequence[str], types: Sequence[int], unknown: int | None
) -> list[int]:
    """Types with the two that only SentencePiece has: bytes, and the unknown token."""
    pairs = zip(tokens, types, strict=True)
    kinds = [BYTE if token in _BYTES else token_type for token, token_type in pairs]
    if unknown is not None and unknown < len(kinds):
        kinds[unknown] = UNKNOWN
    return kinds


def _has_prefix(content: Mapping[str, Any], where: str) -> bool:
    """True if a space is put before a text, by either of the two ways in which files say so."""
    before = content.get("pre_tokenizer")
    if before is not None and content.get("normalizer") is None:
        if before.get("type") == "Metaspace" and before.get("replacement") == SPACE:
            return bool(before.get("prepend_scheme", "always") != "never")
    elif before is None and content.get("normalizer") is not None:
        normalizer = content["normalizer"]
        steps = normalizer.get("normalizers", [normalizer])
        kinds = [step.get("type") for step in steps]
        if kinds in (["Replace"], ["Prepend", "Replace"]):
            return "Prepend" in kinds
    raise UserError(
        f"{where}: its normalizer and pre-tokenizer are not those of a SentencePiece vocabulary; "
        "llama.cpp would read other tokens"
    )


def _special(tokenizer: Tokenizer, rows: int) -> dict[str, Any]:
    """Special ids, what begins a text, and the chat template."""
    hf = tokenizer.hf
    begin = tokenizer.encode("")
    values: dict[str, Any] = {Key.ADD_BOS: bool(begin), Key.ADD_EOS: False}
    ids = {Key.BOS_ID: tokenizer.bos_id, Key.UNK_ID: hf.unk_token_id, Key.PAD_ID: hf.pad_token_id}
    values |= {key: n for key, n in ids.items() if n is not None and n < rows}
    if len(tokenizer.eos_ids) > len(_ENDS):
        raise UserError(
            f"{tokenizer.where}: {len(tokenizer.eos_ids)} tokens end a text; a GGUF file names "
            f"{len(_ENDS)} at most: shorten eos_token_id in generation_config.json"
        )
    values |= dict(zip(_ENDS, tokenizer.eos_ids, strict=False))
    if tokenizer.eos_ids:  # named, so that no reader guesses others from the texts of the tokens
        values.setdefault(Key.EOT_ID, tokenizer.eos_ids[0])
    if tokenizer.has_template:
        values[Key.CHAT_TEMPLATE] = hf.get_chat_template()
    return values
