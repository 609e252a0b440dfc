"""Writer of Hugging Face LLaMA directories, tensor by tensor and atomic."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator

import jax
import numpy as np
from etils import epath

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage.disk import writing
from xrec_jax.core.storage.files import is_local, remove_leftovers, temporary_sibling, write_json
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.io import tensorfile
from xrec_jax.llm.io.hf import DTYPES, Generation, silent
from xrec_jax.llm.io.tokenizer_files import copy_tokenizer
from xrec_jax.llm.io.weightfiles import INDEX, SINGLE
from xrec_jax.llm.model.config import LlamaConfig, to_hf
from xrec_jax.llm.model.layout import Parameter, Source, at, parameters
from xrec_jax.llm.model.lora import Adapter
from xrec_jax.parallel.mesh import gather

MAX_SHARD_BYTES = 5_000_000_000


@dataclasses.dataclass(frozen=True)
class Tree:
    """`Source` for a parameter tree of host or device arrays."""

    params: PyTree

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Gathers a parameter, or one layer of a stacked one, from all devices."""
        leaf = at(self.params, parameter)
        if layer is not None:
            leaf = _row(leaf, layer) if isinstance(leaf, jax.Array) else leaf[layer]
        return gather(leaf)


@dataclasses.dataclass(frozen=True)
class Merged:
    """`Source` for a base with an adapter merged in float32, one matrix at a time."""

    base: Source
    adapter: Adapter

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Reads a tensor of the base, in float32 if the adapter changes it."""
        tensor = self.base.tensor(parameter, layer)
        if parameter.path[-1] != "kernel":
            return tensor
        _, group, target, _ = parameter.path
        pair = self.adapter.params["layers"].get(group, {}).get(target)
        if pair is None:
            return tensor
        a, b = (np.asarray(gather(pair[side][layer]), np.float32) for side in "ab")
        return tensor.astype(np.float32) + np.float32(self.adapter.config.scale) * (a @ b)


def save_params(
    path: str | pathlib.Path,
    params: PyTree,
    config: LlamaConfig,
    *,
    dtype: str = "float32",
    generation: Generation | None = None,
    tokenizer_dir: str | pathlib.Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes parameters as a Hugging Face directory; see `save_model`.

    Args:
      path: see `save_model`.
      params: parameter tree in the layout of `llm.layout`, on the host or on devices.
      config: see `save_model`.
      dtype: see `save_model`.
      generation: see `save_model`.
      tokenizer_dir: see `save_model`.
      max_shard_bytes: see `save_model`.
    """
    save_model(
        path,
        Tree(params),
        config,
        dtype=dtype,
        generation=generation,
        tokenizer_dir=tokenizer_dir,
        max_shard_bytes=max_shard_bytes,
    )


def save_model(
    path: str | pathlib.Path,
    source: Source,
    config: LlamaConfig,
    *,
    dtype: str = "float32",
    generation: Generation | None = None,
    tokenizer_dir: str | pathlib.Path | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    advance: Callable[[int], None] = silent,
) -> None:
    """Writes a model as a Hugging Face directory, holding one tensor at a time.

    All processes call it; the primary one writes.

    Args:
      path: output directory; must not exist, or be empty.
      source: source of the arrays.
      config: shape of the model.
      dtype: dtype of the files, a key of `hf.DTYPES`.
      generation: special ids for `config.json` and `generation_config.json`.
      tokenizer_dir: directory or GGUF file to copy the tokenizer from; None for none.
      max_shard_bytes: size limit of a file, exceeded only by a single larger tensor.
      advance: progress callback, called with the number of bytes written.

    Raises:
      UserError: if the directory is not empty or cannot be written, or the dtype is unknown.
    """
    numpy_dtype = dtype_of(dtype)
    generation = generation or Generation()
    # The shards are planned from shapes alone: their number is part of the file names.
    shards = _shards(config, numpy_dtype, max_shard_bytes)
    with new_directory(path) as folder:
        weights: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = SINGLE
            if len(shards) > 1:
                name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            shapes = [(hf, parameter.hf_shape) for parameter, _, hf in shard]
            with contextlib.ExitStack() as stack:
                writer = None
                if is_primary():
                    file = tensorfile.Writer(folder / name, shapes, numpy_dtype)
                    writer = stack.enter_context(file)
                # All processes take part in gathering a tensor; only the primary writes it.
                for parameter, layer, hf in shard:
                    tensor = source.tensor(parameter, layer)
                    weights[hf] = name
                    if writer is not None:
                        writer.append(tensor.T if parameter.transposed else tensor)
                    advance(math.prod(parameter.hf_shape) * numpy_dtype.itemsize)
        if is_primary():
            if len(shards) > 1:
                total = config.num_parameters * numpy_dtype.itemsize
                index = {"metadata": {"total_size": total}, "weight_map": weights}
                write_json(folder / INDEX, index)
            write_descriptions(folder, config, dtype, generation)
            if tokenizer_dir is not None:
                copy_tokenizer(tokenizer_dir, folder)
    barrier(str(path))


