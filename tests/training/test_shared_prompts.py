"""Answers that share the row of their prompt, beside a row each."""

import functools

import jax
import numpy as np
import pytest

from tests import runs, tiny
from tests.training.test_policy import (
    MODEL,
    PLACEHOLDER,
    SIZE,
    USERS,
    base_params,
    log_probs_of,
    one_step,
    state_of,
    trained,
    values_of,
)
from xrec_jax.core.errors import UserError
from xrec_jax.joint.rollout import Prompts, rows
from xrec_jax.llm.model import attention
from xrec_jax.parallel.mesh import put_batch, sharding, use_mesh


@functools.cache
def apart_and_together(group=3):
    """Four prompts with three answers each, a row an answer and a row a prompt."""
    rng = np.random.default_rng(11)
    lengths = np.array([4, 7, 9, 5])
    prompts = Prompts(
        np.where(np.arange(9) < lengths[:, None], rng.integers(4, 64, (4, 9)), 0).astype(np.int32),
        lengths.astype(np.int32),
        np.array([[1, 3], [0, 2], [5, 6], [2, 3]], np.int32),
    )
    prompts.ids[np.arange(4)[:, None], prompts.soft] = PLACEHOLDER
    states = np.repeat([2, 0, 3, 1], group)
    tokens = rng.integers(0, 64, (12, SIZE)).astype(np.int32)
    length = np.array([6, 1, 3, 0, 5, 2, 6, 4, 1, 2, 6, 3], np.int32)
    users = rng.normal(size=(4, USERS)).astype(np.float32)
    apart = rows(prompts, states, tokens, length, multiple=1) | {"user": users[states]}
    together = rows(prompts, states, tokens, length, multiple=4, group=group)
    together |= {"user": users[states[::group]]}
    assert together["ids"].shape == (4, 28) and apart["ids"].shape == (12, 15)
    mask = np.arange(SIZE) < length[:, None]
    said = {
        "log_probs": np.asarray(log_probs_of()(trained()["policy"], base_params(), apart)[0]),
        "values": rng.normal(size=mask.shape) * mask,
        "returns": rng.normal(size=mask.shape) * mask,
        "advantages": rng.normal(size=mask.shape) * mask,
    }
    said = {name: array.astype(np.float32) for name, array in said.items()}
    return apart | said, together | said


def test_answers_that_share_a_prompt_do_not_see_each_other():
    apart, together = apart_and_together()
    for one, other in zip(
        *(log_probs_of()(trained()["policy"], base_params(), batch) for batch in (apart, together)),
        strict=True,
    ):
        assert np.abs(one).max() > 0.5
        np.testing.assert_allclose(other, one, atol=2e-6)
    values = [values_of()(trained()["critic"], base_params(), x) for x in (apart, together)]
    np.testing.assert_allclose(values[1], values[0], atol=2e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_on_shared_prompts_is_that_on_separate_rows(accumulation):
    apart, together = apart_and_together()
    one, told = one_step(apart)
    other, found = one_step(together, accumulation=accumulation)
    leaves = zip(runs.flat(one.params), runs.flat(other.params), strict=True)
    for (path, left), (_, right) in leaves:
        np.testing.assert_allclose(right, left, atol=1e-6, err_msg=path)
    assert found == pytest.approx(told, abs=1e-5)
    # Nothing was updated since the rollout.
    assert found["ppo/ratio_mean"] == pytest.approx(1.0, abs=1e-5)
    assert found["ppo/ratio_max"] == pytest.approx(1.0, abs=1e-4)


def test_fewer_rows_than_answers_on_two_devices():
    apart, together = apart_and_together()
    one, told = one_step(apart)
    mesh = tiny.mesh(2)
    with use_mesh(mesh):
        state = jax.device_put(state_of(), sharding(mesh))
        many, found = one_step(put_batch(together, mesh), state=state, accumulation=2)
    assert found == pytest.approx(told, abs=1e-5)
    for (path, left), (_, right) in zip(runs.flat(one.params), runs.flat(many.params), strict=True):
        np.testing.assert_allclose(right, left, atol=1e-6, err_msg=path)


def test_rows_that_are_not_full():
    with pytest.raises(ValueError, match="3 answers do not fill rows of 2"):
        prompts = Prompts(np.ones((2, 3), np.int32), np.array([3, 2]), np.zeros((2, 0), np.int32))
        rows(prompts, np.zeros(3, int), np.zeros((3, 4), np.int32), np.ones(3, np.int32), group=2)
    apart, together = apart_and_together()
    with pytest.raises(ValueError, match="12 answers do not fill 5 rows"):
        bad = together | {"ids": np.concatenate([together["ids"], together["ids"][:1]])}
        log_probs_of()(trained()["policy"], base_params(), bad)
    with pytest.raises(ValueError, match="need positions"):
        MODEL.hidden(base_params(), apart["ids"], segments=apart["segments"], shared=True)


def test_answers_of_several_states_share_no_row():
    prompts = Prompts(np.ones((2, 3), np.int32), np.array([3, 2]), np.zeros((2, 0), np.int32))
    with pytest.raises(ValueError, match="of one state"):
        rows(prompts, np.array([0, 1]), np.zeros((2, 4), np.int32), np.ones(2, np.int32), group=2)


@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_later_segments_see_the_first_where_it_is_shared(implementation):
    rng = np.random.default_rng(4)
    segments = np.array([[1, 1, 1, 0, 2, 2, 3, 3, 3, 0]], np.int32)
    q, k, v = (rng.normal(size=(1, 10, heads, 5)).astype(np.float32) for heads in (4, 2, 2))
    found = attention.attend(q, k, v, segments, implementation=implementation, shared=True)
    for query, own in enumerate(segments[0]):
        seen = [key for key in range(query + 1) if own and segments[0, key] in (1, own)]
        for head in range(4 if seen else 0):
            scores = np.array([q[0, query, head] @ k[0, key, head // 2] for key in seen])
            weights = np.exp(scores / np.sqrt(5.0))
            expected = weights / weights.sum() @ v[0, seen, head // 2]
            np.testing.assert_allclose(found[0, query, head], expected, atol=2e-6)


def test_the_kernel_of_tpus_shares_nothing():
    sizes = {"length": 256, "head_dim": 64, "kv_heads": 2, "dtype": np.float32}
    with pytest.raises(UserError, match="share_prompts=False"):
        attention.choose("splash", shared=True, **sizes)
    assert attention.choose("splash", **sizes) == "splash"
