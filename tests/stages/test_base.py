"""The registry of stages, and what other parts of the library learn from it."""

import pytest

from tests import tiny
from xrec_jax import defaults, stages
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import prepare
from xrec_jax.stages import base, pretrain


def test_a_stage_that_does_not_exist_names_the_nearest():
    with pytest.raises(UserError, match=r"no stage 'explian'; did you mean 'explain'"):
        stages.get("explian")


def test_the_count_of_updates_grows_over_the_stages():
    """Processes of one run, perhaps of two versions, must agree: these numbers stay."""
    expected = {
        "recommend": 0,
        "pretrain": 1 << 28,
        "instruct": 1 << 29,
        "judge": 3 << 28,
        "attributes": 1 << 30,
        "joint": 5 << 28,
    }
    trained = [stage.name for stage in stages.registered() if stage.trains]
    assert {name: base.steps_before(name) for name in trained} == expected


def test_keys_that_change_no_explanation():
    """Of stages that shape explanations only the paths: the content counts."""
    assert {"pretrain.files", "instruct.path", "judge.", "joint.", "assess."} <= {
        *base.keys_apart()
    }
    shaping = ("recommend.", "pretrain.length", "instruct.template", "llm.", "data.", "seeds")
    assert not [key for key in shaping if key.startswith(base.keys_apart())]


def test_every_path_is_a_key_of_its_section():
    config = defaults.base()
    for stage in stages.registered():
        for key in stage.full_paths:
            value = config
            for part in key.split("."):
                value = value[part]
            assert value in ("", ()), key


def test_later_stages_are_those_behind_that_are_run():
    config = tiny.config("popularity")
    config.stages = ("recommend", "pretrain", "judge", "report")
    assert [stage.name for stage in base.later(config, "pretrain")] == ["judge", "report"]
    assert [stage.name for stage in base.later(config, "judge")] == ["report"]


def test_a_base_is_held_against_the_stages_behind_before_it_is_trained(tmp_path):
    """`pretrain` imports no other stage, so this is how it knows what its base must hold."""

    def refuse(ctx, tokenizer, shape):
        raise UserError(f"{len(tokenizer)} tokens, {shape.max_positions} positions: too few")

    def nothing(*unused):
        pass

    config = tiny.language("pretrain")
    config.stages = ("pretrain", "picky")
    rundir = RunDir(tmp_path / "w")
    stages.register(stages.Stage(name="picky", check=nothing, run=nothing, check_tokenized=refuse))
    try:
        with pytest.raises(UserError, match=r"^\d+ tokens, \d+ positions: too few"):
            pretrain.run(stages.Context(config, prepare(config.data), tiny.mesh(), rundir), nothing)
    finally:
        base._REGISTRY.pop("picky")
    assert [path.name for path in rundir.path.iterdir()] == ["tokenizer"]
