"""Imported checkpoints: a LLaMA as Orbax arrays, restorable on any mesh.

    DIR/
      config.json, generation_config.json, tokenizer files   as in a Hugging Face directory
      params/{embed,final_norm,head}                          Orbax, one checkpoint each
      params/layers/{0000,0001,...}                           Orbax, one checkpoint a layer
      xrec.json                                               written last: marks completeness

Layers are stored separately so that neither writing nor reading holds more than one of them on the
host; the model's stacked arrays are filled layer by layer on the devices.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from orbax.checkpoint import v1 as ocp

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files
from xrec_jax.core.storage.checksums import tree_checksums
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.io import hf, hub
from xrec_jax.llm.io.gguf.model import open_model as open_gguf
from xrec_jax.llm.io.gguf.reader import SUFFIX, is_gguf
from xrec_jax.llm.io.hf import Generation, HfModel, read_generation, read_object, silent
from xrec_jax.llm.io.hf_export import dtype_of, new_directory, write_descriptions
from xrec_jax.llm.io.tokenizer_files import copy_tokenizer
from xrec_jax.llm.io.weightfiles import INDEX, SINGLE
from xrec_jax.llm.model.config import LlamaConfig, from_hf
from xrec_jax.llm.model.layout import Parameter, abstract, at, check_shardings, parameters

FORMAT = 1
MARK = "xrec.json"
KIND = "llama"


@dataclasses.dataclass(frozen=True)
class ImportedModel:
    """An imported checkpoint.

    Attributes:
      path: directory, local or `gs://`.
      config: shape of the model.
      generation: special token ids.
      dtype: dtype of the stored arrays.
      digest: fingerprint of the source; of source and dtype if the import changed the dtype.
      sums: checksums of the arrays in each folder; empty in imports of earlier versions.
    """

    path: epath.Path
    config: LlamaConfig
    generation: Generation
    dtype: str
    digest: str
    sums: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    _last: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Reads a parameter, or one layer of a stacked one; the last layer read is cached."""
        folder = _folder(self.path, parameter.path[0], layer)
        if folder not in self._last:
            self._last.clear()
            self._last[folder] = self._group(parameter.path[0], layer, None)
        return np.asarray(at({parameter.path[0]: self._last[folder]}, parameter))

    def fingerprint(self, advance: Callable[[int], None] = silent) -> str:
        """Digest computed at the import; nothing is read."""
        del advance
        return self.digest

    def load_params(
        self,
        *,
        dtype: DTypeLike | None = None,
        shardings: PyTree = None,
        advance: Callable[[int], None] = silent,
    ) -> dict[str, Any]:
        """Restores all parameters.

        Args:
          dtype: dtype of the result; default: as stored.
          shardings: tree of shardings on any mesh; None for NumPy arrays.
          advance: progress callback, called with the number of bytes read.

        Raises:
          UserError: names the damaged folder, or the parameter that cannot be split.
        """
        dtype = np.dtype(dtype or dtype_of(self.dtype))
        if shardings is not None:
            check_shardings(self.config, shardings)
        shapes = abstract(self.config, dtype)
        params: dict[str, Any] = {}
        for key, shape in shapes.items():
            split = None if shardings is None else shardings[key]
            if key == "layers":
                params[key] = self._layers(shape, split, advance)
                continue
            params[key] = self._group(key, None, self._stored(shape, split))
            params[key] = _cast(params[key], dtype)
            advance(_bytes(params[key]))
        return params

    def _layers(self, shape: PyTree, shardings: PyTree, advance: Callable[[int], None]) -> PyTree:
        """Fills the stacked layers one by one."""
        layer_shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), shape)
        if shardings is None:
            stacked = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shape)
        else:
            split = jax.tree.map(_without_layers, shardings)
            # On devices the stack is allocated sharded, and each layer is inserted in place
            # (donated).
            zeros = jax.jit(
                lambda: jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), shape),
                out_shardings=shardings,
            )
            stacked = zeros()
            insert = jax.jit(_insert, donate_argnums=0, out_shardings=shardings)
        for layer in range(self.config.num_layers):
            if shardings is None:
                for leaf, value in zip(
                    jax.tree.leaves(stacked),
                    jax.tree.leaves(self._group("layers", layer, self._stored(layer_shapes, None))),
                    strict=True,
                ):
                    leaf[layer] = value
            else:
                loaded = self._group("layers", layer, self._stored(layer_shapes, split))
                stacked = jax.block_until_ready(insert(stacked, loaded, layer))
            advance(_bytes(layer_shapes))
        return stacked

    def _group(self, key: str, layer: int | None, target: PyTree) -> PyTree:
        """Loads the arrays of one folder and verifies their checksums."""
        folder = _folder(self.path, key, layer)
        loaded = _load(folder, target)
        expected = self.sums.get(_folder_name(key, layer), {})
        if not isinstance(expected, dict):
            raise UserError(f"{self.path / MARK}: checksums are damaged; import the model again")
        now = tree_checksums(loaded) if expected else {}
        for name, checksum in now.items():
            if list(checksum) != expected.get(name):
                raise UserError(
                    f"{folder}: {name} is damaged: its values are not those that were imported; "
                    "import the model again"
                )
        return loaded

    def _stored(self, shape: PyTree, shardings: PyTree) -> PyTree:
        """Abstract arrays for Orbax: stored dtype, requested shardings."""
        dtype = dtype_of(self.dtype)
        if shardings is None:
            return jax.tree.map(lambda x: np.empty(x.shape, dtype), shape)
        return jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, dtype, sharding=s), shape, shardings
        )


