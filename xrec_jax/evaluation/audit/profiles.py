"""Checks of files of profiles: whether a text about a user tells which places are held out.

A profile that a language model wrote from all reviews of a user was written from those of held-out
places too. Words of such places stand in it, and who reads it reads the answer. Taste alone makes a
profile resemble places that the user will like, so its overlap with held-out places is compared
with three others: with training places, which the writer may know; of another user's profile with
the same held-out places, which is chance; and of the descriptions of the user's training places
with the held-out ones, which is taste without any leak.
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
    """Runs every check of this module.

    Args:
      rows: records of the file; their ids are in the data.
      dataset: the data.
      split: its parts.
      seed: of the draw of other users and of the intervals.
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
    """Held-out places among those that a profile describes best.

    An error where these are significantly more than taste and chance would give: the bootstrap
    interval of each difference, users drawn, lies above zero.
    """
    found = overlaps(texts, split, seed=seed)
    if not found:
        return None
    told = found["held_out"]
    sure = []
    for name in ("visits", "other"):
        difference = told.told.astype(float) - found[name].told
        low = estimate(difference, users=told.users, seed=seed)["low"]
        sure.append(low is not None and low > 0)
    pairs = texts.held_out(split)
    best = np.argsort(told.rank, kind="stable")[:MAX_EXAMPLES]
    trained = found["train"].said() if len(found["train"].users) else "none known"
    return Finding(
        code="profiles/tell_held_out",
        severity="error" if all(sure) else "info",
        count=int(told.told.sum()),
        total=len(told.told),
        message=f"Held-out places among the {TOP} of {len(texts.places):,} descriptions that share "
        f"most words with the user's profile: {told.said()} of them, training places {trained}; "
        f"with another user's profile {found['other'].said()}, with the descriptions of the user's "
        f"training places instead of a profile {found['visits'].said()}."
        + (" The profiles were written with held-out places in view." if all(sure) else ""),
        advice=_NO_LEAK,
        examples=tuple(f"{texts.named_pair(pairs[row])}: rank {told.rank[row]}" for row in best),
    )


def _grams(text: str) -> set[tuple[str, ...]]:
    """Runs of words that say something: with two content words at least."""
    words = [word.casefold() for word in spelt_words(text)]
    runs = zip(*(words[start:] for start in range(_PHRASE)), strict=False)
    return {run for run in runs if len(content_words(" ".join(run))) >= 2}


def repeats_held_out(texts: Texts, split: Split, *, seed: int = 0) -> Finding | None:
    """Held-out places whose description shares a phrase with the user's profile."""
    mine, theirs = ([_grams(text) for text in side] for side in (texts.profiles, texts.places))
    return _compared(
        texts,
        split,
        lambda user, place: bool(mine[user] & theirs[place]),
        code="profiles/repeat_held_out",
        seed=seed,
        advice=_NO_LEAK,
        what=f"Held-out places whose description shares {_PHRASE} words in a row with the user's "
        "profile",
    )


def names_held_out(texts: Texts, split: Split, *, seed: int = 0) -> Finding | None:
    """Held-out places whose title stands in the user's profile."""
    names = [normal_title(title) for title in texts.titles]
    return _compared(
        texts,
        split,
        lambda user, place: names[place] in texts.named[user],
        code="profiles/name_held_out",
        seed=seed,
        what="Held-out places whose name stands in the user's profile (names in the file only)",
        advice="Take the names of all places out of profiles, as the joint stage does.",
    )


