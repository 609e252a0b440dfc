"""Prompts and answers as arrays, against naive loops over lists."""

from types import SimpleNamespace

import numpy as np
import pytest

from xrec_jax.core import rng as keyed
from xrec_jax.core.errors import UserError
from xrec_jax.joint.rollout import generate, rows, tokenized

HOLE = 7
PROMPTS = [
    [3, HOLE, 4, HOLE, HOLE, 5],
    [HOLE, HOLE],
    [9, 9, 9, HOLE, HOLE, HOLE, 2],
    [1, HOLE, HOLE],
]


@pytest.fixture
def prompts():
    return tokenized(PROMPTS, placeholder=HOLE, vectors=2)


def test_prompts_are_padded_on_the_right(prompts):
    assert prompts.ids.shape == (4, 7) and prompts.ids.dtype == np.int32
    for row, ids in enumerate(PROMPTS):
        assert prompts.ids[row].tolist() == ids + [0] * (7 - len(ids))
    assert prompts.length.tolist() == [6, 2, 7, 3]


def test_soft_vectors_go_to_the_last_run_of_placeholders(prompts):
    assert prompts.soft.tolist() == [[3, 4], [0, 1], [4, 5], [1, 2]]
    one = tokenized(PROMPTS, placeholder=HOLE, vectors=1)
    assert one.soft.tolist() == [[4], [1], [5], [2]]


def test_without_soft_vectors_placeholders_are_tokens_like_others():
    none = tokenized([[1, 2], [3]], placeholder=-1, vectors=0)
    assert none.soft.shape == (2, 0) and none.ids.tolist() == [[1, 2], [3, 0]]


def test_a_prompt_without_its_run_of_placeholders():
    with pytest.raises(UserError, match=r"prompt 1 .* 3 placeholders"):
        tokenized([[HOLE] * 3, [HOLE, HOLE, 1, HOLE]], placeholder=HOLE, vectors=3)


@pytest.mark.parametrize("multiple", [1, 5, 32])
@pytest.mark.parametrize("size", [1, 3, 6])
@pytest.mark.parametrize(("states", "longest"), [([2, 0, 0, 3, 1], 0), ([0, 3, 3, 1, 0], 6)])
def test_rows_against_a_loop(prompts, size, multiple, states, longest):
    rng = np.random.default_rng(size)
    states = np.array(states)
    length = rng.integers(0, size + 1, 5).astype(np.int32)
    tokens = rng.integers(10, 99, (5, size)).astype(np.int32)  # what lies behind the end is noise
    made = rows(prompts, states, tokens, length, multiple=multiple, longest=longest)
    width = (longest or 7) + size
    while width % multiple:
        width += 1
    for row, state in enumerate(states):
        answer = tokens[row, : length[row]].tolist()
        whole = PROMPTS[state] + answer
        assert made["ids"][row].tolist() == whole + [0] * (width - len(whole))
        assert made["segments"][row].tolist() == [1] * len(whole) + [0] * (width - len(whole))
        assert made["start"][row] == len(PROMPTS[state])
        for nth, token in enumerate(answer):
            assert made["ids"][row, made["start"][row] + nth] == token
        assert [made["ids"][row, c] for c in made["soft_positions"][row]] == [HOLE, HOLE]
    assert made["length"].tolist() == length.tolist()
    assert {array.dtype for array in made.values()} == {np.dtype(np.int32)}


def test_the_width_does_not_depend_on_which_states_are_drawn(prompts):
    shapes = {
        rows(prompts, np.array(states), np.zeros((2, 3), np.int32), np.ones(2, np.int32))[
            "ids"
        ].shape
        for states in ([1, 1], [2, 0])
    }
    assert shapes == {(2, 32)}


