"""Splits of instruction sets without prompt leakage, and balanced subsets of them.

A model tuned on explanations also learns their length, and which users get long ones. `select`
makes groups of users equal in number; `match_lengths` also makes their explanations equally long,
if there are enough to choose from; `one_answer_each` removes the bias towards long answers in the
choice among several answers to one prompt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import keyed_hash
from xrec_jax.text.records.instructions import Instruction
from xrec_jax.text.words import word_count


def split_by_prompt(
    instructions: Sequence[Instruction],
    *,
    held_out: float = 0.1,
    seed: int = 0,
    stratify: str | None = None,
) -> tuple[list[Instruction], list[Instruction]]:
    """Splits into (train, held out) so that no prompt is on both sides.

    The choice depends on the set of prompts and the seed, not on their order.

    Args:
      instructions: the examples; both results keep their order.
      held_out: share of the prompts of each stratum, at least one if it has two or more.
      seed: random seed.
      stratify: a key of `meta`; each of its values is a stratum. A prompt with several values
        counts for the first of them in alphabetical order.

    Raises:
      UserError: if the share is not in [0, 1), or an example lacks the key.
    """
    if not 0 <= held_out < 1:
        raise UserError(f"the share to hold out must be at least 0 and below 1, got {held_out}")
    stratum_of: dict[str, str] = {}
    for instruction in instructions:
        value = _stratum(instruction, stratify)
        group = instruction.group
        stratum_of[group] = min(value, stratum_of.get(group, value))
    groups: dict[str, list[str]] = defaultdict(list)
    for group, stratum in stratum_of.items():
        groups[stratum].append(group)
    chosen: set[str] = set()
    for members in groups.values():
        # Half up: `round` would go to the even number.
        count = math.floor(held_out * len(members) + 0.5)
        if held_out > 0 and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        # A hash order instead of a shuffle: adding prompts moves few of the others.
        members.sort(key=lambda group: (keyed_hash("split", seed, group), group))
        chosen.update(members[:count])
    train = [instruction for instruction in instructions if instruction.group not in chosen]
    held = [instruction for instruction in instructions if instruction.group in chosen]
    return train, held


def select(
    instructions: Sequence[Instruction], count: int, *, seed: int = 0, balance: str | None = None
) -> list[Instruction]:
    """Chooses `count` examples, as evenly as possible over the values of a key.

    Choices are nested: the 10 chosen examples are among the 20 chosen with the same seed.

    Args:
      instructions: the examples; the result keeps their order.
      count: number of examples to choose.
      seed: random seed.
      balance: a key of `meta`; all examples of a value with too few are chosen.

    Raises:
      UserError: if there are fewer than `count` examples, or one lacks the key.
    """
    if not 0 <= count <= len(instructions):
        raise UserError(f"cannot choose {count} of {len(instructions)} instructions")
    strata: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        strata[_stratum(instruction, balance)].append(place)
    ranked = []
    for stratum, places in strata.items():
        places.sort(key=lambda place: (_rank(instructions[place], seed), place))
        # The last round is cut, and a random order of the strata decides where.
        turn = keyed_hash("turn", seed, stratum)
        ranked += [(nth, turn, stratum, place) for nth, place in enumerate(places)]
    # Round-robin: each round takes one example of every stratum that has any left.
    ranked.sort()
    return [instructions[place] for place in sorted(row[-1] for row in ranked[:count])]


def match_lengths(
    instructions: Sequence[Instruction], count: int, *, key: str, seed: int = 0
) -> list[Instruction]:
    """Chooses examples so that groups are equal in number and their answers similar in length.

    All groups share one target distribution of lengths, the quantile-wise mean of their own (their
    Wasserstein barycentre); each takes the examples that together are nearest to it. A group with
    no more examples than its share gives all, whatever their length.

    Args:
      instructions: the examples; the result keeps their order.
      count: number of examples to choose.
      key: a key of `meta`; each of its values is a group, as in `select`.
      seed: random seed for choices among equally long answers.

    Raises:
      UserError: if there are fewer than `count` examples, or one lacks the key.
    """
    if not 0 <= count <= len(instructions):
        raise UserError(f"cannot choose {count} of {len(instructions)} instructions")
    groups: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        groups[_stratum(instruction, key)].append(place)
    words = np.array([word_count(example.completion) for example in instructions], np.float64)
    for places in groups.values():
        places.sort(key=lambda place: (words[place], _rank(instructions[place], seed), place))
    # Fair shares: from the smallest group on, each takes at most an equal share of the remainder.
    shares, left = {}, count
    for number, name in enumerate(sorted(groups, key=lambda name: (len(groups[name]), name))):
        shares[name] = min(len(groups[name]), left // (len(groups) - number))
        left -= shares[name]
    chosen: list[int] = []
    for name, places in groups.items():
        # The middles of equal parts of the distribution, one for each example to choose.
        at = (np.arange(shares[name]) + 0.5) / max(1, shares[name])
        # Groups that give all their examples cannot follow the target and do not define it.
        free = [other for other in groups if len(groups[other]) > shares[other]] or list(groups)
        aims = np.mean([np.quantile(words[groups[other]], at) for other in free], axis=0)
        chosen += [places[nth] for nth in _nearest(words[places], aims)]
    return [instructions[place] for place in sorted(chosen)]


def _nearest(values: np.ndarray, aims: np.ndarray) -> list[int]:
    """Indices of distinct values, in order, with the least total distance to the aims.

    Args:
      values: `[n]`, sorted.
      aims: `[m]`, sorted; m is at most n.
    """
    n, m = len(values), len(aims)
    # Dynamic programming; best[j, i]: least total for the first j aims from the first i values.
    best = np.full((m + 1, n + 1), np.inf)
    best[0] = 0.0
    for j, aim in enumerate(aims, start=1):
        best[j, 1:] = np.minimum.accumulate(best[j - 1, :-1] + np.abs(values - aim))
    # Back from the end, past every value that does not lower the total.
    chosen, i = [], n
    for j in range(m, 0, -1):
        while best[j, i - 1] == best[j, i]:
            i -= 1
        i -= 1
        chosen.append(i)
    return chosen[::-1]


def one_answer_each(
    instructions: Sequence[Instruction], *, words: float | None = None
) -> list[Instruction]:
    """Keeps one answer a prompt: the one with the length nearest to a common target.

    Args:
      instructions: the examples; the result keeps their order. Of two equally near ones the earlier
        is kept.
      words: target length in words; default: the median of all answers.
    """
    lengths = [word_count(example.completion) for example in instructions]
    if not lengths:
        return []
    aim = float(np.median(lengths)) if words is None else words
    best: dict[str, int] = {}
    for place, example in enumerate(instructions):
        other = best.setdefault(example.group, place)
        if abs(lengths[place] - aim) < abs(lengths[other] - aim):
            best[example.group] = place
    return [instructions[place] for place in sorted(best.values())]


def count_by(instructions: Iterable[Instruction], key: str) -> dict[str, int]:
    """Number of examples for each value of a key of `meta`, sorted by value."""
    counts: dict[str, int] = defaultdict(int)
    for instruction in instructions:
        counts[_stratum(instruction, key)] += 1
    return dict(sorted(counts.items()))


def _rank(instruction: Instruction, seed: int) -> int:
    texts: list[Hashable] = [text for message in instruction.messages for text in message]
    return keyed_hash("select", seed, *texts)


def _stratum(instruction: Instruction, key: str | None) -> str:
    if key is None:
        return ""
    if key not in instruction.meta:
        hint = did_you_mean(key, instruction.meta)
        raise UserError(f"an instruction has no {key!r} to group by{hint}")
    return str(instruction.meta[key])
