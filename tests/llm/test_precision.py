"""Dtypes by name, and what a processor says of itself."""

import jax.numpy as jnp
import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.llm.model import precision

INTEL = "processor\t: 0\nflags\t\t: fpu avx512_vnni avx512_bf16 amx_tile\n\nprocessor\t: 1\n"
OLD = "processor\t: 0\nmodel name\t: avx512_bf16 in a name\nflags\t\t: fpu avx2 avx512bw\n"
ARM = "Features\t: fp asimd bf16 i8mm\n"


@pytest.mark.parametrize(("text", "fast"), [(INTEL, True), (OLD, False), (ARM, True), ("", False)])
def test_flags_of_the_processor_decide(tmp_path, text, fast):
    (tmp_path / "cpuinfo").write_text(text)
    assert precision.multiplies_bfloat16(str(tmp_path / "cpuinfo")) is fast


def test_a_processor_that_cannot_be_asked_is_slow(tmp_path):
    assert precision.multiplies_bfloat16(str(tmp_path / "missing")) is False


@pytest.mark.parametrize("fast", [True, False])
def test_auto_follows_the_processor(monkeypatch, fast):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: fast)
    assert precision.dtype_named("auto") is (jnp.bfloat16 if fast else jnp.float32)
    assert precision.dtype_named("float32") is jnp.float32


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"dtype='bfloat'.*bfloat16"):
        precision.dtype_named("bfloat")
