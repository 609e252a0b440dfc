"""Checks of sets of prompts: what they recommend, show and repeat, and which were tuned on."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from xrec_jax.evaluation.audit.cases import Case, CaseIndex
from xrec_jax.evaluation.audit.data import gini
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, listing, percent, plural

_SERIOUS = 0.1  # share of a data set's prompts from which a known target is more than a slip
_FEW = 20  # prompts below which a distribution of items says nothing
_TOP_SHARE = 0.2  # of prompts that recommend one and the same item
_EFFECTIVE = 0.05  # effective number of items, as a share of what it could be


def check_prompts(cases: Sequence[Case], role: str) -> list[Finding | None]:
    """Runs every check of this module that needs one set only.

    Args:
      cases: the prompts.
      role: what the set is, for codes: "instructions", "prompts".
    """
    return [
        target_in_history(cases, role),
        of_another_dataset(cases, role),
        collapse(cases, role),
        unread(cases, role),
    ]


def short(text: str, width: int = 60) -> str:
    """A text in quotation marks, shortened."""
    return repr(textwrap.shorten(text, width, placeholder=" ..."))


def where(case: Case, place: int) -> str:
    """Such as `row 7 (mind)`, counted from 1."""
    return f"row {place + 1}" + (f" ({case.dataset})" if case.dataset else "")


def target_in_history(cases: Sequence[Case], role: str) -> Finding | None:
    """Prompts whose recommended title stands in the history that they show."""
    read = [(place, case) for place, case in enumerate(cases) if case.read]
    if not read:
        return None
    known = [(at, case) for at, case in read if case.target in case.shown and not case.unseen]
    sizes = Counter(case.dataset for _, case in read)
    hits = Counter(case.dataset for _, case in known)
    latest = Counter(case.dataset for _, case in known if case.shown[-1] == case.target)
    shares = [
        f"{name or 'all'}: {hits[name]:,} of {sizes[name]:,} ({percent(hits[name], sizes[name])}), "
        f"in {latest[name]:,} as the latest entry"
        for name in sorted(hits, key=lambda name: (-hits[name] / sizes[name], name))
    ][: MAX_EXAMPLES - 1]
    serious = any(hits[name] >= _SERIOUS * sizes[name] for name in hits)
    return Finding(
        code=f"{role}/target_in_history",
        severity="error" if serious else "warning",
        count=len(known),
        total=len(read),
        message="Prompts that recommend a title which stands in the history they show: the user "
        "knows it already, and an explanation may simply repeat it.",
        advice="Mask what a user has seen when recommending, by title too where one title has "
        "several ids; leave these prompts out of comparisons.",
        examples=(
            *shares,
            *(
                f"{where(case, place)}: {short(case.title)} is entry "
                f"{case.shown.index(case.target) + 1} of {len(case.shown)}"
                for place, case in known[: MAX_EXAMPLES - len(shares)]
            ),
        ),
    )


def of_another_dataset(cases: Sequence[Case], role: str) -> Finding | None:
    """Prompts laid out as those of another data set than the one that their row names."""
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        if case.dataset and case.read:
            used[case.dataset][case.template] += 1
    if len(used) < 2:
        return None
    home: dict[str, set[str]] = defaultdict(set)
    for name, counts in used.items():
        home[counts.most_common(1)[0][0]].add(name)
    strangers = [
        (place, case)
        for place, case in enumerate(cases)
        if case.dataset
        and case.read
        and case.dataset not in home.get(case.template, {case.dataset})
    ]
    return Finding(
        code=f"{role}/prompt_of_another_dataset",
        severity="error",
        count=len(strangers),
        total=sum(counts.total() for counts in used.values()),
        message="Rows whose prompt has the layout of another data set than the one they name.",
        advice="Find where rows and prompts were joined; drop these rows until then.",
        examples=tuple(
            f"{where(case, place)}: laid out as {listing(sorted(home[case.template]), 'or')}, "
            f"{short(case.text)}"
            for place, case in strangers[:MAX_EXAMPLES]
        ),
    )


def collapse(cases: Sequence[Case], role: str) -> Finding | None:
    """Recommenders that give nearly everybody the same few items; a prompt counts once."""
    groups: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in {(case.dataset, case.system, case.text): case for case in cases}.values():
        if case.read:
            groups[case.dataset, case.system].append(case)
    groups = {name: group for name, group in groups.items() if len(group) >= _FEW}
    if not groups:
        return None
    found = []
    for name, group in sorted(groups.items()):
        items = Counter(case.target for case in group)
        catalogue = len({title for case in group for title in (case.target, *case.shown)})
        counts = np.sort(np.array(list(items.values()), np.float64))
        share = counts / counts.sum()
        # The number of items that, all equally often, would be as uneven: exp of the entropy.
        effective = float(np.exp(-(share * np.log(share)).sum()))
        if share[-1] > _TOP_SHARE or effective < _EFFECTIVE * min(len(group), catalogue):
            top = items.most_common(1)[0][0]
            title = next(case.title for case in group if case.target == top)
            padded = np.concatenate([np.zeros(catalogue - len(counts)), counts])
            found.append(
                f"{', '.join(filter(None, name)) or 'all'}: {plural(len(items), 'item')} in "
                f"{len(group):,} prompts that show {catalogue:,} titles; {short(title, 40)} in "
                f"{percent(items[top], len(group))}; as uneven as {effective:.1f} equal items; "
                f"Gini {gini(padded):.2f}"
            )
    return Finding(
        code=f"{role}/recommendation_collapse",
        severity="warning",
        count=len(found),
        total=len(groups),
        message=f"Recommenders that give one item to more than {_TOP_SHARE:.0%} of the users, or "
        "few items to nearly all: explanations then speak of the same items again and again.",
        advice="Compare with the popularity baseline, and report figures by item as well.",
        examples=tuple(found[:MAX_EXAMPLES]),
    )


def unread(cases: Sequence[Case], role: str) -> Finding:
    """Prompts that could not be read, so that some checks pass over them."""
    rows = [(place, case) for place, case in enumerate(cases) if not case.read]
    return Finding(
        code=f"{role}/unread_prompts",
        severity="info",
        count=len(rows),
        total=len(cases),
        message="Prompts that no template reads: their item and history are not checked.",
        advice="Register their template (xrec_jax.text.prompts.templates.register) in a module "
        "that config.imports names.",
        examples=tuple(
            f"{where(case, place)}: {short(case.text)}" for place, case in rows[:MAX_EXAMPLES]
        ),
    )


def repeated(cases: Sequence[Case], role: str) -> Finding:
    """Prompts that stand in a set more than once."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, case in enumerate(cases):
        places[case.text].append(place)
    again = [rows for rows in places.values() if len(rows) > 1]
    return Finding(
        code=f"{role}/repeated_prompts",
        severity="info",
        count=sum(len(rows) - 1 for rows in again),
        total=len(cases),
        message="Prompts that are word for word an earlier one: they count twice in a mean.",
        advice="Keep one of each, or average over prompts first.",
        examples=tuple(
            f"rows {listing([str(row + 1) for row in rows])}: {short(cases[rows[0]].text)}"
            for rows in again[:MAX_EXAMPLES]
        ),
    )


