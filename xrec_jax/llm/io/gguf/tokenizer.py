"""Tokenizer of a GGUF file: byte-level BPE or a SentencePiece vocabulary, from the metadata alone.

Keys and their meaning are those of the format's specification (`docs/gguf.md` of ggml) and of
llama.cpp (`src/llama-vocab.cpp`), the defaults of missing keys too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError, one_line
from xrec_jax.llm.io.gguf.names import Key
from xrec_jax.llm.io.gguf.pretokenizers import PRE_TOKENIZERS, PreTokenizer, backend_of
from xrec_jax.llm.io.hf import Generation

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"  # values of `tokenizer.ggml.model`
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # a space in SentencePiece vocabularies
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # of `tokenizer.ggml.token_type`
_SPECIAL = {"bos": Key.BOS_ID, "eos": Key.EOS_ID, "unk": Key.UNK_ID, "pad": Key.PAD_ID}
# llama.cpp's ids of a SentencePiece vocabulary whose file names none.
_SENTENCE_PIECE_IDS = {"unk": 0, "bos": 1, "eos": 2}
# Special tokens that end a turn of a conversation, in files without `eot_token_id`.
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>")
_FATAL = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Content of the keys `tokenizer.*`, checked.

    Attributes:
      model: `BYTE_LEVEL` or `SENTENCE_PIECE`.
      tokens: texts of the tokens by id.
      types: type of each token (`UNKNOWN`, `CONTROL`, ...); empty if the file has none.
      merges: pairs that BPE merges, in their order.
      pre_tokenizer: rules of a byte-level vocabulary; None for SentencePiece.
      special: ids by name: `bos`, `eos`, `unk`, `pad`; those that there are.
      add_bos: a text begins with the BOS token.
      add_space: a space is put before a SentencePiece text.
      template: chat template; None if there is none.
    """

    model: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    pre_tokenizer: PreTokenizer | None
    special: Mapping[str, int]
    add_bos: bool
    add_space: bool
    template: str | None


def read_vocabulary(metadata: Mapping[str, Any], where: str) -> Vocabulary:
    """Reads and checks the keys `tokenizer.*` of a file's metadata.

    Args:
      metadata: values by key.
      where: path of the file, for messages.

    Raises:
      UserError: names the key that is missing, damaged or of an unknown kind of tokenizer.
    """
    model = _value(metadata, Key.TOKENIZER_MODEL, str, where)
    if model not in (BYTE_LEVEL, SENTENCE_PIECE):
        raise UserError(
            f"{where}: {Key.TOKENIZER_MODEL}={one_line(model)!r} is not supported; only "
            f"{BYTE_LEVEL!r} (byte-level BPE) and {SENTENCE_PIECE!r} (SentencePiece) are"
        )
    tokens = _list(metadata, Key.TOKENS, str, where)
    if not tokens:
        raise UserError(f"{where}: {Key.TOKENS} is empty; the tokenizer needs it")
    first: dict[str, int] = {}
    for number, token in enumerate(tokens):
        if first.setdefault(token, number) != number:
            raise UserError(
                f"{where}: tokens {first[token]} and {number} are both {one_line(token)!r}; the "
                "file is damaged"
            )
    types = _list(metadata, Key.TOKEN_TYPES, int, where, length=len(tokens))
    byte_level = model == BYTE_LEVEL
    pre_tokenizer = _pre_tokenizer(metadata, where) if byte_level else None
    special = _special_ids(metadata, where)
    add_bos = _value(metadata, Key.ADD_BOS, bool, where)
    if add_bos is None:
        add_bos = pre_tokenizer is None or pre_tokenizer.add_bos
    add_space = _value(metadata, Key.ADD_SPACE_PREFIX, bool, where)
    template = metadata.get(Key.CHAT_TEMPLATE)
    if template is not None and not isinstance(template, str):
        raise UserError(f"{where}: {Key.CHAT_TEMPLATE} is not a text; the file is damaged")
    return Vocabulary(
        model=str(model),
        tokens=tuple(tokens),
        types=tuple(types),
        merges=_merges(metadata, tokens, byte_level, where),
        pre_tokenizer=pre_tokenizer,
        special=special,
        add_bos=add_bos and "bos" in special,
        add_space=add_space is not False,
        template=template,
    )


