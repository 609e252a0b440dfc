"""Grouping of prompts by shared prefixes, so that each prefix is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax

_WORTH = 16  # tokens; recomputing fewer costs less than a separate group


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts that are admitted together.

    Attributes:
      prefix: number of tokens that all members start with; 0 for none.
      members: indices of the prompts.
      number: identity of the group, kept when members leave.
    """

    prefix: int
    members: tuple[int, ...]
    number: int = 0


def bucket(length: int) -> int:
    """Rounds `length` up to 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, and so on.

    On a CPU, where padding costs more than another shape to compile, lengths above 128 are rounded
    by quarters: 160, 192, 224, 256, 320. Elsewhere multiples of 128 keep the attention kernels.
    """
    fine = jax.default_backend() == "cpu"
    size = 16
    while size < length:
        power = 1 << (size.bit_length() - 1)
        size += power // 4 if fine and size >= 128 else power // 2
    return size


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two prompts."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def groups(prompts: Sequence[Sequence[int]], *, share: bool) -> list[Group]:
    """Groups prompts by shared beginnings.

    Prompts are sorted, so those that share most are neighbours; a group grows while the tokens that
    a further member saves exceed those that the others lose by a shorter prefix.

    Args:
      prompts: token ids.
      share: False puts every prompt into one group without a prefix.

    Returns:
      Groups that together hold every prompt once. A prefix is shorter than each member: the last
      token of a prompt is always read with it.
    """
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    if not share:
        return [Group(0, tuple(range(len(prompts))))] if prompts else []
    result: list[Group] = []
    members: list[int] = []
    prefix = 0
    for index in order:
        # The last token is left out: its output predicts the first token of the answer.
        limit = len(prompts[index]) - 1
        if not members:
            members, prefix = [index], limit
            continue
        shared = min(common(prompts[members[-1]], prompts[index]), prefix, limit)
        loss = (prefix - shared) * (len(members) - 1)
        if shared >= _WORTH and shared > loss:
            members.append(index)
            prefix = shared
        else:
            result.append(_group(members, prefix))
            members, prefix = [index], limit
    if members:
        result.append(_group(members, prefix))
    # Prompts that share nothing form one group without a prefix.
    alone = tuple(i for group in result if not group.prefix for i in group.members)
    together = [group for group in result if group.prefix]
    numbered = [dataclasses.replace(group, number=n) for n, group in enumerate(together)]
    return numbered + ([Group(0, alone)] if alone else [])


def _group(members: list[int], prefix: int) -> Group:
    return Group(prefix if len(members) > 1 and prefix >= _WORTH else 0, tuple(members))
