"""Random numbers as pure functions of a key and a counter, and the names of their streams.

A training example is a function of (seed, epoch, row) and nothing else: not of the batch it falls
in, of the process that makes it, or of what was drawn before. That makes data order exact after a
resume and the same on any number of processes, without storing a permutation.
"""

from __future__ import annotations

import enum
import hashlib
import random

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@enum.unique
class Stream(enum.IntEnum):
    """Purposes of random keys: the second argument of `fold`, after a seed.

    The numbers belong to results: another number means other draws. A new purpose takes a new
    number. Three numbers served two purposes before they had names, and keep doing so until stored
    results may change: `SHARED_53`, `SHARED_61` and `SHARED_62`. Where their seeds are equal, their
    keys are equal, which is harmless as long as they permute or pick among different things.
    """

    NEGATIVES = 1  # negative items of an epoch
    WINDOWS = 2  # where a user's history is cut for sequential training
    ROWS = 3  # order of the rows of a text data set in an epoch
    PACKING = 4  # order in which windows are packed into training rows
    EXPLAINED_USERS = 41  # whose visits become instructions
    EXPLAINED_VISITS = 42  # which of a user's visits
    PRETRAIN_SPLIT = 43  # which texts are held out of pre-training
    WORLD_STATES = 51  # users of the world whose states joint training explains
    WORLD_TEACHERS = 52  # training states of the world with an explanation to learn from
    SHARED_53 = 53  # tracked validation users; compared prompts; uncited history entries
    TRAIN_SHARE = 54  # users whose events train the recommender, for `data.train_share`
    STATE_SPLIT = 55  # users whose training states are rolled out
    CANDIDATE_TEACHERS = 56  # candidates with an explanation to learn from
    SHARED_61 = 61  # sampling seeds of explanations; places of file states; the fused batches
    SHARED_62 = 62  # users of file states; users of the stage `explain`
    FILE_TEACHERS = 63  # training states of a file with an explanation to learn from
    FAR_PLACES = 64  # which of the least similar places a text speaks against
    EXPLANATIONS = 71  # tokens of the explanations that the recommender reads
    ROLLOUTS = 72  # tokens of the answers that the policy learns from
    ROLLOUT_ORDER = 73  # training states that a round answers
    ROLLOUT_OTHERS = 74  # whose text each rollout is compared with
    REFRESH_ORDER = 75  # which of the oldest cached explanations are renewed
    SHUFFLED_CONTROL = 76  # whose text a user gets in the control `shuffled`
    HELD_OUT_OTHERS = 77  # whose text each held-out text is compared with
    AUDIT_PAIRS = 81  # other users that an audited profile is compared with


def _mix(x: np.ndarray) -> np.ndarray:
    """Finaliser of SplitMix64 (Steele, Lea and Flood, 2014): uint64 -> uint64."""
    x = (x ^ (x >> np.uint64(30))) * _MIX_1
    x = (x ^ (x >> np.uint64(27))) * _MIX_2
    return x ^ (x >> np.uint64(31))


def fold(key: int, *data: int) -> int:
    """Derives a key from `key` and integers, as `jax.random.fold_in` does."""
    state = np.array([key], np.uint64)
    for value in data:
        state = _mix(state * _GOLDEN + np.array([value], np.uint64) + _GOLDEN)
    return int(state[0])


def random_bits(key: int, counter: np.ndarray) -> np.ndarray:
    """Uniform uint64 words, one for each integer in `counter` (any shape)."""
    counter = np.asarray(counter, np.uint64)
    start = np.array([key], np.uint64)  # an array, because NumPy warns when a scalar wraps around
    return _mix(_mix(counter * _GOLDEN + start) + start * _MIX_1)


def random_uniform(key: int, counter: np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1), one for each number in `counter`."""
    # The upper 53 bits fill a float64 mantissa exactly.
    return (random_bits(key, counter) >> np.uint64(11)) * 2.0**-53


def random_integers(key: int, counter: np.ndarray, high: int | np.ndarray) -> np.ndarray:
    """Uniform int64 in [0, high), one for each number in `counter`; `high` below 2**32.

    Uses the high half of a product (Lemire, 2019); the bias is below `high` / 2**32.
    """
    words = random_bits(key, counter) >> np.uint64(32)
    return ((words * np.asarray(high, np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutation(key: int, size: int) -> np.ndarray:
    """A random order of `range(size)`: int64 `[size]`."""
    return np.random.Generator(np.random.Philox(key=key)).permutation(size)


def keyed_hash(*key: object) -> int:
    """Hashes a key to 64 bits; the same on every machine and in every process."""
    # Joined by the unit separator, so that ("ab", "c") and ("a", "bc") differ.
    text = "\x1f".join(str(field) for field in key)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def keyed_random(*key: object) -> random.Random:
    """An independent random generator for a key."""
    return random.Random(keyed_hash(*key))
