"""What a run was tuned on is kept, and another base or set is refused when it is resumed."""

import types

import pytest

from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.stages import instruct
from xrec_jax.tasks.instructions import Instructions
from xrec_jax.text.records.instructions import Instruction


def base(fingerprint):
    return types.SimpleNamespace(identity=lambda: types.SimpleNamespace(fingerprint=fingerprint))


def found(answer="because"):
    return Instructions([Instruction("why?", answer)], [Instruction("why not?", "so")], ())


def test_the_same_goes_on(tmp_path):
    for _ in range(2):
        instruct._same_as_before(found(), base("a" * 64), RunDir(tmp_path))


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ((found(), base("b" * 64)), "another content of the base .aaaaaaaaaaaa, now bbbbbbbbbbbb"),
        ((found("since"), base("a" * 64)), "another content of the instructions"),
    ],
    ids=["base", "instructions"],
)
def test_another_is_refused(other, named, tmp_path):
    instruct._same_as_before(found(), base("a" * 64), RunDir(tmp_path))
    before = (tmp_path / "instructions" / "identity.json").read_bytes()
    with pytest.raises(UserError, match=named):
        instruct._same_as_before(*other, RunDir(tmp_path))
    assert (tmp_path / "instructions" / "identity.json").read_bytes() == before
