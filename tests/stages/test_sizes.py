"""Sizes that cannot fit are refused by their key before anything is built of them."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import tiny
from xrec_jax import defaults
from xrec_jax.api import run
from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory
from xrec_jax.stages import sizes
from xrec_jax.training.defaults import check_training, training_defaults

GIB = 1 << 30
HUGE = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: 16 * GIB)


def checked(config: ConfigDict, key: str = "", value: int = 0) -> None:
    with config.unlocked():
        if key:
            config.update_from_flattened_dict({key: value})
    sizes.check(config, data=tiny.data(), mesh=tiny.mesh())


def language() -> ConfigDict:
    config = defaults.base()
    config.stages = ("pretrain", "instruct", "judge", "attributes", "joint", "explain")
    return config


def test_what_works_is_not_refused():
    checked(tiny.config())
    checked(language())


@pytest.mark.parametrize(
    "key",
    [
        "ranking.resamples",
        "recommend.bpr.train.batch_size",
        "recommend.bpr.hparams.dim",
        "recommend.bpr.hparams.negatives",
        "recommend.sasrec.hparams.length",
        "recommend.sasrec.hparams.packing",
        "recommend.sasrec.hparams.inner",
        "recommend.lightgcn.hparams.layers",
        "recommend.bpr.train.prefetch",
    ],
)
def test_a_size_of_a_recommender(key):
    with pytest.raises(UserError) as caught:
        checked(tiny.config(), key, HUGE)
    message = str(caught.value)
    assert message.startswith(f"{key}={HUGE}: ") and message.endswith("16.0 GiB in all; lower it")
    assert "would take at least" in message and "\n" not in message


@pytest.mark.parametrize(
    "key",
    [
        "llm.vocab_size",
        "llm.hidden_size",
        "llm.intermediate_size",
        "llm.num_layers",
        "instruct.lora.rank",
        "judge.lora.rank",
        "joint.lora.rank",
        "instruct.length",
        "pretrain.train.batch_size",
        "instruct.train.batch_size",
        "joint.rollout.per_round",
        "attributes.max_new_tokens",
        "joint.explain.max_new_tokens",
        "instruct.train.prefetch",
    ],
)
def test_a_size_of_a_language_model(key):
    with pytest.raises(UserError, match=rf"^{key}={HUGE}: .* at least .*iB of memory"):
        checked(language(), key, HUGE)


def test_a_stage_that_does_not_run_needs_nothing():
    config = tiny.config()
    with config.unlocked():
        config.update_from_flattened_dict({"instruct.length": HUGE, "llm.num_layers": HUGE})
    checked(config)


def test_counts_beyond_32_bits():
    train = training_defaults()
    train.epochs = 2**31 - 1
    check_training(train, "recommend.bpr.train", [train.metric])
    train.epochs = 2**31
    with pytest.raises(UserError, match=r"^x\.train\.epochs=2147483648 must be at most 2147483647"):
        check_training(train, "x.train", [train.metric])


def test_nothing_is_written(tmp_path):
    config = tiny.config()
    config.recommend.sasrec.hparams.layers = HUGE
    with pytest.raises(UserError, match=r"recommend\.sasrec\.hparams\.layers"):
        run.run(config, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def test_nothing_is_refused_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "total", lambda: None)
    checked(tiny.config(), "ranking.resamples", HUGE)


def test_the_limit_of_accelerators_is_that_of_all(monkeypatch):
    class Device:
        platform, process_index = "gpu", 0

        def memory_stats(self):
            return {"bytes_limit": 5 * GIB}

    class Mesh:
        devices = np.array([[[Device(), Device()]]])

    assert sizes.limit(Mesh()) == 10 * GIB


def test_an_allocator_that_gives_up_is_one_line():
    for error in (MemoryError("9 GiB"), RuntimeError("RESOURCE_EXHAUSTED: Out of memory: 9 GiB")):
        told = str(memory.exhausted(error))
        assert told.startswith("out of memory (") and "9 GiB" in told and "\n" not in told
    assert memory.exhausted(ValueError("RESOURCE_EXHAUSTED: No space left on device")) is None
