"""Reader of the tokenizer files in a model's directory."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import is_local
from xrec_jax.llm.io.hf import read_object, refuse_code

_CONFIG, _WHOLE, _PIECES = "tokenizer_config.json", "tokenizer.json", "tokenizer.model"
_FILES = (_WHOLE, _PIECES, _CONFIG, "vocab.json")
_FATAL = (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)


def read_tokenizer(folder: epath.Path) -> Any:
    """Reads the `transformers` tokenizer of a directory, without downloads or custom code.

    Args:
      folder: an existing local or `gs://` directory.

    Raises:
        UserError: if it holds no tokenizer, one that cannot be read, or one with custom code.
    """
    if is_local(folder):
        return _read(pathlib.Path(folder), str(folder))
    import tempfile

    from xrec_jax.llm.io.hf_export import copy_tokenizer

    with tempfile.TemporaryDirectory() as copy:
        copy_tokenizer(folder, copy)
        return _read(pathlib.Path(copy), str(folder))


def quiet_transformers() -> None:
    """Silences the advice of `transformers` to install PyTorch; call before its first import."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


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
