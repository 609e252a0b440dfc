"""Shared beginnings of prompts, and the sizes that shapes are rounded up to."""

import jax
import numpy as np
import pytest

from xrec_jax.llm.generation.prefixes import bucket, common, groups


def random_prompts(seed):
    """Families with beginnings of many lengths, twins, and prompts that begin others."""
    rng = np.random.default_rng(seed)

    def words(size):
        return rng.integers(0, 3, size).tolist()

    prompts = [words(n) for n in rng.integers(1, 60, 7)]
    for length in (5, 15, 16, 17, 40):
        start = words(length)
        prompts += [start + words(n) for n in rng.integers(0, 30, 5)]
    prompts += [list(prompts[-1]), list(prompts[0]), prompts[-1] + words(20)]
    order = rng.permutation(len(prompts))
    return [prompts[i] for i in order if prompts[i]]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_groups(seed, share):
    prompts = random_prompts(seed)
    found = groups(prompts, share=share)
    held = [index for group in found for index in group.members]
    assert sorted(held) == list(range(len(prompts)))
    for group in found:
        starts = {tuple(prompts[i][: group.prefix]) for i in group.members}
        assert len(starts) == 1
        assert all(group.prefix < len(prompts[i]) for i in group.members)
        # A prefix that one prompt has to itself, or a short one, saves nothing.
        assert group.prefix == 0 or (group.prefix >= 16 and len(group.members) > 1)
    shared = [group for group in found if group.prefix]
    assert len({group.number for group in shared}) == len(shared)
    if share:
        assert len(shared) >= 2
    else:
        assert not shared


def test_what_is_shared_is_read_once():
    head, tail = list(range(100, 140)), [1, 2, 3]
    prompts = [[*head, n, *tail] for n in range(6)] + [[7, 8, 9]]
    (group, alone) = groups(prompts, share=True)
    assert (group.prefix, sorted(group.members)) == (40, [0, 1, 2, 3, 4, 5])
    assert (alone.prefix, alone.members) == (0, (6,))


def test_twins_keep_their_last_token():
    (group,) = groups([list(range(30))] * 3, share=True)
    assert group.prefix == 29


def test_a_long_prefix_is_not_given_up_for_a_short_one():
    """Three prompts share 60 tokens, a fourth only 16 of them: it would cost 88 and save 16."""
    head = list(range(60))
    prompts = [[*head, 70 + n] for n in range(3)] + [[*head[:16], 99, 99]]
    found = groups(prompts, share=True)
    assert [(g.prefix, sorted(g.members)) for g in found] == [(60, [0, 1, 2]), (0, [3])]


@pytest.mark.parametrize("seed", range(5))
def test_sharing_saves_what_it_says(seed):
    prompts = random_prompts(seed)
    saved = sum(g.prefix * (len(g.members) - 1) for g in groups(prompts, share=True))
    families = sum(len(p) for p in prompts)
    assert 0 < saved < families


def test_none_and_one():
    assert groups([], share=True) == [] == groups([], share=False)
    for share in (True, False):
        (group,) = groups([[4, 5]], share=share)
        assert (group.prefix, group.members) == (0, (0,))


def test_common():
    assert common([1, 2, 3], [1, 2, 4]) == 2
    assert common([1, 2], [1, 2, 4]) == 2
    assert common([], [1]) == 0 == common([2], [1])


def test_bucket_of_an_accelerator(monkeypatch):
    """Above 128 mostly multiples of 128, which its attention kernels need."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    sizes = {5: 16, 17: 24, 97: 128, 129: 192, 257: 384, 385: 512, 700: 768}
    assert {n: bucket(n) for n in sizes} == sizes


def test_bucket():
    sizes = [bucket(n) for n in range(1, 2000)]
    few = [16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640]
    assert sorted(set(sizes))[:16] == few
    assert all(size >= n for n, size in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    # Few shapes; never more than half as long again, and a quarter where it is long.
    assert len(set(sizes)) == 23
    assert all(size <= (1.5 if n < 128 else 1.25) * n for n, size in enumerate(sizes, 1) if n > 16)
