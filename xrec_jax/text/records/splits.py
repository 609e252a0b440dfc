"""Splits of instruction sets that never leak a prompt, and balanced subsets: nested, or matched.

A model tuned on explanations learns their length too, and whose are long. `select` makes groups of
users equal in number; `match_lengths` makes their explanations equally long as well, where there is
enough to choose from; `one_answer_each` takes the choice of a long answer away from whoever made
the set.
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
    """Splits into (train, held out) so that no prompt stands on both sides.

    What is held out depends on the set of prompts and the seed, not on their order.

    Args:
      instructions: the set; both results keep its order.
      held_out: share of the prompts of each stratum, at least one where it has two or more.
      seed: of the draw.
      stratify: a key of `meta`; each of its values is a stratum. A prompt that has several counts
        for the first of them in order of text.

    Raises:
      UserError: where the share is not in [0, 1), or an example lacks the key.
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
        count = math.floor(held_out * len(members) + 0.5)
        if held_out > 0 and len(members) > 1:
            count = min(max(count, 1), len(members) - 1)
        members.sort(key=lambda group: (keyed_hash("split", seed, group), group))
        chosen.update(members[:count])
    train = [instruction for instruction in instructions if instruction.group not in chosen]
    held = [instruction for instruction in instructions if instruction.group in chosen]
    return train, held


def select(
    instructions: Sequence[Instruction], count: int, *, seed: int = 0, balance: str | None = None
) -> list[Instruction]:
    """Chooses `count` examples, as even as can be over the values of a key.

    Choices are nested: what is chosen for 10 is among what is chosen for 20 with the same seed.

    Args:
      instructions: the set; the result keeps its order.
      count: how many.
      seed: of the draw.
      balance: a key of `meta`; a value with too few examples gives all it has.

    Raises:
      UserError: where there are fewer than `count`, or an example lacks the key.
    """
    if not 0 <= count <= len(instructions):
        raise UserError(f"cannot choose {count} of {len(instructions)} instructions")
    strata: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        strata[_stratum(instruction, balance)].append(place)
    ranked = []
    for stratum, places in strata.items():
        places.sort(key=lambda place: (_rank(instructions[place], seed), place))
        turn = keyed_hash("turn", seed, stratum)
        ranked += [(nth, turn, stratum, place) for nth, place in enumerate(places)]
    # Round after round takes one of each stratum that still has some.
    ranked.sort()
    return [instructions[place] for place in sorted(row[-1] for row in ranked[:count])]


def match_lengths(
    instructions: Sequence[Instruction], count: int, *, key: str, seed: int = 0
) -> list[Instruction]:
    """Chooses examples so that groups are equal in number and their answers alike in length.

    All groups aim at one distribution of lengths, the mean of the groups' own (quantile by
    quantile: their barycentre on the line); each takes the examples that together come nearest to
    it. A group that has no more examples than are asked of it gives all, whatever their length.

    Args:
      instructions: the set; the result keeps its order.
      count: how many.
      key: of `meta`; each of its values is a group, as in `select`.
      seed: of the draw among equally long answers.

    Raises:
      UserError: where there are fewer than `count`, or an example lacks the key.
    """
    if not 0 <= count <= len(instructions):
        raise UserError(f"cannot choose {count} of {len(instructions)} instructions")
    groups: dict[str, list[int]] = defaultdict(list)
    for place, instruction in enumerate(instructions):
        groups[_stratum(instruction, key)].append(place)
    words = np.array([word_count(one.completion) for one in instructions], np.float64)
    for places in groups.values():
        places.sort(key=lambda place: (words[place], _rank(instructions[place], seed), place))
    # As even as can be: group after group in order of size takes its share of what is left.
    shares, left = {}, count
    for number, name in enumerate(sorted(groups, key=lambda name: (len(groups[name]), name))):
        shares[name] = min(len(groups[name]), left // (len(groups) - number))
        left -= shares[name]
    chosen: list[int] = []
    for name, places in groups.items():
        at = (np.arange(shares[name]) + 0.5) / max(1, shares[name])
        # Groups that have to give all cannot follow an aim, and do not set it.
        free = [other for other in groups if len(groups[other]) > shares[other]] or list(groups)
        aims = np.mean([np.quantile(words[groups[other]], at) for other in free], axis=0)
        chosen += [places[nth] for nth in _nearest(words[places], aims)]
    return [instructions[place] for place in sorted(chosen)]


def _nearest(values: np.ndarray, aims: np.ndarray) -> list[int]:
    """Places of different values, in order, that are nearest to the aims in sum.

    Args:
      values: `[n]`, sorted.
      aims: `[m]`, sorted; m is at most n.
    """
    n, m = len(values), len(aims)
    # best[j, i]: least sum for the first j aims from the first i values.
    best = np.full((m + 1, n + 1), np.inf)
    best[0] = 0.0
    for j, aim in enumerate(aims, start=1):
        best[j, 1:] = np.minimum.accumulate(best[j - 1, :-1] + np.abs(values - aim))
    found, i = [], n
    for j in range(m, 0, -1):
        while best[j, i - 1] == best[j, i]:
            i -= 1
        i -= 1
        found.append(i)
    return found[::-1]


def one_answer_each(
    instructions: Sequence[Instruction], *, words: float | None = None
) -> list[Instruction]:
    """Keeps one answer a prompt: the one whose length is nearest to one length for all.

    Args:
      instructions: the set; the result keeps its order. Of two as near the earlier stays.
      words: the length; default: the median of all answers.
    """
    lengths = [word_count(one.completion) for one in instructions]
    if not lengths:
        return []
    aim = float(np.median(lengths)) if words is None else words
    best: dict[str, int] = {}
    for place, one in enumerate(instructions):
        other = best.setdefault(one.group, place)
        if abs(lengths[place] - aim) < abs(lengths[other] - aim):
            best[one.group] = place
    return [instructions[place] for place in sorted(best.values())]


def count_by(instructions: Iterable[Instruction], key: str) -> dict[str, int]:
    """Number of examples for each value of a key of `meta`, sorted by value."""
    counts: dict[str, int] = defaultdict(int)
    for instruction in instructions:
        counts[_stratum(instruction, key)] += 1
    return dict(sorted(counts.items()))


def _rank(instruction: Instruction, seed: int) -> int:
    parts: list[Hashable] = [text for message in instruction.messages for text in message]
    return keyed_hash("select", seed, *parts)


def _stratum(instruction: Instruction, key: str | None) -> str:
    if key is None:
        return ""
    if key not in instruction.meta:
        hint = did_you_mean(key, instruction.meta)
        raise UserError(f"an instruction has no {key!r} to group by{hint}")
    return str(instruction.meta[key])
