"""Tokenizer files of a model's directory, and the tokenizer inside a GGUF file."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import is_local
from xrec_jax.llm.io.gguf import tokenizer as gguf_tokenizer
from xrec_jax.llm.io.gguf.reader import is_gguf, read_file
from xrec_jax.llm.io.hf import Generation, read_generation, read_object, refuse_code

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
_CONFIG, _WHOLE, _PIECES = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
_FILES = (_WHOLE, _PIECES, _CONFIG, "vocab.json")
_FATAL = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


def read_tokenizer(path: epath.PathLike) -> tuple[Any, Generation]:
    """Reads the `transformers` tokenizer of a model, without downloads or custom code.

    Args:
      path: an existing local or `gs://` directory, or a GGUF file.

    Returns:
      The tokenizer, and the special ids of the model.

    Raises:
        UserError: if there is no tokenizer, one that cannot be read, or one with custom code.
    """
    if is_gguf(path):
        return _read_gguf(path)
    folder = epath.Path(path)
    if is_local(folder):
        return _read(pathlib.Path(folder), str(folder)), read_generation(folder)
    import tempfile

    with tempfile.TemporaryDirectory() as copy:
        copy_tokenizer(folder, copy)
        return _read(pathlib.Path(copy), str(folder)), read_generation(folder)


def copy_tokenizer(source: epath.PathLike, folder: epath.PathLike) -> None:
    """Copies the tokenizer of a model into a directory.

    Args:
      source: a directory, whose tokenizer files are copied as they are; or a GGUF file, whose
        tokenizer is written as such files.
      folder: the existing directory; local for a GGUF file.

    Raises:
      UserError: if the GGUF file holds no tokenizer that can be read.
    """
    if is_gguf(source):
        tokenizer, _ = _read_gguf(source)
        tokenizer.save_pretrained(os.fspath(folder))
        return
    for name in TOKENIZER_FILES:
        if (epath.Path(source) / name).exists():
            (epath.Path(folder) / name).write_bytes((epath.Path(source) / name).read_bytes())


def quiet_transformers() -> None:
    """Silences the advice of `transformers` to install PyTorch; call before its first import."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _read_gguf(path: epath.PathLike) -> tuple[Any, Generation]:
    metadata = read_file(path).metadata
    vocabulary = gguf_tokenizer.read_vocabulary(metadata, str(path))
    quiet_transformers()
    tokenizer = gguf_tokenizer.build_tokenizer(vocabulary, str(path))
    return tokenizer, gguf_tokenizer.read_generation(metadata, str(path))


def _read(folder: pathlib.Path, where: str) -> Any:
    if not any((folder / name).is_file() for name in _FILES):
        raise UserError(f"{where}: no tokenizer: none of {', '.join(_FILES)} is there")
    content = {}
    for name in ("config.json", _CONFIG):
        if (folder / name).is_file():
            content = read_object(folder / name)
            refuse_code(content, f"{where}/{name}")
    pieces_only = (folder / _PIECES).is_file() and not (folder / _WHOLE).is_file()
    if pieces_only:
        _check_pieces(folder / _PIECES, where)
    quiet_transformers()
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    # For this class some versions of transformers convert a byte-level file into another tokenizer.
    llama = str(content.get("tokenizer_class")).startswith("LlamaTokenizer")
    plain = llama and not pieces_only and _is_byte_level(folder / _WHOLE)
    kind: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # real problems raise
    try:
        options = {} if plain else {"trust_remote_code": False}
        tokenizer = kind.from_pretrained(str(folder), local_files_only=True, **options)
        tokenizer.model_max_length = (
            1 << 60
        )  # nothing is truncated here, and files hold arbitrary values
        if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            # BPE dropout is for training; here a text has one encoding.
            tokenizer.backend_tokenizer.model.dropout = None
        tokenizer.decode(tokenizer("a")["input_ids"])
        return tokenizer
    except _FATAL:
        raise
    except (
        BaseException
    ) as error:  # `tokenizers` raises `Exception` itself, and panics outside of it
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"{where}: the tokenizer cannot be read: {reason}") from error
    finally:
        logging.set_verbosity(loud)


def _check_pieces(file: pathlib.Path, where: str) -> None:
    """Refuses a directory with only `tokenizer.model` if the package that reads it is missing."""
    with file.open("rb") as opened:
        first = opened.read(1)
    # A sentencepiece model begins with the tag of its first piece; tiktoken's file is text.
    package = "sentencepiece" if first == b"\n" else "tiktoken"
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"{where}: its only tokenizer is {_PIECES}, a {package} file; pip install {package}, "
            f"or save it with transformers where that is installed, which writes {_WHOLE}"
        )


def _is_byte_level(file: pathlib.Path) -> bool:
    """True if a `tokenizer.json` is byte-level, as Llama 3's, unlike LLaMA 2's."""
    try:
        content = json.loads(file.read_bytes())
        text = json.dumps([content.get(key) for key in ("pre_tokenizer", "decoder")])
    except (OSError, ValueError, AttributeError, RecursionError):
        return False  # the next reader reports the fault
    return '"ByteLevel"' in text
