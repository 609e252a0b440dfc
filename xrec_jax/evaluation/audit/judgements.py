"""Checks of judgements that a judge is trained on or evaluated with."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from xrec_jax.evaluation.audit.comparisons import Judgement, groups_of, systems_of
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, listing, percent, plural
from xrec_jax.evaluation.audit.prompts import short

_UNEVEN = 0.6  # share of one label
_COPY = 0.9  # share of a group's comparisons in another one, from which it is a copy
_GAIN = 0.02  # share by which a guess from the pair must beat the constant answer


def check_judgements(
    judgements: Sequence[Judgement], written: Mapping[tuple[str, str], str] | None = None
) -> list[Finding | None]:
    """Runs all checks of this module.

    Args:
      judgements: judgements of one file, in its order.
      written: see `comparisons.systems_of`.
    """
    groups = groups_of(judgements)
    systems = systems_of(judgements, groups, written)
    return [
        label_imbalance(judgements),
        pair_prior(judgements, groups, systems),
        fixed_position(judgements, groups, systems),
        group_copies(judgements, groups),
        uneven_comparisons(judgements, groups),
        contradictory_labels(judgements),
        equal_texts(judgements),
    ]


def label_imbalance(judgements: Sequence[Judgement]) -> Finding:
    """Reports the share of the more frequent label if it is uneven."""
    label, count = Counter(judgement.better for judgement in judgements).most_common(1)[0]
    total = len(judgements)
    # Three standard deviations of a fair coin, as few rows may be uneven by chance.
    uneven = count > _UNEVEN * total and count - total / 2 > 1.5 * total**0.5
    by_dataset: dict[str, Counter[int]] = defaultdict(Counter)
    for judgement in judgements:
        by_dataset[judgement.dataset][judgement.better] += 1
    return Finding(
        code="judgements/label_imbalance",
        severity="warning",
        count=count if uneven else 0,
        total=total,
        message=f"Rows in which text {label} is the better one: a judge that always answers "
        f"{label} is right in {percent(count, total)}, and learns a prior on the position.",
        advice="Show every pair in both orders, in training and in judging; put the constant "
        "answer beside every accuracy.",
        examples=tuple(
            f"{name or 'all'}: {labels[label]:,} of {labels.total():,} "
            f"({percent(labels[label], labels.total())})"
            for name, labels in sorted(by_dataset.items())[:MAX_EXAMPLES]
        ),
    )


def pair_prior(
    judgements: Sequence[Judgement],
    groups: Sequence[Sequence[int]],
    systems: Sequence[tuple[str, str] | None],
) -> Finding:
    """Reports labels that can be guessed from the compared systems, without reading a text.

    A row's label is guessed as the most frequent one among the other rows of its pair of systems
    (or of its group, if systems are unknown), so that no row guesses itself.
    """
    total = len(judgements)
    all_labels = Counter(judgement.better for judgement in judgements)
    counts: dict[object, Counter[int]] = defaultdict(Counter)
    key_of: list[object] = [None] * total
    for number, (rows, pair) in enumerate(zip(groups, systems, strict=True)):
        key = number if pair is None else (judgements[rows[0]].dataset, pair)
        for row in rows:
            key_of[row] = key
            counts[key][judgements[row].better] += 1

    # Ties between a pair's labels are decided by the labels of all other rows.
    right = 0
    for row, judgement in enumerate(judgements):
        others = counts[key_of[row]] - Counter([judgement.better])
        fallback = all_labels - Counter([judgement.better])
        best = max(
            fallback, key=lambda label: (others[label], fallback[label]), default=judgement.better
        )
        right += best == judgement.better
    constant = max(all_labels.values())
    # More than the noise of as many guesses, and enough to matter.
    informative = right - constant > max(_GAIN * total, total**0.5 / 2)
    certain = sum(max(labels.values()) == labels.total() for labels in counts.values())
    lopsided = sorted(counts.items(), key=lambda item: -max(item[1].values()) / item[1].total())
    return Finding(
        code="judgements/pair_prior",
        severity="warning",
        count=right if informative else 0,
        total=total,
        message=f"Labels guessed right from the pair of systems alone ({percent(right, total)}; "
        f"the constant answer {percent(constant, total)}); in {certain} of {len(counts)} pairs all "
        "labels are the same. A judge can score as much without reading.",
        advice="Put this prior beside the accuracy of every judge; collect pairs whose winner is "
        "open, and hide who wrote a text.",
        examples=tuple(
            f"{_pair_name(key)}: {labels.most_common(1)[0][0]} in {max(labels.values())} of "
            f"{labels.total()}"
            for key, labels in lopsided[:MAX_EXAMPLES]
        ),
    )


def _pair_name(key: object) -> str:
    if isinstance(key, tuple):
        dataset, (first, second) = key
        named = not dataset or first.startswith(dataset) or second.startswith(dataset)
        return f"{'' if named else dataset + ': '}{first} before {second}"
    return f"group {int(str(key)) + 1}"


def fixed_position(
    judgements: Sequence[Judgement],
    groups: Sequence[Sequence[int]],
    systems: Sequence[tuple[str, str] | None],
) -> Finding | None:
    """Finds comparisons of systems that are shown in one order only."""
    orders = [
        (judgements[row].dataset, *pair)
        for rows, pair in zip(groups, systems, strict=True)
        if pair is not None
        for row in rows
    ]
    return shown_in_one_order(orders, "judgements") if orders else None


def shown_in_one_order(orders: Sequence[tuple[str, str, str]], role: str) -> Finding:
    """Finds comparisons of two systems that never occur in the other order.

    Args:
      orders: data set, system shown first and system shown second of each row.
      role: name of the rows, for codes.
    """
    present = Counter(orders)
    fixed = [row for row in orders if (row[0], row[2], row[1]) not in present]
    places: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for dataset, first, second in orders:
        places[dataset, first]["first"] += 1
        places[dataset, second]["second"] += 1
    always = [
        f"{name}{f' ({dataset})' if dataset and dataset not in name else ''} stands {place} in all "
        f"of its {plural(count, 'comparison')}"
        for (dataset, name), counter in sorted(places.items())
        if len(counter) == 1
        for place, count in counter.items()
    ]
    return Finding(
        code=f"{role}/fixed_position",
        severity="warning",
        count=len(fixed),
        total=len(orders),
        message="Comparisons of two systems that are shown in one order only: whoever prefers a "
        "position prefers a system, and a win ratio cannot tell the two apart.",
        advice="Judge every pair in both orders and count a win only where they agree, else a tie.",
        examples=tuple(always[:MAX_EXAMPLES]),
    )


def group_copies(judgements: Sequence[Judgement], groups: Sequence[Sequence[int]]) -> Finding:
    """Finds groups whose comparisons are also in another group."""
    # In the same order only: the same pairs in reverse are what fair judging requires.
    labels = [
        {
            (judgements[row].prompt.text, judgements[row].first, judgements[row].second): (
                judgements[row].better
            )
            for row in rows
        }
        for rows in groups
    ]
    holders: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for number, own in enumerate(labels):
        for shown_as in own:
            holders[shown_as].append(number)
    # Only groups that share a comparison are compared: all pairs of groups would be too many.
    common = Counter(
        (first_group, second_group)
        for numbers in holders.values()
        for place, first_group in enumerate(numbers)
        for second_group in numbers[place + 1 :]
    )
    copies, shown = set(), []
    for (first_group, second_group), count in sorted(common.items()):
        if count < _COPY * min(len(labels[first_group]), len(labels[second_group])) or count < 2:
            continue
        # The smaller group counts as the copy.
        copies.add(
            first_group if len(labels[first_group]) <= len(labels[second_group]) else second_group
        )
        agree = sum(
            label == labels[second_group].get(key) for key, label in labels[first_group].items()
        )
        first, second = (
            _rows(judgements, groups[number]) for number in (first_group, second_group)
        )
        shown.append(f"{first} and {second}: {count} comparisons in common, {agree} labels agree")
    return Finding(
        code="judgements/group_copies",
        severity="error",
        count=len(copies),
        total=len(groups),
        message="Groups of rows that compare the same texts on the same prompts as another group: "
        "one of the two was probably meant to hold something else.",
        advice="Find what the copy should have been; until then drop it, and split so that both "
        "stand on one side.",
        examples=tuple(shown[:MAX_EXAMPLES]),
    )


def _rows(judgements: Sequence[Judgement], rows: Sequence[int]) -> str:
    name = judgements[rows[0]].dataset
    return f"rows {rows[0] + 1:,} to {rows[-1] + 1:,}{f' ({name})' if name else ''}"


def uneven_comparisons(
    judgements: Sequence[Judgement], groups: Sequence[Sequence[int]]
) -> Finding | None:
    """Finds data sets with too few groups beside others with too many.

    Applies only to groups of similar length, which suggest a grid of data sets and comparisons.
    """
    by_dataset: dict[str, list[Sequence[int]]] = defaultdict(list)
    for rows in groups:
        by_dataset[judgements[rows[0]].dataset].append(rows)
    sizes = {len(rows) for rows in groups}
    if len(by_dataset) < 2 or len(groups) % len(by_dataset) or 2 * min(sizes) < max(sizes):
        return None
    due = len(groups) // len(by_dataset)
    lacking = {name: due - len(own) for name, own in by_dataset.items() if len(own) < due}
    shown = [
        f"{name}: {plural(len(own), 'group')} instead of {due}, {sum(map(len, own)):,} rows"
        for name, own in by_dataset.items()
        if len(own) != due
    ]
    if lacking:
        shown += _apart(judgements)
    return Finding(
        code="judgements/uneven_groups",
        severity="error",
        count=sum(lacking.values()),
        total=len(groups),
        message="Groups that a data set lacks while another has as many too many: prompts of the "
        "one seem to stand in the place of the other's.",
        advice="Check where prompts were joined to comparisons; take the missing ones as unknown "
        "and weight data sets equally.",
        examples=tuple(shown[:MAX_EXAMPLES]),
    )


def _apart(judgements: Sequence[Judgement]) -> list[str]:
    """Describes data sets with separated runs of rows, and the data sets in between."""
    runs: list[list[int]] = []
    for row, judgement in enumerate(judgements):
        if runs and judgements[runs[-1][-1]].dataset == judgement.dataset:
            runs[-1].append(row)
        else:
            runs.append([row])
    shown = []
    for name in dict.fromkeys(judgement.dataset for judgement in judgements):
        own = [place for place, run in enumerate(runs) if judgements[run[0]].dataset == name]
        for before, after in itertools.pairwise(own):
            between = [judgements[run[0]].dataset for run in runs[before + 1 : after]]
            shown.append(
                f"{_rows(judgements, runs[before])} stand apart from "
                f"{_rows(judgements, runs[after])}; {listing(between)} between them"
            )
    return shown


def contradictory_labels(judgements: Sequence[Judgement]) -> Finding:
    """Finds comparisons judged more than once, with different winners."""
    verdicts: dict[tuple[str, frozenset[str]], list[int]] = defaultdict(list)
    for row, judgement in enumerate(judgements):
        # A text has no winner against itself; `equal_texts` counts these rows.
        if judgement.first != judgement.second:
            verdicts[judgement.pair].append(row)
    repeated = [rows for rows in verdicts.values() if len(rows) > 1]
    split = [rows for rows in repeated if len({judgements[row].winner for row in rows}) > 1]
    return Finding(
        code="judgements/contradictory_labels",
        severity="warning",
        count=len(split),
        total=len(repeated),
        message="Comparisons that are judged more than once and not alike: "
        f"{percent(len(split), len(repeated))} of the repeated ones. No judge can agree with more "
        "than one side of them.",
        advice="Report this disagreement as the ceiling of any judge's accuracy; keep ties.",
        examples=tuple(
            f"rows {listing([f'{row + 1:,}' for row in rows])}: {short(judgements[rows[0]].first)}"
            for rows in split[:MAX_EXAMPLES]
        ),
    )


def equal_texts(judgements: Sequence[Judgement]) -> Finding:
    """Finds comparisons of a text with itself."""
    rows = [row for row, judgement in enumerate(judgements) if judgement.first == judgement.second]
    return Finding(
        code="judgements/equal_texts",
        severity="warning",
        count=len(rows),
        total=len(judgements),
        message="Comparisons of a text with itself: their label says something of the position.",
        advice="Count them as ties.",
        examples=tuple(
            f"row {row + 1:,}: {short(judgements[row].first)}" for row in rows[:MAX_EXAMPLES]
        ),
    )