def overlap(
    cases: Sequence[Case], others: Sequence[Case], role: str, other: str, *, tuned: bool = True
) -> Finding:
    """Prompts of one set that ask about the same recommendation as one of another set.

    Args:
      cases: what is trained on.
      others: what it is compared on, or another training set.
      role: what the first is.
      other: what the second is.
      tuned: whether figures on `others` are wrong if they share prompts.
    """
    index = CaseIndex(others)
    matches = [(place, index.find(case)) for place, case in enumerate(cases)]
    shared = [(place, found) for place, found in matches if found is not None]
    verbatim = sum(cases[place].text == others[found].text for place, found in shared)
    distinct = len({found for _, found in shared})
    sizes = Counter(case.dataset for case in cases)
    hits = Counter(cases[place].dataset for place, _ in shared)
    by_dataset = [f"{name}: {hits[name]:,} of {sizes[name]:,}" for name in sorted(hits) if name]
    return Finding(
        code=f"{role}/also_in_{other}",
        severity="error" if tuned else "warning",
        count=len(shared),
        total=len(cases),
        message=f"Prompts of the {role} that ask about a recommendation which the {other} ask "
        f"about too ({distinct:,} of {len(others):,} there), {verbatim:,} of them word for word; "
        "the same item, profile and latest history count, however the prompt is worded or cut.",
        advice=f"Leave these out of the {role} or out of the {other}; split by prompt before "
        "anything is tuned."
        if tuned
        else f"Split by prompt, so that {role} and {other} share none.",
        examples=(
            *by_dataset[: MAX_EXAMPLES - 1],
            *(
                f"{where(cases[place], place)} is {where(others[found], found)} there: "
                f"{short(cases[place].title or cases[place].text)}"
                for place, found in shared[: MAX_EXAMPLES - len(by_dataset[: MAX_EXAMPLES - 1])]
            ),
        ),
    )


def other_form(cases: Sequence[Case], others: Sequence[Case], role: str, other: str) -> Finding:
    """Prompts whose layout or history length the other set of the same data set does not have."""
    forms: dict[str, set[str]] = defaultdict(set)
    longest: dict[str, int] = defaultdict(int)
    mine: dict[str, int] = defaultdict(int)
    for group, most in ((others, longest), (cases, mine)):
        for case in group:
            if case.read:
                most[case.dataset] = max(most[case.dataset], len(case.history))
    for case in others:
        if case.read:
            forms[case.dataset].add(case.template)
    notes: dict[str, int] = defaultdict(int)
    rows = 0
    for case in cases:
        name = case.dataset
        if not case.read or name not in forms:
            continue
        reasons = []
        if case.template not in forms[name]:
            reasons.append(f"laid out as {case.template}, not {listing(sorted(forms[name]), 'or')}")
        if longest[name] > 1.5 * mine[name]:
            reasons.append(f"at most {mine[name]} history entries, there up to {longest[name]}")
        rows += bool(reasons)
        for reason in reasons:
            notes[f"{name or 'all'}: {reason}"] += 1
    return Finding(
        code=f"{role}/other_form_than_{other}",
        severity="info",
        count=rows,
        total=len(cases),
        message=f"Prompts of the {role} that differ in form from the {other} of their data set: a "
        "model is asked otherwise than it was tuned.",
        advice="Make both with the same template and the same number of history entries.",
        examples=tuple(f"{note} ({plural(n, 'row')})" for note, n in list(notes.items())[:5]),
    )