@pytest.mark.parametrize(("group", "longest"), [(2, 0), (2, 6), (3, 7)])
def test_rows_of_groups_against_a_loop(prompts, group, longest):
    rng = np.random.default_rng(group)
    size, owners = 4, [0, 3, 1] if longest == 6 else [2, 3]
    states = np.repeat(owners, group)
    length = rng.integers(0, size + 1, len(states))
    tokens = rng.integers(10, 99, (len(states), size))
    made = rows(prompts, states, tokens, length, multiple=5, group=group, longest=longest)
    most = longest or 7
    assert made["ids"].shape == (len(owners), -(-(most + group * size) // 5) * 5)
    for row, state in enumerate(owners):
        own = len(PROMPTS[state])
        ids, segments = [0] * made["ids"].shape[1], [0] * made["ids"].shape[1]
        ids[:own], segments[:own] = PROMPTS[state], [1] * own
        for nth in range(group):
            place = row * group + nth
            start = most + nth * size
            assert made["start"][place] == start and made["length"][place] == length[place]
            for t in range(length[place]):
                ids[start + t], segments[start + t] = tokens[place, t], 2 + nth
        assert made["ids"][row].tolist() == ids and made["segments"][row].tolist() == segments
        assert [ids[c] for c in made["soft_positions"][row]] == [HOLE, HOLE]
    assert {array.dtype for array in made.values()} == {np.dtype(np.int32)}


def test_a_prompt_that_no_row_holds(prompts):
    with pytest.raises(ValueError, match="7 tokens is longer than 6"):
        rows(prompts, np.array([2]), np.array([[4]]), np.array([1]), longest=6)


def test_rows_without_soft_vectors_have_no_positions():
    none = tokenized([[1, 2], [3]], placeholder=-1, vectors=0)
    made = rows(none, np.array([1]), np.array([[4]]), np.array([1]))
    assert "soft_positions" not in made and made["ids"][0, :3].tolist() == [3, 4, 0]


class Recorder:
    """A sampler that keeps its requests and answers with the prompt's first tokens."""

    def generate(self, requests, *, sampling, adapter):
        self.requests, self.sampling, self.adapter = requests, sampling, adapter
        return [
            SimpleNamespace(
                ids=one.ids[: n % 4],
                log_probs=[-0.5 * k for k in range(len(one.ids[: n % 4]))],
                stop="eos" if n % 2 else "length",
            )
            for n, one in enumerate(requests)
        ]


def test_requests_and_answers(prompts):
    sampler, states = Recorder(), np.array([2, 2, 0, 1, 2])
    vectors = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    made = generate(
        sampler, prompts, states, adapter="a", vectors=vectors, sampling="s", size=4, key=(8, 71, 3)
    )
    assert (sampler.adapter, sampler.sampling) == ("a", "s")
    for place, (state, request) in enumerate(zip(states, sampler.requests, strict=True)):
        assert list(request.ids) == PROMPTS[state] and request.max_new_tokens == 4
        assert request.seed == int(keyed.fold(8, 71, 3, place)) % 2**32
        assert list(request.soft_positions) == prompts.soft[state].tolist()
        np.testing.assert_array_equal(request.soft_vectors, vectors[place])
    # One state several times: other draws each time.
    assert len({request.seed for request in sampler.requests}) == 5
    assert made.length.tolist() == [0, 1, 2, 2, 0]
    assert made.ended.tolist() == [False, True, False, True, False]
    for row, state in enumerate(states):
        count = made.length[row]
        assert made.tokens[row].tolist() == PROMPTS[state][:count] + [0] * (4 - count)
        assert made.log_probs[row].tolist() == [-0.5 * k for k in range(count)] + [0] * (4 - count)
    assert (made.tokens.dtype, made.log_probs.dtype) == (np.int32, np.float32)


def test_no_vectors_leave_the_placeholders_as_they_are(prompts):
    sampler = Recorder()
    generate(
        sampler, prompts, np.array([0]), adapter=None, vectors=None, sampling="s", size=2, key=(0,)
    )
    assert not len(sampler.requests[0].soft_positions)
