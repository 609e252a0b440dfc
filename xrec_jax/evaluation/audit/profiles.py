"""Checks of profile files for leaks of held-out places.

A profile that a language model wrote from all reviews of a user was also written from those of
held-out places. It contains words about such places, and its readers learn the answer. Taste alone
makes a profile similar to places that the user will like, so its similarity to held-out places is
compared with three others: with training places, which the writer may know; of another user's
profile with the same held-out places, which is chance; and of the descriptions of the user's
training places with the held-out ones, which is taste without any leak.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from xrec_jax.data.dataset import Dataset, Split
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, percent, plural
from xrec_jax.evaluation.audit.nearness import TOP, Texts, overlaps
from xrec_jax.evaluation.statistics.intervals import estimate
from xrec_jax.text.records.profiles import PairText, content_words
from xrec_jax.text.titles.normal import normal_title
from xrec_jax.text.words import spelt_words

_PHRASE = 3  # words in a row
_PARTS = ("train", "valid", "test")
_NO_LEAK = (
    "Show a gain from these texts only beside the same run without profiles (joint.states.template="
    '"visits"), or have profiles written from training reviews alone.'
)


def profile_checks(
    rows: Sequence[PairText], dataset: Dataset, split: Split, *, seed: int = 0
) -> list[Finding | None]:
    """Runs all checks of this module.

    Args:
      rows: records of the file, with ids of the data.
      dataset: the data.
      split: split of its events.
      seed: seed of random other users and of the intervals.
    """
    texts = Texts(rows, dataset)
    return [
        tells_held_out(texts, split, seed=seed),
        repeats_held_out(texts, split, seed=seed),
        names_held_out(texts, split, seed=seed),
        explains_held_out(texts, split),
        users_in_some_parts(texts, split),
        repeated_records(texts),
        shared_texts(texts),
    ]


def tells_held_out(texts: Texts, split: Split, *, seed: int = 0) -> Finding | None:
    """Finds held-out places among those most similar to a profile.

    An error if there are significantly more of them than by taste and by chance: the bootstrap
    interval over users of each difference lies above zero.
    """
    overlap_of = overlaps(texts, split, seed=seed)
    if not overlap_of:
        return None
    held_out = overlap_of["held_out"]
    # Chance and mere taste make texts similar as well, so both controls must be exceeded.
    significant = []
    for name in ("visits", "other"):
        difference = held_out.in_top.astype(float) - overlap_of[name].in_top
        low = estimate(difference, users=held_out.users, seed=seed)["low"]
        significant.append(low is not None and low > 0)
    pairs = texts.held_out(split)
    best = np.argsort(held_out.rank, kind="stable")[:MAX_EXAMPLES]
    trained = overlap_of["train"].describe() if len(overlap_of["train"].users) else "none known"
    return Finding(
        code="profiles/tell_held_out",
        severity="error" if all(significant) else "info",
        count=int(held_out.in_top.sum()),
        total=len(held_out.in_top),
        message=f"Held-out places among the {TOP} of {len(texts.places):,} descriptions that share "
        f"most words with the user's profile: {held_out.describe()} of them, training places "
        f"{trained}; with another user's profile {overlap_of['other'].describe()}, with the "
        "descriptions of the user's training places instead of a profile "
        f"{overlap_of['visits'].describe()}."
        + (" The profiles were written with held-out places in view." if all(significant) else ""),
        advice=_NO_LEAK,
        examples=tuple(
            f"{texts.named_pair(pairs[row])}: rank {held_out.rank[row]}" for row in best
        ),
    )


def _grams(text: str) -> set[tuple[str, ...]]:
    """Runs of `_PHRASE` words with at least two content words."""
    words = [word.casefold() for word in spelt_words(text)]
    runs = zip(*(words[start:] for start in range(_PHRASE)), strict=False)
    # Runs of function words ("one of the") occur in texts about anything.
    return {run for run in runs if len(content_words(" ".join(run))) >= 2}


def repeats_held_out(texts: Texts, split: Split, *, seed: int = 0) -> Finding | None:
    """Finds held-out places whose description shares a phrase with the user's profile."""
    of_users, of_places = (
        [_grams(text) for text in side] for side in (texts.profiles, texts.places)
    )
    return _compared(
        texts,
        split,
        lambda user, place: bool(of_users[user] & of_places[place]),
        code="profiles/repeat_held_out",
        seed=seed,
        advice=_NO_LEAK,
        subject=f"Held-out places whose description shares {_PHRASE} words in a row with the "
        "user's profile",
    )


def names_held_out(texts: Texts, split: Split, *, seed: int = 0) -> Finding | None:
    """Finds held-out places whose title occurs in the user's profile."""
    names = [normal_title(title) for title in texts.titles]
    return _compared(
        texts,
        split,
        lambda user, place: names[place] in texts.named[user],
        code="profiles/name_held_out",
        seed=seed,
        subject="Held-out places whose name stands in the user's profile (names in the file only)",
        advice="Take the names of all places out of profiles, as the joint stage does.",
    )


