"""Reader of Hugging Face LLaMA directories: checks every tensor first, then reads slices."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import ml_dtypes
import numpy as np
from etils import epath
from jax.typing import DTypeLike

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage.files import check_scheme, is_local, read_json
from xrec_jax.core.trees import PyTree
from xrec_jax.llm.io.weightfiles import INDEX, SINGLE, check_unquantized, open_weights
from xrec_jax.llm.model.config import LlamaConfig, from_hf
from xrec_jax.llm.model.layout import Parameter, at, build, check_shardings

DTYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}
ADAPTER = "adapter_config.json"
_HASH_CHUNK = 1 << 22


def silent(count: int) -> None:
    """Progress callback that does nothing."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """Special token ids of a model.

    Attributes:
      bos_id: begin-of-text token; None if the model has none.
      eos_ids: end-of-text tokens.
      pad_id: padding token; None if the model has none.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def to_hf(self) -> dict[str, Any]:
        """Keys of a `generation_config.json`; several end-of-text ids are a list."""
        eos = list(self.eos_ids) if len(self.eos_ids) > 1 else next(iter(self.eos_ids), None)
        ids = {"bos_token_id": self.bos_id, "eos_token_id": eos, "pad_token_id": self.pad_id}
        return {key: value for key, value in ids.items() if value is not None}


class StoredTensor(Protocol):
    """A tensor in a file; see `tensorfile.Tensor`, which is one of a safetensors file."""

    @property
    def file(self) -> pathlib.Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def array_dtype(self) -> np.dtype: ...

    def chunks(self, start: int, stop: int) -> Iterator[tuple[int, np.ndarray]]:
        """Reads rows in chunks."""
        ...


@dataclasses.dataclass(frozen=True)
class HfModel:
    """A Hugging Face directory with complete files.

    Attributes:
      path: the directory.
      config: shape of the model.
      generation: special token ids.
      dtype: "bfloat16" if all weights are stored so, else "float32".
      tensors: all tensors of the model, by Hugging Face's name.
    """

    path: pathlib.Path
    config: LlamaConfig
    generation: Generation
    dtype: str
    tensors: Mapping[str, StoredTensor]

    def tensor(self, parameter: Parameter, layer: int | None) -> np.ndarray:
        """Reads a parameter, or one layer of a stacked one, in our layout and the stored dtype."""
        tensor = self.tensors[parameter.hf.format(layer=layer)]
        shape = parameter.hf_shape[::-1] if parameter.transposed else parameter.hf_shape
        out = np.empty(shape, tensor.array_dtype)
        _fill(out, tensor, tuple(slice(0, size) for size in shape), parameter.transposed)
        return out

    def part(self, parameter: Parameter, index: tuple[slice, ...], dtype: DTypeLike) -> np.ndarray:
        """Reads a slice of a parameter's array; only its bytes are read (whole rows of a file).

        Args:
          parameter: the parameter.
          index: one slice for each dimension of `parameter.shape`.
          dtype: dtype of the result.
        """
        slices = tuple(
            slice(*s.indices(n)[:2]) for s, n in zip(index, parameter.shape, strict=True)
        )
        out = np.empty([s.stop - s.start for s in slices], dtype)
        if parameter.layers is None:
            _fill(out, self.tensors[parameter.hf], slices, parameter.transposed)
            return out
        for row, layer in enumerate(range(slices[0].start, slices[0].stop)):
            tensor = self.tensors[parameter.hf.format(layer=layer)]
            _fill(out[row], tensor, slices[1:], parameter.transposed)
        return out

    def load_params(
        self,
        *,
        dtype: DTypeLike | None = None,
        shardings: PyTree = None,
        advance: Callable[[int], None] = silent,
    ) -> dict[str, Any]:
        """Reads all parameters; see the function of the same name."""
        dtype = np.dtype(dtype or DTYPES[self.dtype])
        if shardings is not None:
            check_shardings(self.config, shardings)

        def load(parameter: Parameter) -> np.ndarray | jax.Array:
            full = tuple(slice(None) for _ in parameter.shape)
            advance(math.prod(parameter.shape) * dtype.itemsize)
            if shardings is None:
                return self.part(parameter, full, dtype)
            read: dict[str, np.ndarray] = {}

            def shard(index: Any) -> np.ndarray:
                if str(index) not in read:  # replicas share a slice
                    read[str(index)] = self.part(parameter, index, dtype)
                return read[str(index)]

            split = at(shardings, parameter)
            array = jax.make_array_from_callback(parameter.shape, split, shard)
            return array.block_until_ready()  # or host copies of several parameters pile up

        return build(self.config, load)

    def fingerprint(self, advance: Callable[[int], None] = silent) -> str:
        """Digest of the weight files; `advance` is called with the number of bytes read."""
        digest = hashlib.sha256()
        buffer = memoryview(bytearray(_HASH_CHUNK))
        for path in sorted({tensor.file for tensor in self.tensors.values()}):
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    digest.update(buffer[:count])
                    advance(count)
        return digest.hexdigest()

    @property
    def file_bytes(self) -> int:
        """Size of all weight files."""
        return sum(path.stat().st_size for path in {t.file for t in self.tensors.values()})


