"""Dtypes of a config, and what the processor multiplies fast."""

from __future__ import annotations

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from xrec_jax.core.errors import UserError, did_you_mean

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
AUTO = "auto"
# Flags of Linux for instructions that multiply bfloat16: x86 (AVX512-BF16, AMX) and ARM.
_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@functools.cache
def multiplies_bfloat16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """True if the processor has instructions that multiply bfloat16; False if it cannot be read.

    Args:
      cpuinfo: description of the processor, as Linux gives it.
    """
    try:
        text = pathlib.Path(cpuinfo).read_text()
    except OSError:
        return False
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return listed is not None and not _FLAGS.isdisjoint(listed[1].split())


def settled(name: str) -> str:
    """What "auto" stands for on this machine; other names unchanged.

    "bfloat16" on accelerators and on processors with instructions for it, else "float32".
    """
    if name != AUTO:
        return name
    fast = jax.default_backend() != "cpu" or multiplies_bfloat16()
    return "bfloat16" if fast else "float32"


def dtype_named(name: str) -> DTypeLike:
    """Dtype of a config's `dtype`.

    Args:
      name: "float32", "bfloat16" or "auto", see `settled`.

    Raises:
      UserError: for an unknown name.
    """
    name = settled(name)
    if name not in DTYPES:
        raise UserError(f"dtype={name!r} is not valid{did_you_mean(name, (*DTYPES, AUTO))}")
    return DTYPES[name]


def on_16_bit_cpu(dtype: DTypeLike) -> bool:
    """True for a 16-bit dtype on a CPU, whose compiler has few operations of that width.

    There a product must ask for a float32 result, or both factors are converted; slices and updates
    convert whole arrays. Elsewhere a float32 result would double what devices exchange.
    """
    return jax.default_backend() == "cpu" and jnp.dtype(dtype).itemsize == 2


def product_dtype(dtype: DTypeLike) -> DTypeLike:
    """Dtype to request of a product of 16- or 32-bit factors, see `on_16_bit_cpu`."""
    return jnp.float32 if on_16_bit_cpu(dtype) else dtype