def _compared(
    texts: Texts,
    split: Split,
    holds: Callable[[int, int], bool],
    *,
    code: str,
    what: str,
    advice: str,
    seed: int,
) -> Finding | None:
    """A finding on held-out pairs for which something holds, beside training and chance."""
    trains, held_out, other = texts.pairs(split.train), texts.held_out(split), texts.another(seed)
    if not len(held_out):
        return None
    told, trained = (np.array([holds(u, i) for u, i in p.tolist()]) for p in (held_out, trains))
    drawn = np.array([holds(int(other[user]), place) for user, place in held_out.tolist()])
    low = estimate(told.astype(float) - drawn, users=held_out[:, 0], seed=seed)["low"]
    return Finding(
        code=code,
        severity="warning" if low is not None and low > 0 else "info",
        count=int(told.sum()),
        total=len(told),
        message=f"{what}: {percent(told.sum(), len(told))}; of training places "
        f"{percent(trained.sum(), len(trained))}, with another user's profile "
        f"{percent(drawn.sum(), len(drawn))}.",
        advice=advice,
        examples=tuple(texts.named_pair(pair) for pair in held_out[told][:MAX_EXAMPLES]),
    )


def explains_held_out(texts: Texts, split: Split) -> Finding:
    """Records whose pair of user and place is held out, or in no part at all."""
    mine = [(texts.users[row.user], texts.items[row.item]) for row in texts.rows]
    parts = {part: set(map(tuple, texts.pairs(getattr(split, part)).tolist())) for part in _PARTS}
    held_out = [pair for pair in mine if pair in parts["valid"] or pair in parts["test"]]
    counts = ", ".join(f"{part} {sum(pair in parts[part] for pair in mine):,}" for part in _PARTS)
    nowhere = sum(not any(pair in found for found in parts.values()) for pair in mine)
    return Finding(
        code="profiles/explain_held_out",
        severity="warning",
        count=len(held_out),
        total=len(mine),
        message="Records whose explanation is of a held-out event: whoever learns from them has "
        f"read the answer ({counts}, in no part {nowhere:,}).",
        advice="Tune on the records of the training part only: the joint stage does.",
        examples=tuple(texts.named_pair(np.array(pair)) for pair in held_out[:MAX_EXAMPLES]),
    )


def users_in_some_parts(texts: Texts, split: Split) -> Finding:
    """Users with a profile who lack training, validation or test events."""
    ids = {str(name): row for row, name in enumerate(texts.dataset.user_ids)}
    rows = np.array([ids[user] for user in texts.users], np.int64)
    count = texts.dataset.num_users
    there = np.stack(
        [np.bincount(getattr(split, part).user, minlength=count)[rows] > 0 for part in _PARTS]
    )
    sets: Counter[str] = Counter(
        " and ".join(part for part, has in zip(_PARTS, column, strict=True) if has) or "no part"
        for column in there.T
    )
    users = list(texts.users)
    return Finding(
        code="profiles/users_in_some_parts",
        severity="info",
        count=int((~there.all(axis=0)).sum()),
        total=len(users),
        message="Users with a profile who are not in every part ("
        + ", ".join(f"{name} {number:,}" for name, number in sets.most_common())
        + f"); {count - len(users):,} of {plural(count, 'user')} have no profile.",
        advice="Report how many users were explained, and figures on these users beside those on "
        "all.",
        examples=tuple(
            f"user {users[u]}" for u in np.flatnonzero(~there.all(axis=0))[:MAX_EXAMPLES]
        ),
    )


def repeated_records(texts: Texts) -> Finding:
    """Records whose pair of user and place came before."""
    counts = Counter((row.user, row.item) for row in texts.rows)
    again = {pair: number for pair, number in counts.items() if number > 1}
    return Finding(
        code="profiles/repeated_records",
        severity="warning",
        count=sum(again.values()) - len(again),
        total=len(texts.rows),
        message="Records of a user and a place that an earlier record has too.",
        advice="Keep one of each.",
        examples=tuple(f"user {user}, item {item}" for user, item in list(again)[:MAX_EXAMPLES]),
    )


def shared_texts(texts: Texts) -> Finding:
    """Profiles and descriptions that stand for several users or places."""
    profiles = {row.user: row.profile for row in texts.rows}
    places = {row.item: row.item_text for row in texts.rows}
    same = [_copies(found.values()) for found in (profiles, places)]
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