def read_generation(metadata: Mapping[str, Any], where: str) -> Generation:
    """Reads the special ids of a model; tokens that end a turn or a message end a text, too.

    Args:
      metadata: values by key; the tokens themselves may be missing.
      where: path of the file, for messages.

    Raises:
      UserError: names the key with an invalid id.
    """
    special = _special_ids(metadata, where)
    named = (_id(metadata, key, where) for key in (Key.EOT_ID, Key.EOM_ID))
    ends = [number for number in named if number is not None]
    tokens, types = metadata.get(Key.TOKENS), metadata.get(Key.TOKEN_TYPES)
    if not ends and isinstance(tokens, list) and isinstance(types, (list, np.ndarray)):
        # As in llama.cpp, files of an older converter are read by the texts of their tokens.
        pairs = enumerate(zip(tokens, types, strict=False))
        whole = {token: n for n, (token, kind) in pairs if kind in (CONTROL, USER_DEFINED)}
        ends = [whole[text] for text in _TURN_ENDS if text in whole]
    eos = [special["eos"]] if "eos" in special else []
    return Generation(special.get("bos"), tuple(dict.fromkeys([*eos, *ends])), special.get("pad"))


def build_tokenizer(vocabulary: Vocabulary, where: str) -> Any:
    """Builds the `transformers` tokenizer of a vocabulary.

    Args:
      vocabulary: the vocabulary.
      where: path of the file, for messages.

    Raises:
      UserError: if its parts do not fit together.
    """
    from tokenizers import AddedToken, processors
    from transformers import PreTrainedTokenizerFast

    named = {
        f"{name}_token": vocabulary.tokens[number] for name, number in vocabulary.special.items()
    }
    try:
        byte_level = vocabulary.model == BYTE_LEVEL
        backend = _byte_level(vocabulary) if byte_level else _sentence_piece(vocabulary)
        # Tokens that a text spells are found before anything else cuts it; of these, `decode` may
        # omit only the control tokens.
        for kind, special in ((CONTROL, True), (USER_DEFINED, False)):
            added = [
                AddedToken(token, normalized=False, special=special)
                for token, token_type in zip(vocabulary.tokens, vocabulary.types, strict=False)
                if token_type == kind
            ]
            (backend.add_special_tokens if special else backend.add_tokens)(added)
        if vocabulary.add_bos:
            bos = named["bos_token"]
            backend.post_processor = processors.TemplateProcessing(
                single=[bos, "$A"],
                pair=[bos, "$A", "$B"],
                special_tokens=[(bos, vocabulary.special["bos"])],
            )
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            clean_up_tokenization_spaces=False,
            model_max_length=1 << 60,  # nothing is truncated here
            **named,
        )
        tokenizer.chat_template = vocabulary.template
        tokenizer.decode(tokenizer("a")["input_ids"])
    except _FATAL:
        raise
    except BaseException as error:  # `tokenizers` raises `Exception` itself, and panics outside it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: the tokenizer cannot be built: {reason}") from error
    if len(tokenizer) != len(vocabulary.tokens):
        raise UserError(
            f"{where}: {len(vocabulary.tokens)} tokens give a vocabulary of {len(tokenizer)}; the "
            "file is damaged"
        )
    return tokenizer


def merges_of_scores(tokens: Sequence[str], scores: Sequence[float]) -> tuple[tuple[str, str], ...]:
    """Merges of a SentencePiece vocabulary, which stores the scores of their results instead.

    SentencePiece merges the neighbours whose union has the highest score. So every way to cut a
    token into two others is a merge, and merges come in the order of their results' scores. Among
    the cuts of one token those with the longer left part come first, as in `transformers`.

    Args:
      tokens: tokens by id.
      scores: score of each token.
    """
    known = set(tokens)
    cuts = [
        (-score, -place, token[:place], token[place:])
        for token, score in zip(tokens, scores, strict=True)
        for place in range(1, len(token))
        if token[:place] in known and token[place:] in known
    ]
    # Of equal scores and lengths, those of the token with the longer right part come first.
    cuts.sort(key=lambda cut: (cut[0], cut[1], -len(cut[3])))
    return tuple((left, right) for _, _, left, right in cuts)


