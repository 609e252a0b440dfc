"""Weight files of a Hugging Face directory, and the names of a LLaMA's tensors in them.

A parameter may have several names: without the prefix `model.` if the bare model was saved, or
under the head's name if both tables are tied. No stored tensor is ignored silently, and no missing
one is initialised.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import read_json
from xrec_jax.llm.io import tensorfile
from xrec_jax.llm.io.tensorfile import Tensor
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layout import parameters

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_LONGEST_NAME = 200  # of a file; file systems allow 255 bytes
_COMPUTED = "rotary_emb.inv_freq"  # stored in older files; follows from the configuration
# Tensors that GPTQ, AWQ, bitsandbytes, FP8 and compressed-tensors store with or for a kernel.
_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|quant_state\..*|nested_absmax|"
    r"nested_quant_map|weight_(scale|scale_inv|packed|shape|zero_point)|input_scale)$"
)
_ADVICE = "give the unquantised model; quantization='int8' or 'nf4' quantises it here"


def check_unquantized(content: Mapping[str, Any], where: str) -> None:
    """Refuses a `config.json` of quantised weights.

    Raises:
      UserError: names the quantisation method.
    """
    quantization = content.get("quantization_config")
    if not quantization:
        return
    method = (
        quantization.get("quant_method", "of an unknown kind")
        if isinstance(quantization, dict)
        else quantization
    )
    raise UserError(
        f"{where}: quantization_config: the weights are quantised ({str(method)[:40]!r}), which "
        f"cannot be read; {_ADVICE}"
    )


def open_weights(path: pathlib.Path, config: LlamaConfig) -> tuple[LlamaConfig, dict[str, Tensor]]:
    """Finds all tensors of a model, by Hugging Face's standard names, and checks dtypes and shapes.

    Returns:
      The configuration, untied if two different tables are stored, and the tensors by name.

    Raises:
      UserError: names the file and the tensor that is missing, unknown, repeated or of a wrong
        shape or dtype.
    """
    stored = _by_usual_name(_stored(path))
    where = path / (SINGLE if (path / SINGLE).is_file() else INDEX)
    tied = config.tie_embeddings
    # One tied table may be stored under the head's name alone.
    if tied and HEAD in stored and EMBEDDING not in stored:
        stored[EMBEDDING] = stored.pop(HEAD)
    untied = dataclasses.replace(config, tie_embeddings=False)
    tensors = _expected(where, stored, untied if tied and HEAD in stored else config)
    if tied and HEAD in tensors:
        # The tables were trained separately: transformers uses the stored head, too.
        if not _equal(tensors[EMBEDDING], tensors[HEAD]):
            return untied, tensors
        del tensors[HEAD]
    return config, tensors


def _stored(path: pathlib.Path) -> dict[str, Tensor]:
    """All tensors of the directory by stored name; a single file takes precedence over an index."""
    if (path / SINGLE).is_file():
        return tensorfile.read_header(path / SINGLE)
    stored: dict[str, Tensor] = {}
    index = _index(path)
    for file in sorted(set(index.values())):
        header = tensorfile.read_header(path / file)
        for name, tensor in header.items():
            if index.get(name, file) != file:
                raise UserError(
                    f"{path / file}: it holds tensor {name!r}, which {INDEX} finds in "
                    f"{index[name]}; remove what is stale"
                )
            stored[name] = tensor
        for name in (name for name, its in index.items() if its == file):
            if name not in header:
                raise UserError(
                    f"{path / file}: tensor {name!r} is missing, though {INDEX} names it"
                )
    return stored


def _index(path: pathlib.Path) -> dict[str, str]:
    """Reads the index: file name of every tensor."""
    if not (path / INDEX).is_file():
        names = sorted(p.name for p in path.iterdir() if p.suffix in (".bin", ".pth", ".gguf"))
        gguf = [name for name in names if name.endswith(".gguf")]
        hint = f"; {names[0]} must be converted to safetensors first" if names else ""
        if gguf:
            hint = f"; give the GGUF file itself: {path / gguf[0]}"
        raise UserError(f"{path}: neither {SINGLE} nor {INDEX} is there{hint}")
    content = read_json(path / INDEX)
    weights = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{path / INDEX}: weight_map is missing or empty")
    for name, file in weights.items():
        plain = isinstance(file, str) and pathlib.PurePath(file).name == file
        if not plain or not 0 < len(file) <= _LONGEST_NAME:
            raise UserError(
                f"{path / INDEX}: tensor {name[:80]!r} lies in {str(file)[:80]!r}, no file name"
            )
        if not (path / file).is_file():
            raise UserError(
                f"{path / INDEX}: it names {file!r} for tensor {name!r}, which is absent"
            )
    return weights


def _by_usual_name(stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a bare or a full model to the names of a full model."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if _QUANTIZED.search(name):
            raise UserError(
                f"{tensor.file}: tensor {name!r} belongs to quantised weights, which cannot be "
                f"read; {_ADVICE}"
            )
        bare = name
        while bare.startswith("model."):
            bare = bare.removeprefix("model.")
        is_bare = bare.startswith(("embed_tokens.", "layers.", "norm."))
        usual = f"model.{bare}" if is_bare else bare
        if usual in renamed:
            raise UserError(
                f"{tensor.file}: tensors {renamed[usual].name!r} and {name!r} are one parameter; "
                "remove one of them"
            )
        renamed[usual] = tensor
    return renamed


def _expected(
    where: pathlib.Path, stored: Mapping[str, Tensor], config: LlamaConfig
) -> dict[str, Tensor]:
    """Selects and checks the tensors of the model; refuses unknown ones."""
    tensors: dict[str, Tensor] = {}
    for parameter in parameters(config):
        for _, name in parameter.hf_names():
            if name not in stored:
                stale = where.name == SINGLE and (where.parent / INDEX).is_file()
                hint = f"; {INDEX} beside it names other files: remove what is stale"
                raise UserError(f"{where}: tensor {name!r} is missing{hint if stale else ''}")
            tensors[name] = stored[name]
            _check(stored[name], parameter.hf_shape)
    for name, tensor in stored.items():
        if name not in tensors and _COMPUTED not in name:
            raise UserError(
                f"{tensor.file}: tensor {tensor.name!r} is none of a LLaMA's with "
                f"{config.num_layers} layers; the model would not be the one that was stored"
            )
    return tensors


def _check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tensor.dtype not in tensorfile.DTYPES:
        what = "that of quantised weights" if tensor.dtype[:2] in ("I8", "U8", "F8", "I3") else ""
        raise UserError(
            f"{tensor.file}: tensor {tensor.name!r} has dtype {tensor.dtype!r}, "
            f"{what + ' and ' if what else 'which is '}not supported; valid: "
            f"{', '.join(tensorfile.DTYPES)}{'; ' + _ADVICE if what else ''}"
        )
    if tensor.shape != shape:
        raise UserError(
            f"{tensor.file}: tensor {tensor.name!r} has shape {list(tensor.shape)}; config.json "
            f"asks for {list(shape)}"
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    """True if two tensors of one shape hold the same numbers; stops at the first difference."""
    for start, rows in a.chunks(0, a.shape[0]):
        others = np.concatenate([chunk for _, chunk in b.chunks(start, start + len(rows))])
        if not np.array_equal(rows.astype(np.float64), others.astype(np.float64)):
            return False
    return True
