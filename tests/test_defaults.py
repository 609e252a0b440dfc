"""The config is composed of what all stages share and of the stages' own sections."""

import importlib

import pytest

from tests import tiny
from xrec_jax import defaults, stages
from xrec_jax.core.errors import UserError

SHARED = {"name", "imports", "seeds", "stages", "data", "mesh", "ranking", "llm", "audit"}


def test_the_config_is_made_of_the_sections_of_the_stages():
    sections = {stage.name for stage in stages.registered() if stage.section is not None}
    assert set(defaults.base()) == SHARED | sections
    assert sections == {*stages.names()} - {"showcase", "report"}


def test_every_config_is_a_new_one():
    changed = defaults.base()
    changed.instruct.lora.rank = 99
    assert defaults.base().instruct.lora.rank == 8


@pytest.mark.parametrize("stage", ["instruct", "judge", "attributes", "joint"])
def test_a_smoke_test_makes_the_base_that_a_stage_needs(stage):
    config = defaults.base()
    config.stages = (stage,)
    config.llm.path = "/some/llama"
    tiny_config = defaults.variant(config, "tiny")
    assert tiny_config.stages == ("pretrain", stage)
    assert tiny_config.llm.path == "" and tiny_config.llm.hidden_size == 32
    assert tiny_config.pretrain.length == 64 and tiny_config.instruct.examples == 12


def test_a_smoke_test_without_a_language_model_leaves_it_out():
    config = defaults.variant(tiny.config("bpr"), "tiny")
    assert config.stages == ("recommend",)
    assert config.llm == defaults.language_model()
    assert config.recommend.bpr.train.epochs == 2


def test_the_quickstarts_smoke_test_is_that_of_the_run_from_nothing():
    quickstart = importlib.import_module("configs.quickstart")
    real, scratch = quickstart.get_config(), quickstart.get_config("scratch")
    assert real.llm.path == "smollm2" and "pretrain" not in real.stages
    assert scratch.llm.path == "" and "pretrain" in scratch.stages
    # Nothing but the language model and what is asked of it differs.
    assert real.recommend == scratch.recommend and real.data == scratch.data
    assert quickstart.get_config("tiny") == defaults.variant(scratch, "tiny")


def test_a_base_comes_behind_the_recommenders_of_a_smoke_test():
    config = tiny.config("bpr")
    config.stages, config.llm.path = ("recommend", "instruct", "explain"), "smollm2"
    config.instruct.template = "llmxrec_movie"
    made = defaults.variant(config, "tiny")
    assert made.stages == ("recommend", "pretrain", "instruct", "explain")
    assert made.instruct.template == "places"  # a world has places, not films


def test_a_joint_smoke_test_has_something_to_read():
    """Texts of a world's users hold what they like only where users write about themselves."""
    about = []
    for stage in ("judge", "joint"):
        config = defaults.base()
        config.stages = (stage,)
        about.append(defaults.variant(config, "tiny").data.world.about_share)
    assert about[0] == defaults.base().data.world.about_share != about[1] == 0.8


def test_an_unknown_variant_is_refused():
    with pytest.raises(UserError, match="no variant 'tony' of this config; did you mean 'tiny'"):
        defaults.variant(defaults.base(), "tony")