def _compared(
    texts: Texts,
    split: Split,
    condition: Callable[[int, int], bool],
    *,
    code: str,
    subject: str,
    advice: str,
    seed: int,
) -> Finding | None:
    """Finding on held-out pairs that meet a condition, beside training pairs and chance."""
    # Training pairs show what the writer may know, another user's profile shows chance.
    trains, held_out, other = texts.pairs(split.train), texts.held_out(split), texts.another(seed)
    if not len(held_out):
        return None
    held, held_in_training = (
        np.array([condition(u, i) for u, i in p.tolist()]) for p in (held_out, trains)
    )
    held_by_other = np.array(
        [condition(int(other[user]), place) for user, place in held_out.tolist()]
    )
    # More than chance only if the interval of the difference, over users, is above zero.
    low = estimate(held.astype(float) - held_by_other, users=held_out[:, 0], seed=seed)["low"]
    return Finding(
        code=code,
        severity="warning" if low is not None and low > 0 else "info",
        count=int(held.sum()),
        total=len(held),
        message=f"{subject}: {percent(held.sum(), len(held))}; of training places "
        f"{percent(held_in_training.sum(), len(held_in_training))}, with another user's profile "
        f"{percent(held_by_other.sum(), len(held_by_other))}.",
        advice=advice,
        examples=tuple(texts.named_pair(pair) for pair in held_out[held][:MAX_EXAMPLES]),
    )


def explains_held_out(texts: Texts, split: Split) -> Finding:
    """Finds records whose pair of user and place is held out, or not in the data."""
    own_pairs = [(texts.users[row.user], texts.items[row.item]) for row in texts.rows]
    pairs_of = {
        split_name: set(map(tuple, texts.pairs(getattr(split, split_name)).tolist()))
        for split_name in _PARTS
    }
    held_out = [pair for pair in own_pairs if pair in pairs_of["valid"] or pair in pairs_of["test"]]
    counts = ", ".join(
        f"{split_name} {sum(pair in pairs_of[split_name] for pair in own_pairs):,}"
        for split_name in _PARTS
    )
    nowhere = sum(
        not any(pair in split_pairs for split_pairs in pairs_of.values()) for pair in own_pairs
    )
    return Finding(
        code="profiles/explain_held_out",
        severity="warning",
        count=len(held_out),
        total=len(own_pairs),
        message="Records whose explanation is of a held-out event: whoever learns from them has "
        f"read the answer ({counts}, in no part {nowhere:,}).",
        advice="Tune on the records of the training part only: the joint stage does.",
        examples=tuple(texts.named_pair(np.array(pair)) for pair in held_out[:MAX_EXAMPLES]),
    )


def users_in_some_parts(texts: Texts, split: Split) -> Finding:
    """Reports users with a profile but without training, validation or test events."""
    ids = {str(name): row for row, name in enumerate(texts.dataset.user_ids)}
    rows = np.array([ids[user] for user in texts.users], np.int64)
    count = texts.dataset.num_users
    present = np.stack(
        [
            np.bincount(getattr(split, split_name).user, minlength=count)[rows] > 0
            for split_name in _PARTS
        ]
    )
    sets: Counter[str] = Counter(
        " and ".join(split_name for split_name, has in zip(_PARTS, column, strict=True) if has)
        or "no part"
        for column in present.T
    )
    users = list(texts.users)
    return Finding(
        code="profiles/users_in_some_parts",
        severity="info",
        count=int((~present.all(axis=0)).sum()),
        total=len(users),
        message="Users with a profile who are not in every part ("
        + ", ".join(f"{name} {number:,}" for name, number in sets.most_common())
        + f"); {count - len(users):,} of {plural(count, 'user')} have no profile.",
        advice="Report how many users were explained, and figures on these users beside those on "
        "all.",
        examples=tuple(
            f"user {users[u]}" for u in np.flatnonzero(~present.all(axis=0))[:MAX_EXAMPLES]
        ),
    )


def repeated_records(texts: Texts) -> Finding:
    """Finds records that repeat a pair of user and place."""
    counts = Counter((row.user, row.item) for row in texts.rows)
    repeated = {pair: number for pair, number in counts.items() if number > 1}
    return Finding(
        code="profiles/repeated_records",
        severity="warning",
        count=sum(repeated.values()) - len(repeated),
        total=len(texts.rows),
        message="Records of a user and a place that an earlier record has too.",
        advice="Keep one of each.",
        examples=tuple(f"user {user}, item {item}" for user, item in list(repeated)[:MAX_EXAMPLES]),
    )


def shared_texts(texts: Texts) -> Finding:
    """Finds profiles and descriptions shared by several users or places."""
    profiles = {row.user: row.profile for row in texts.rows}
    places = {row.item: row.item_text for row in texts.rows}
    same = [_copies(by_id.values()) for by_id in (profiles, places)]
    # Branches of a chain have one name, so a join by name would mix up their texts.
    chains = _copies(normal_title(title) for title in texts.titles if title)
    return Finding(
        code="profiles/shared_texts",
        severity="info",
        count=sum(same),
        total=len(profiles) + len(places),
        message=f"Texts that another user ({same[0]:,} profiles) or place ({same[1]:,} "
        f"descriptions) has word for word: they cannot tell them apart. {chains:,} places share "
        "their name with another.",
        advice="Count a description once; do not join texts to places by name.",
    )


def _copies(texts: Iterable[str]) -> int:
    counts = Counter(texts)
    return sum(number for number in counts.values() if number > 1)