def import_model(
    source: HfModel,
    path: str | pathlib.Path,
    *,
    dtype: str | None = None,
    advance: Callable[[int], None] = silent,
) -> None:
    """Writes an opened model as an imported checkpoint, in one process.

    Args:
      source: the model.
      path: the new directory; it appears once everything is written.
      dtype: dtype of the stored arrays, a key of `hf.DTYPES`; default: the source's.
      advance: progress callback, called with the number of bytes read from the source; every byte
        is read twice, once for the digest.

    Raises:
      UserError: if the directory is not empty or cannot be written, or the dtype is unknown.
    """
    if jax.process_count() > 1:
        raise UserError("import runs in one process; start it on one host only")
    name = dtype or source.dtype
    numpy_dtype = dtype_of(name)
    with new_directory(path) as folder:
        sums: dict[str, Any] = {}
        # One Orbax checkpoint at a time: the host holds no more than one layer.
        for key, layer in _groups(source.config):
            tree: dict[str, Any] = {}
            for parameter in parameters(source.config):
                if parameter.path[0] != key:
                    continue
                node = tree
                for step in parameter.path[1:-1]:
                    node = node.setdefault(step, {})
                value = source.tensor(parameter, layer)
                advance(value.nbytes)
                node[parameter.path[-1]] = value.astype(numpy_dtype, copy=False)
            sums[_folder_name(key, layer)] = tree_checksums(tree)
            ocp.save(_folder(epath.Path(folder), key, layer), tree)
        # Descriptions, tokenizer, and last the mark that makes the import valid.
        write_descriptions(folder, source.config, name, source.generation)
        copy_tokenizer(source.path, folder)
        digest = source.fingerprint(advance)
        changed = name if any(_name(t.dtype) != name for t in source.tensors.values()) else ""
        mark = {
            "format": FORMAT,
            "kind": KIND,
            "dtype": name,
            "source": source.path.resolve().name,
            "source_fingerprint": digest,
            "fingerprint": _combined(digest, changed),
            "parameters": {p.name: list(p.shape) for p in parameters(source.config)},
            "checksums": sums,
        }
        files.write_json(folder / MARK, mark)


def open_imported(path: str | pathlib.Path) -> ImportedModel:
    """Opens an imported checkpoint.

    Raises:
      UserError: if it is incomplete, of another format version, or does not match its
        `config.json`.
    """
    folder = files.absolute(path)
    mark = read_object(folder / MARK)
    if mark.get("kind") != KIND or mark.get("format") != FORMAT:
        raise UserError(
            f"{folder / MARK}: kind {mark.get('kind')!r}, format {mark.get('format')!r} is not "
            f"known; this version reads {KIND!r}, {FORMAT}; import the model again"
        )
    config = from_hf(read_object(folder / "config.json"), where=str(folder / "config.json"))
    stored = mark.get("parameters")
    for parameter in parameters(config):
        shape = stored.get(parameter.name) if isinstance(stored, dict) else None
        if shape != list(parameter.shape):
            raise UserError(
                f"{folder}: {parameter.name} is stored with shape {shape}; config.json asks for "
                f"{list(parameter.shape)}"
            )
    if not isinstance(mark.get("dtype"), str) or mark["dtype"] not in hf.DTYPES:
        raise UserError(f"{folder / MARK}: dtype {mark.get('dtype')!r} is not known")
    digest = str(mark.get("fingerprint"))
    sums = mark.get("checksums", {})
    if not isinstance(sums, dict):
        raise UserError(f"{folder / MARK}: checksums are damaged; import the model again")
    return ImportedModel(folder, config, read_generation(folder), mark["dtype"], digest, sums)


