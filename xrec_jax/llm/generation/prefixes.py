"""Which prompts share a beginning, so that it is read once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

_WORTH = 16  # tokens; reading fewer again costs less than a group of its own


@dataclasses.dataclass(frozen=True)
class Group:
    """Prompts that are admitted together.

    Attributes:
      prefix: tokens that all members start with; 0 for none.
      members: indices of the prompts.
      number: tells groups apart when members have left.
    """

    prefix: int
    members: tuple[int, ...]
    number: int = 0


def bucket(length: int) -> int:
    """The least of 16, 24, 32, 48, 64, 96, ... that holds `length`: few shapes, little padding."""
    size = 16
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size * 4 // 3
    return size


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two prompts start with in common."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def groups(prompts: Sequence[Sequence[int]], *, share: bool) -> list[Group]:
    """Groups prompts by shared beginnings.

    Prompts are sorted, so those that share most are neighbours; a group grows while its prefix is
    worth keeping: what a further member saves must exceed what the others lose by a shorter prefix.

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
    found: list[Group] = []
    members: list[int] = []
    prefix = 0
    for index in order:
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
            found.append(_group(members, prefix))
            members, prefix = [index], limit
    if members:
        found.append(_group(members, prefix))
    alone = tuple(i for group in found if not group.prefix for i in group.members)
    together = [group for group in found if group.prefix]
    numbered = [dataclasses.replace(group, number=n) for n, group in enumerate(together)]
    return numbered + ([Group(0, alone)] if alone else [])


def _group(members: list[int], prefix: int) -> Group:
    return Group(prefix if len(members) > 1 and prefix >= _WORTH else 0, tuple(members))
