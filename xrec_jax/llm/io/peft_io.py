"""Reader and writer of LoRA adapters in PEFT's format, also used for this library's own adapters.

A directory with `adapter_config.json` and `adapter_model.safetensors`, as PEFT and vLLM load it;
ours also have `xrec.json`, which identifies their base.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
import time
import warnings
from collections.abc import Container
from typing import Any

import numpy as np
import regex

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage.files import check_scheme, is_local, write_json
from xrec_jax.core.values import finite_number, whole_number
from xrec_jax.llm.io import hub, tensorfile
from xrec_jax.llm.io.hf import read_object
from xrec_jax.llm.io.hf_export import new_directory
from xrec_jax.llm.io.tensorfile import Tensor
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.llm.model.layout import PROJECTIONS
from xrec_jax.llm.model.lora import GROUPS, TARGETS, Adapter, LoraConfig, sizes
from xrec_jax.parallel.mesh import gather

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MARK = "xrec.json"
_PREFIX = "base_model.model."
_KEY = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.([\w.]+))\.lora_([AB])\.weight")
_LONGEST_PATTERN = 10_000  # characters
_PATTERN_SECONDS = 5.0  # for all names together; an ordinary pattern takes microseconds a name
# Keys that do not affect the computation of a trained adapter.
_NEUTRAL = {
    "auto_mapping",
    "base_model_name_or_path",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
# Initialisations after which the stored base is still the one that the adapter belongs to.
_INITIAL = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclasses.dataclass(frozen=True)
class Base:
    """The base that an adapter was trained on.

    Attributes:
      path: its path at the time, or its name; see `hub.recorded`. Empty if unknown.
      fingerprint: fingerprint of its weights; empty if unknown.
    """

    path: str = ""
    fingerprint: str = ""


def save_adapter(path: str | pathlib.Path, adapter: Adapter, *, base: Base = Base()) -> None:
    """Writes an adapter for PEFT, vLLM and `load_adapter`; all processes call it.

    Args:
      path: output directory; must not exist, or be empty.
      adapter: host or device arrays, stored in float32.
      base: the base that it was trained on; PEFT finds the base by its path.

    Raises:
      UserError: if the directory is not empty or cannot be written.
    """
    config = adapter.config
    tensors: list[tuple[str, np.ndarray]] = []
    for target in TARGETS:
        if target not in config.targets:
            continue
        pair = adapter.params["layers"][GROUPS[target]][target]
        a, b = gather(pair["a"]), gather(pair["b"])
        for layer in range(a.shape[0]):
            name = f"{_PREFIX}model.layers.{layer}.{PROJECTIONS[target][1]}"
            tensors.append((f"{name}.lora_A.weight", a[layer].T))
            tensors.append((f"{name}.lora_B.weight", b[layer].T))
    tensors.sort(key=lambda item: item[0])
    if is_primary():
        with new_directory(path) as folder:
            shapes = [(name, array.shape) for name, array in tensors]
            with tensorfile.Writer(folder / WEIGHTS, shapes, np.dtype(np.float32)) as file:
                for _, array in tensors:
                    file.append(array)
            write_json(folder / CONFIG, to_peft(config, base_path=base.path))
            mark = {"format": 1, "kind": "adapter", "base": dataclasses.asdict(base)}
            write_json(folder / MARK, mark)
    barrier(str(path))


def to_peft(config: LoraConfig, *, base_path: str = "") -> dict[str, Any]:
    """Content of an `adapter_config.json`."""
    alpha = int(config.alpha) if float(config.alpha).is_integer() else config.alpha
    named = hub.hub_model(base_path) if hub.is_name(base_path) else None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": (named.repo if named else base_path) or None,
        # Only where one is named: PEFT takes the repository's main branch otherwise.
        **({"revision": named.revision} if named and named.revision != hub.MAIN else {}),
        "r": config.rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": [_module(target) for target in TARGETS if target in config.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def load_adapter(path: str | pathlib.Path, model: LlamaConfig) -> Adapter:
    """Reads an adapter written by PEFT or by `save_adapter`.

    rsLoRA's scale alpha / sqrt(r) is expressed as the plain one by a larger alpha.

    Args:
      path: directory of the adapter.
      model: shape of the base.

    Returns:
      The adapter with float32 numpy arrays.

    Raises:
      UserError: names the key or tensor that is missing, unknown, of a wrong shape, or not
        supported by plain LoRA.
    """
    check_scheme(path)
    if not is_local(path):
        raise UserError(f"{path}: adapters are read from a local disk; copy it first")
    path = pathlib.Path(path)
    if not is_adapter(path):
        raise UserError(f"{path}: no adapter: {CONFIG} is not there")
    where = path / CONFIG
    content = read_object(where)
    # First the config, then the tensors, then whether both name the same targets.
    rank, alpha, dropout = _numbers(content, where)
    if not (path / WEIGHTS).is_file():
        other = "; adapter_model.bin must be converted to safetensors first"
        hint = other if (path / "adapter_model.bin").is_file() else ""
        raise UserError(f"{path}: {WEIGHTS} is missing{hint}")
    tensors = _by_target(path / WEIGHTS, rank, model)
    _check_targets(content, tensors, model, where)
    # PEFT stores a matrix a layer, transposed; ours are stacked over layers.
    targets = tuple(target for target in TARGETS if target in tensors)
    tree: dict[str, Any] = {}
    for target in targets:
        tree.setdefault(GROUPS[target], {})[target] = {
            side.lower(): np.stack(
                [_read(tensors[target][layer, side]).T for layer in range(model.num_layers)]
            )
            for side in "AB"
        }
    return Adapter({"layers": tree}, LoraConfig(rank, alpha, dropout, targets))


def is_adapter(path: str | pathlib.Path) -> bool:
    """True if a directory holds an adapter in PEFT's format."""
    return (pathlib.Path(path) / CONFIG).is_file()