def open_model(path: epath.PathLike) -> HfModel | ImportedModel:
    """Opens a Hugging Face directory, a GGUF file or an imported checkpoint.

    Args:
      path: a local path or a name; see `hub.resolve`.

    Raises:
      UserError: if it is none of these, or damaged; names the expected files.
    """
    path = hub.resolve(path)
    if is_gguf(path):
        return open_gguf(path)
    hf.check_directory(path)
    folder = epath.Path(path)
    if (folder / MARK).exists():
        return open_imported(path)
    if (folder / "params").is_dir():
        raise UserError(f"{path}: an import that did not finish ({MARK} is missing); import again")
    weights = [name for name in (SINGLE, INDEX) if (folder / name).exists()]
    if not weights and not (folder / "config.json").exists():
        ggufs = sorted(str(file) for file in folder.glob(f"*{SUFFIX}"))
        hint = f"; give the GGUF file itself: {ggufs[0]}" if ggufs else ""
        raise UserError(
            f"{path}: no language model: neither {MARK} (imported checkpoint) nor config.json with "
            f"{SINGLE} or {INDEX} (Hugging Face) is there{hint}"
        )
    return hf.open_model(path)


def restore_params(
    path: str | pathlib.Path,
    *,
    config: LlamaConfig | None = None,
    dtype: DTypeLike | None = None,
    shardings: PyTree = None,
) -> dict[str, Any]:
    """Restores the parameters of an imported checkpoint onto any mesh.

    Args:
      path: directory of the checkpoint.
      config: expected shape of the model; None to accept any.
      dtype: dtype of the result; default: as stored.
      shardings: tree of shardings; None for NumPy arrays.

    Raises:
      UserError: if the stored model has another shape, or the checkpoint is damaged.
    """
    model = open_imported(path)
    if config is not None:
        expected, stored = (
            {p.name: p.shape for p in parameters(c)} for c in (config, model.config)
        )
        for name in dict.fromkeys([*expected, *stored]):
            if expected.get(name) != stored.get(name):
                raise UserError(
                    f"{path}: {name} has shape {stored.get(name, 'none')} there but "
                    f"{expected.get(name, 'none')} in the configured model"
                )
    return model.load_params(dtype=dtype, shardings=shardings)


def _groups(config: LlamaConfig) -> list[tuple[str, int | None]]:
    """Contents of each Orbax checkpoint: a key of the root, or one layer."""
    keys = dict.fromkeys(p.path[0] for p in parameters(config))
    return [
        (key, layer)
        for key in keys
        for layer in (range(config.num_layers) if key == "layers" else [None])
    ]


def _folder(path: epath.Path, key: str, layer: int | None) -> epath.Path:
    return path / "params" / _folder_name(key, layer)


def _folder_name(key: str, layer: int | None) -> str:
    return key if layer is None else f"{key}/{layer:04d}"


def _load(folder: epath.Path, wanted: PyTree) -> PyTree:
    try:
        return ocp.load(folder, wanted)
    except (ValueError, KeyError, OSError, ocp.errors.InvalidLayoutError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{folder}: damaged ({reason}); import the model again") from error


def _cast(tree: PyTree, dtype: np.dtype) -> PyTree:
    if all(leaf.dtype == dtype for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _insert(stacked: PyTree, loaded: PyTree, layer: int | jax.Array) -> PyTree:
    def insert(array: jax.Array, value: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(array, value.astype(array.dtype), layer, 0)

    return jax.tree.map(insert, stacked, loaded)


def _without_layers(split: Any) -> Any:
    """Sharding of one layer of a stacked array."""
    if isinstance(split, NamedSharding):
        return NamedSharding(split.mesh, PartitionSpec(*split.spec[1:]))
    return split


def _bytes(tree: PyTree) -> int:
    return sum(int(np.prod(x.shape)) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def _name(stored: str) -> str:
    return {"BF16": "bfloat16", "F32": "float32"}.get(stored, stored)


def _combined(digest: str, changed: str) -> str:
    return hashlib.sha256(f"{digest}:{changed}".encode()).hexdigest() if changed else digest
