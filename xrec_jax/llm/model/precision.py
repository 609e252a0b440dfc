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


def dtype_named(name: str) -> DTypeLike:
    """Dtype of a config's `dtype`.

    Args:
      name: "float32", "bfloat16", or "auto": bfloat16 on accelerators and on processors with
        instructions for it, else float32.

    Raises:
      UserError: for an unknown name.
    """
    if name == AUTO:
        fast = jax.default_backend() != "cpu" or multiplies_bfloat16()
        name = "bfloat16" if fast else "float32"
    if name not in DTYPES:
        raise UserError(f"dtype={name!r} is not valid{did_you_mean(name, (*DTYPES, AUTO))}")
    return DTYPES[name]