def write_descriptions(
    folder: epath.Path | pathlib.Path, config: LlamaConfig, dtype: str, generation: Generation
) -> None:
    """Writes `config.json` and `generation_config.json`."""
    ids = generation.to_hf()
    write_json(folder / "config.json", to_hf(config, dtype=dtype, **ids))
    write_json(folder / "generation_config.json", ids)


def dtype_of(name: str) -> np.dtype:
    """Returns the dtype of a name.

    Raises:
      UserError: if it is not a key of `hf.DTYPES`.
    """
    if name not in DTYPES:
        raise UserError(f"dtype {name!r} is not supported{did_you_mean(name, DTYPES)}")
    return DTYPES[name]


def check_new(path: str | pathlib.Path) -> pathlib.Path:
    """Checks that a path is local and free for a new directory; returns it absolute.

    Raises:
      UserError: if it is remote, a file, or a directory that is not empty.
    """
    if not is_local(path):
        raise UserError(f"{path}: the output must be on a local disk")
    path = pathlib.Path(os.path.abspath(path))
    if path.exists() and not path.is_dir():
        raise UserError(f"{path}: is a file; give a new directory")
    if path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path}: is not empty; give a new directory, nothing is overwritten")
    return path


@contextlib.contextmanager
def new_directory(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary directory that becomes `path` if the block succeeds, and else is removed.

    The primary process checks `path` and writes; call `barrier` after the block before another
    process reads.

    Raises:
      UserError: if `path` is not free or cannot be written.
    """
    if not is_primary():
        yield pathlib.Path(path)
        return
    final = check_new(path)
    remove_leftovers(final)
    temporary = temporary_sibling(final)
    missing = [parent for parent in final.parents if not parent.exists()]
    try:
        with writing(final):
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, final)  # onto an empty directory is fine
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:  # of a failed block; on success they are not empty
            with contextlib.suppress(OSError):
                parent.rmdir()


def _shards(
    config: LlamaConfig, dtype: np.dtype, limit: int
) -> list[list[tuple[Parameter, int | None, str]]]:
    """Assigns the tensors to files, layer after layer."""
    flat = [(p, layer, name) for p in parameters(config) for layer, name in p.hf_names()]

    def depth(item: tuple[Parameter, int | None, str]) -> int:
        parameter, layer, _ = item
        if layer is not None:
            return layer
        return -1 if parameter.path[0] == "embed" else config.num_layers

    flat.sort(key=depth)
    shards: list[list[tuple[Parameter, int | None, str]]] = [[]]
    size = 0
    for item in flat:
        count = math.prod(item[0].hf_shape) * dtype.itemsize
        if shards[-1] and size + count > limit:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += count
    return shards


@jax.jit
def _row(array: jax.Array, layer: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