def open_model(path: str | pathlib.Path, *, config: LlamaConfig | None = None) -> HfModel:
    """Opens a Hugging Face directory and checks presence and shape of every tensor.

    Args:
      path: a local directory with `config.json` and `model.safetensors`, or with
        `model.safetensors.index.json` and the files that it names.
      config: shape of the model; default: from `config.json`.

    Raises:
        UserError: names the file and the faulty tensor or key.
    """
    path = _directory(path)
    content = read_object(path / "config.json")
    refuse_code(content, str(path / "config.json"))
    check_unquantized(content, str(path / "config.json"))
    if config is None:
        config = from_hf(content, where=str(path / "config.json"))
    config, tensors = open_weights(path, config)
    narrow = all(tensor.dtype == "BF16" for tensor in tensors.values())
    dtype = "bfloat16" if narrow else "float32"
    return HfModel(path, config, read_generation(path), dtype, tensors)


def load_params(
    path: str | pathlib.Path,
    *,
    config: LlamaConfig | None = None,
    dtype: DTypeLike | None = None,
    shardings: PyTree = None,
) -> dict[str, Any]:
    """Reads the parameters of a Hugging Face directory, in the layout of `llm.layout`.

    Args:
      path: the directory.
      config: shape of the model; default: from `config.json`.
      dtype: dtype of the result; default: as stored ("bfloat16" or "float32").
      shardings: tree of shardings; each device's shard is read separately, so that the host holds
        this process's share of one parameter at a time. None for NumPy arrays.

    Raises:
      UserError: see `open_model`.
    """
    return open_model(path, config=config).load_params(dtype=dtype, shardings=shardings)


def fingerprint(path: str | pathlib.Path) -> str:
    """SHA-256 over the bytes of the weight files, in the order of their names."""
    return open_model(path).fingerprint()


def read_object(path: epath.PathLike) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
      UserError: if it is missing or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return value


def refuse_code(content: Mapping[str, Any], where: str) -> None:
    """Refuses a file that requires custom code, which is never run.

    Args:
      content: content of a `config.json` or `tokenizer_config.json`.
      where: path of the file, for messages.

    Raises:
      UserError: names the code.
    """
    custom = content.get("auto_map")
    if not custom:
        return
    values = custom.values() if isinstance(custom, dict) else [custom]
    named = ", ".join(dict.fromkeys(str(value) for value in values))[:200]
    raise UserError(
        f"{where}: auto_map names custom code ({named!r}), which is never run; if the model is an "
        "ordinary LLaMA without it, remove that key"
    )


def read_generation(path: epath.Path | pathlib.Path) -> Generation:
    """Reads special ids from `generation_config.json`, or else from `config.json`.

    Args:
      path: the model's directory, an `epath.Path` or local path.

    Raises:
        UserError: names the file and the key with an invalid id.
    """
    ids_by_key: dict[str, tuple[int, ...]] = {}
    for name in ("generation_config.json", "config.json"):
        if not (path / name).exists():
            continue
        content = read_object(path / name)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = content.get(key)
            if value is None or key in ids_by_key:
                continue
            ids = value if isinstance(value, list) else [value]
            if not all(type(n) is int and n >= (-1 if key[0] == "p" else 0) for n in ids):
                raise UserError(f"{path / name}: {key}={value!r} is not a token id")
            ids_by_key[key] = tuple(n for n in ids if n >= 0)
    bos, pad = ids_by_key.get("bos_token_id", ()), ids_by_key.get("pad_token_id", ())
    return Generation(
        next(iter(bos), None),
        tuple(dict.fromkeys(ids_by_key.get("eos_token_id", ()))),
        next(iter(pad), None),
    )


def _directory(path: str | pathlib.Path) -> pathlib.Path:
    if not is_local(path):
        raise UserError(f"{path}: Hugging Face files are read from a local disk; copy them first")
    check_directory(path)
    return pathlib.Path(path)


def check_directory(path: epath.PathLike) -> None:
    """Checks that a path can be a base model; the error says what was found there instead.

    Raises:
      UserError: for an unsupported scheme, a path that is not a directory, or an adapter.
    """
    check_scheme(path)
    folder = epath.Path(path)
    try:
        exists, is_directory = folder.exists(), folder.is_dir()
    except OSError as error:  # a name that no file system takes
        reason = error.strerror or error
        raise UserError(f"{str(path)[:200]}: cannot be read ({reason})") from error
    if not is_directory:
        if exists:
            raise UserError(
                f"{path}: is a file; give the directory that holds the whole model, or a GGUF file"
            )
        raise UserError(f"{path}: no such directory; give the path of a model")
    if not (folder / ADAPTER).exists():
        return
    if (folder / SINGLE).exists() or (folder / INDEX).exists():
        raise UserError(
            f"{path}: holds both a model and an adapter ({ADAPTER}); keep each in a directory of "
            "its own"
        )
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    named = f" ({str(base)[:200]!r})" if base else ""
    raise UserError(
        f"{path}: is an adapter, not a base; give its base{named} as the model and this directory "
        "as the adapter"
    )


def _fill(
    out: np.ndarray, tensor: StoredTensor, slices: tuple[slice, ...], transposed: bool
) -> None:
    """Fills `out` with a slice of a tensor, casting; `slices` and `out` are in our layout."""
    if transposed:
        out, slices = out.T, slices[::-1]
    rows, others = slices[0], slices[1:]
    for first, chunk in tensor.chunks(rows.start, rows.stop):
        out[first - rows.start : first - rows.start + len(chunk)] = chunk[(slice(None), *others)]