def base_of(path: str | pathlib.Path) -> Base:
    """Base recorded in an adapter's directory."""
    path = pathlib.Path(path)
    if (path / MARK).is_file():
        base = read_object(path / MARK).get("base") or {}
        if not isinstance(base, dict):
            raise UserError(f"{path / MARK}: base={base!r:.80} must be an object")
        return Base(str(base.get("path", "")), str(base.get("fingerprint", "")))
    content = read_object(path / CONFIG)
    base, revision = (content.get(k) or "" for k in ("base_model_name_or_path", "revision"))
    named = hub.hub_model(str(base)) if revision else None
    return Base(str(named._replace(revision=str(revision)) if named else base))


def _numbers(content: dict[str, Any], where: pathlib.Path) -> tuple[int, float, float]:
    """Rank, alpha and dropout of a config; refuses everything but plain LoRA and rsLoRA."""
    if content.get("peft_type") != "LORA":
        raise UserError(
            f"{where}: peft_type {content.get('peft_type')!r} is not supported, only LORA"
        )
    for key, value in content.items():
        fine = key in _NEUTRAL or value in (None, False, 0, "", "none") or value in ([], {})
        if key == "init_lora_weights":
            fine = value in _INITIAL
        if key == "task_type":
            fine = value in (None, "CAUSAL_LM")
        if not fine:
            raise UserError(
                f"{where}: {key}={str(value)[:80]!r} is not supported; only plain LoRA (and "
                "rsLoRA) on the projections of every layer is"
            )
    if not isinstance(content.get("use_rslora"), (bool, type(None))):
        raise UserError(f"{where}: use_rslora={content['use_rslora']!r:.80} must be true or false")
    rank = whole_number(content.get("r"), f"{where}: r", least=1)
    alpha = finite_number(content.get("lora_alpha"), f"{where}: lora_alpha")
    if alpha <= 0:
        raise UserError(f"{where}: lora_alpha={alpha} must be a positive number")
    dropout = content.get("lora_dropout")
    dropout = finite_number(0 if dropout is None else dropout, f"{where}: lora_dropout", least=0.0)
    if dropout >= 1.0:
        raise UserError(f"{where}: lora_dropout={dropout} must be below 1")
    scale = math.sqrt(rank) if content.get("use_rslora") else 1.0
    return rank, alpha * scale, dropout


