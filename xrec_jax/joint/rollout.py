"""Answers of a policy: requests for the sampler, and rows for the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.llm.generation.sampler import Sampler
from xrec_jax.llm.generation.sampling import Sampling
from xrec_jax.llm.generation.schedule import Request
from xrec_jax.llm.model.lora import Adapter


class Prompts(NamedTuple):
    """Prompts of all states as tokens.

    Attributes:
      ids: `[S, P]` int32, right-padded with 0.
      length: `[S]` int32.
      soft: `[S, K]` int32 columns of the placeholders; K = 0 for no soft prompt.
    """

    ids: np.ndarray
    length: np.ndarray
    soft: np.ndarray


class Answers(NamedTuple):
    """What was generated: tokens `[n, A]`, their log-probabilities, lengths, which ended by EOS."""

    tokens: np.ndarray
    log_probs: np.ndarray
    length: np.ndarray
    ended: np.ndarray


def tokenized(prompts: Sequence[Sequence[int]], *, placeholder: int, vectors: int) -> Prompts:
    """Prompts as an array, and where their soft vectors go.

    Args:
      prompts: token ids.
      placeholder: the token that soft vectors replace.
      vectors: how many of them a prompt has: its last run of so many placeholders.

    Raises:
      UserError: if a prompt has no such run.
    """
    length = np.array([len(ids) for ids in prompts], np.int32)
    ids = np.zeros((len(prompts), int(length.max())), np.int32)
    soft = np.zeros((len(prompts), vectors), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        if vectors:
            hit = (np.asarray(prompt) == placeholder).astype(np.int64)
            runs = np.flatnonzero(np.convolve(hit, np.ones(vectors, np.int64), "valid") == vectors)
            if not len(runs):
                raise UserError(
                    f"prompt {row} has no run of {vectors} placeholders for its soft prompt; the "
                    "tokenizer merges them: choose another joint.soft_prompt.placeholder"
                )
            soft[row] = runs[-1] + np.arange(vectors)
    return Prompts(ids, length, soft)


def generate(
    sampler: Sampler,
    prompts: Prompts,
    states: np.ndarray,
    *,
    adapter: Adapter | None,
    vectors: np.ndarray | None,
    sampling: Sampling,
    size: int,
    key: tuple[int, ...],
) -> Answers:
    """Answers to the prompts of some states.

    Args:
      sampler: of the base.
      prompts: of all states.
      states: `[n]` which to answer; one may stand there several times.
      adapter: of the policy; None is the base.
      vectors: `[n, K, hidden]` soft vectors; None leaves the placeholders as they are.
      sampling: how tokens are chosen.
      size: A, most tokens of an answer.
      key: of the draws, with each answer's place added.
    """
    requests = []
    for place, state in enumerate(states.tolist()):
        soft: dict[str, Any] = {}
        if vectors is not None and prompts.soft.shape[1]:
            soft = {"soft_positions": prompts.soft[state].tolist(), "soft_vectors": vectors[place]}
        ids = prompts.ids[state, : prompts.length[state]].tolist()
        seed = int(rng.fold(*key, place)) % (1 << 32)
        requests.append(Request(ids, size, seed=seed, **soft))
    answers = sampler.generate(requests, sampling=sampling, adapter=adapter)
    count = len(answers)
    tokens, log_probs = np.zeros((count, size), np.int32), np.zeros((count, size), np.float32)
    for row, answer in enumerate(answers):
        tokens[row, : len(answer.ids)] = answer.ids
        log_probs[row, : len(answer.ids)] = answer.log_probs
    return Answers(
        tokens,
        log_probs,
        np.array([len(answer.ids) for answer in answers], np.int32),
        np.array([answer.stop == "eos" for answer in answers], bool),
    )


def rows(
    prompts: Prompts,
    states: np.ndarray,
    tokens: np.ndarray,
    length: np.ndarray,
    *,
    multiple: int = 32,
    group: int = 1,
    longest: int = 0,
) -> dict[str, np.ndarray]:
    """Prompts and answers side by side, as `training.roles` reads them.

    Args:
      prompts: of all states.
      states: `[n]`.
      tokens: `[n, A]` answers.
      length: `[n]`.
      multiple: the width is a multiple of this.
      group: consecutive answers that share a row; they are of one state.
      longest: tokens of the longest prompt that may come, so that every round has one shape; 0:
        the longest of all states.

    Raises:
      ValueError: if answers that share a row are of several states or leave a row half filled, or
        a prompt is longer.
    """
    size, most = tokens.shape[1], longest or prompts.ids.shape[1]
    if len(states) % group:
        raise ValueError(f"{len(states)} answers do not fill rows of {group}")
    width = -(-(most + group * size) // multiple) * multiple
    own = states[::group]
    if (np.repeat(own, group) != states).any():
        raise ValueError("answers that share a row must be of one state")
    prompt = prompts.length[own]
    if prompt.max(initial=0) > most:
        raise ValueError(f"a prompt of {prompt.max()} tokens is longer than {most}")
    ids = np.zeros((len(own), width), np.int32)
    ids[:, :most] = prompts.ids[own, :most]
    segments = (np.arange(width) < prompt[:, None]).astype(np.int32)
    # A lone answer follows its prompt; of several, each has its own columns.
    start = prompt if group == 1 else np.tile(most + size * np.arange(group), len(own))
    columns = start[:, None] + np.arange(size)
    real = np.arange(size) < length[:, None]
    row, nth = (
        np.broadcast_to(x[:, None], columns.shape)[real]
        for x in np.divmod(np.arange(len(states)), group)
    )
    ids[row, columns[real]] = tokens[real]
    segments[row, columns[real]] = 1 if group == 1 else 2 + nth
    batch = {
        "ids": ids,
        "segments": segments,
        "start": start.astype(np.int32),
        "length": length.astype(np.int32),
    }
    if prompts.soft.shape[1]:
        batch["soft_positions"] = prompts.soft[own]
    return batch