def _byte_level(vocabulary: Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, models

    rules = vocabulary.pre_tokenizer
    assert rules is not None  # read_vocabulary sets it for this model
    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    backend = Tokenizer(models.BPE(ids, list(vocabulary.merges), ignore_merges=rules.ignore_merges))
    backend.pre_tokenizer = backend_of(rules)
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentence_piece(vocabulary: Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    ids = {token: number for number, token in enumerate(vocabulary.tokens)}
    unknown = vocabulary.special.get("unk")
    backend = Tokenizer(
        models.BPE(
            ids,
            list(vocabulary.merges),
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    # As in llama.cpp and LLaMA 2's own tokenizer: a space before every piece of text, also before
    # one that begins with a space or goes on behind a special token ("<s>[INST]").
    prefix = [normalizers.Prepend(SPACE)] if vocabulary.add_space else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.add_space:
        steps.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(steps)
    return backend


def _pre_tokenizer(metadata: Mapping[str, Any], where: str) -> PreTokenizer:
    name = _value(metadata, Key.TOKENIZER_PRE, str, where)
    name = "default" if name is None else name  # as in llama.cpp
    if name not in PRE_TOKENIZERS:
        raise UserError(
            f"{where}: {Key.TOKENIZER_PRE}={one_line(name)!r} is an unknown pre-tokenizer; valid: "
            f"{', '.join(PRE_TOKENIZERS)}"
        )
    return PRE_TOKENIZERS[name]


def _merges(
    metadata: Mapping[str, Any], tokens: Sequence[str], byte_level: bool, where: str
) -> tuple[tuple[str, str], ...]:
    """Merges as stored, or as the scores of a SentencePiece vocabulary give them."""
    if not byte_level and Key.MERGES not in metadata:
        scores = _list(metadata, Key.SCORES, float, where, length=len(tokens))
        if not scores:
            raise UserError(f"{where}: {Key.SCORES} is missing; the tokenizer needs it")
        return merges_of_scores(tokens, scores)
    merges = []
    for number, merge in enumerate(_list(metadata, Key.MERGES, str, where)):
        left, space, right = merge.partition(" ")
        if not (left and space and right):
            raise UserError(
                f"{where}: {Key.MERGES}: number {number} is {one_line(merge)!r}, not two tokens; "
                "the file is damaged"
            )
        merges.append((left, right))
    return tuple(merges)


def _special_ids(metadata: Mapping[str, Any], where: str) -> dict[str, int]:
    """Ids by name, as named by the file or, for SentencePiece, LLaMA 2's."""
    model, tokens = metadata.get(Key.TOKENIZER_MODEL), metadata.get(Key.TOKENS)
    ids = {}
    if isinstance(model, str) and model == SENTENCE_PIECE and isinstance(tokens, list):
        ids = {name: n for name, n in _SENTENCE_PIECE_IDS.items() if n < len(tokens)}
    for name, key in _SPECIAL.items():
        number = _id(metadata, key, where)
        if number is not None:
            ids[name] = number
    return ids


def _value(metadata: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A value of the metadata; None if it is missing and not needed."""
    value = metadata.get(key)
    if value is None and key == Key.TOKENIZER_MODEL:
        raise UserError(f"{where}: no tokenizer: {key} is missing")
    if value is not None and type(value) is not kind:
        raise UserError(
            f"{where}: {key}={one_line(str(value))!r} is not of type {kind.__name__}; the file is "
            "damaged"
        )
    return value


def _list(
    metadata: Mapping[str, Any], key: str, kind: type, where: str, *, length: int | None = None
) -> list[Any]:
    """A list of the metadata; empty if it is missing and not needed."""
    value = metadata.get(key)
    if value is None and key not in (Key.TOKENS, Key.MERGES):
        return []
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        what = "missing" if value is None else f"no list of type {kind.__name__}"
        raise UserError(f"{where}: {key} is {what}; the tokenizer needs it")
    if length not in (None, len(value)):
        raise UserError(
            f"{where}: {key} has {len(value)} entries for {length} tokens; the file is damaged"
        )
    return value


def _id(metadata: Mapping[str, Any], key: str, where: str) -> int | None:
    """A token id of the metadata; None if it is missing or says that there is none."""
    value = metadata.get(key)
    # Some writers store an id that is missing as -1, in a type without a sign.
    if value is None or (type(value) is int and value in (-1, (1 << 32) - 1)):
        return None
    tokens = metadata.get(Key.TOKENS)
    count = len(tokens) if isinstance(tokens, list) else 1 << 32
    if type(value) is not int or not 0 <= value < count:
        raise UserError(f"{where}: {key}={one_line(repr(value))} is not a token id")
    return value