def _by_target(
    file: pathlib.Path, rank: int, model: LlamaConfig
) -> dict[str, dict[tuple[int, str], Tensor]]:
    """Reads and checks the tensors, by target and then (layer, side)."""
    targets = {hf: target for target, (_, hf) in PROJECTIONS.items()}
    by_target: dict[str, dict[tuple[int, str], Tensor]] = {}
    for name, tensor in tensorfile.read_header(file).items():
        # Every tensor must be a known one, of the right shape and dtype.
        match = _KEY.fullmatch(name)
        if match is None or match[3] not in targets:
            raise UserError(
                f"{file}: tensor {name!r} is not a LoRA matrix of a LLaMA's projection "
                f"({', '.join(_module(target) for target in TARGETS)})"
            )
        target, layer, side = targets[match[3]], int(match[2]), match[4]
        if layer >= model.num_layers:
            raise UserError(f"{file}: tensor {name!r}, but the base has {model.num_layers} layers")
        size_in, size_out = sizes(model)[target]
        shape = (rank, size_in) if side == "A" else (size_out, rank)
        if tensor.shape != shape:
            raise UserError(
                f"{file}: tensor {name!r} has shape {list(tensor.shape)}; r={rank} on this base "
                f"asks for {list(shape)}"
            )
        if tensor.dtype not in tensorfile.DTYPES:
            raise UserError(f"{file}: tensor {name!r} has dtype {tensor.dtype}, not supported")
        by_target.setdefault(target, {})[layer, side] = tensor
    if not by_target:
        raise UserError(f"{file}: it holds no tensor")
    # A target must be complete: both matrices in every layer.
    for target, tensors in by_target.items():
        for layer in range(model.num_layers):
            for side in "AB":
                if (layer, side) not in tensors:
                    name = f"{_PREFIX}model.layers.{layer}.{PROJECTIONS[target][1]}"
                    raise UserError(
                        f"{file}: tensor '{name}.lora_{side}.weight' is missing; an adapter must "
                        "change a projection in every layer or in none"
                    )
    return by_target


def _check_targets(
    content: dict[str, Any], present: Container[str], model: LlamaConfig, where: pathlib.Path
) -> None:
    """Compares `target_modules`, in any of PEFT's forms, with the targets of the tensors."""
    requested, excluded = content.get("target_modules"), content.get("exclude_modules")
    if requested is None:
        return
    until = time.monotonic() + _PATTERN_SECONDS
    for target, (_, hf) in PROJECTIONS.items():
        for layer in range(model.num_layers):
            module = f"model.layers.{layer}.{hf}"
            wanted = _matches(requested, "target_modules", module, where, until)
            wanted = wanted and not _matches(excluded, "exclude_modules", module, where, until)
            if wanted != (target in present):
                what = "is missing in" if wanted else "was not asked for but is in"
                raise UserError(
                    f"{where}: target_modules={str(requested)[:80]!r}: {module} {what} {WEIGHTS}"
                )


def _matches(patterns: object, key: str, module: str, where: pathlib.Path, until: float) -> bool:
    """PEFT's matching: a regular expression for the whole name, or a list of names or suffixes."""
    if not patterns:
        return False
    if patterns == "all-linear":
        return True
    if isinstance(patterns, str):
        return _matches_pattern(patterns, key, module, where, until)
    if not isinstance(patterns, list) or not all(isinstance(name, str) for name in patterns):
        raise UserError(f"{where}: {key}={str(patterns)[:80]!r} must be a text or a list of texts")
    return any(module == name or module.endswith(f".{name}") for name in patterns)


def _matches_pattern(
    pattern: str, key: str, module: str, where: pathlib.Path, until: float
) -> bool:
    """True if a regular expression matches a whole name; fails after the time `until`.

    A pattern of an untrusted file, such as `([a-z]+)+!`, may backtrack exponentially.
    """
    shown = f"{key}={pattern[:80]!r}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about syntax that may change
            if len(pattern) > _LONGEST_PATTERN:
                raise re.error(f"{len(pattern)} characters")
            re.compile(pattern)  # PEFT uses `re`; `regex` accepts more
            left = max(until - time.monotonic(), 1e-3)
            return regex.fullmatch(pattern, module, timeout=left) is not None
    except TimeoutError as error:
        raise UserError(
            f"{where}: {shown} takes too long to match; write the modules as a list of names"
        ) from error
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise UserError(f"{where}: {shown} is no pattern ({error})") from error


def _module(target: str) -> str:
    """PEFT's module name of a projection."""
    return PROJECTIONS[target][1].split(".")[-1]


def _read(tensor: Tensor) -> np.ndarray:
    chunks = [rows.astype(np.float32) for _, rows in tensor.chunks(0, tensor.shape[0])]
    return np.concatenate(chunks)
