"""Checks of prompts: recommended items, layouts, repetitions, and overlap with training sets."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from xrec_jax.evaluation.audit.contents import ContentIndex, PromptContent
from xrec_jax.evaluation.audit.data import gini
from xrec_jax.evaluation.audit.findings import MAX_EXAMPLES, Finding, listing, percent, plural

_SERIOUS = 0.1  # share of a data set's prompts from which a known target is an error
_FEW = 20  # number of prompts below which a distribution of items says nothing
_TOP_SHARE = 0.2  # of prompts that recommend one and the same item
_EFFECTIVE = 0.05  # effective number of items, as a share of what it could be


def check_prompts(prompts: Sequence[PromptContent], role: str) -> list[Finding | None]:
    """Runs all checks of this module for a single set.

    Args:
      prompts: prompts of the set.
      role: name of the set, for codes: "instructions", "prompts".
    """
    return [
        target_in_history(prompts, role),
        of_another_dataset(prompts, role),
        collapse(prompts, role),
        unread(prompts, role),
    ]


def short(text: str, width: int = 60) -> str:
    """Shortens a text and puts it in quotation marks."""
    return repr(textwrap.shorten(text, width, placeholder=" ..."))


def where(prompt: PromptContent, place: int) -> str:
    """Formats as `row 7 (mind)`, counted from 1."""
    return f"row {place + 1}" + (f" ({prompt.dataset})" if prompt.dataset else "")


def target_in_history(prompts: Sequence[PromptContent], role: str) -> Finding | None:
    """Finds prompts whose recommended title is in the history that they show."""
    read = [(place, prompt) for place, prompt in enumerate(prompts) if prompt.read]
    if not read:
        return None
    known = [
        (at, prompt) for at, prompt in read if prompt.target in prompt.shown and not prompt.unseen
    ]
    sizes = Counter(prompt.dataset for _, prompt in read)
    hits = Counter(prompt.dataset for _, prompt in known)
    latest = Counter(prompt.dataset for _, prompt in known if prompt.shown[-1] == prompt.target)
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
                f"{where(prompt, place)}: {short(prompt.title)} is entry "
                f"{prompt.shown.index(prompt.target) + 1} of {len(prompt.shown)}"
                for place, prompt in known[: MAX_EXAMPLES - len(shares)]
            ),
        ),
    )


def of_another_dataset(prompts: Sequence[PromptContent], role: str) -> Finding | None:
    """Finds prompts with the layout of another data set than the one their row names."""
    used: dict[str, Counter[str]] = defaultdict(Counter)
    for prompt in prompts:
        if prompt.dataset and prompt.read:
            used[prompt.dataset][prompt.template] += 1
    if len(used) < 2:
        return None
    home: dict[str, set[str]] = defaultdict(set)
    for name, counts in used.items():
        # The layout of most of a data set's rows is taken for its own.
        home[counts.most_common(1)[0][0]].add(name)
    strangers = [
        (place, prompt)
        for place, prompt in enumerate(prompts)
        if prompt.dataset
        and prompt.read
        and prompt.dataset not in home.get(prompt.template, {prompt.dataset})
    ]
    return Finding(
        code=f"{role}/prompt_of_another_dataset",
        severity="error",
        count=len(strangers),
        total=sum(counts.total() for counts in used.values()),
        message="Rows whose prompt has the layout of another data set than the one they name.",
        advice="Find where rows and prompts were joined; drop these rows until then.",
        examples=tuple(
            f"{where(prompt, place)}: laid out as {listing(sorted(home[prompt.template]), 'or')}, "
            f"{short(prompt.text)}"
            for place, prompt in strangers[:MAX_EXAMPLES]
        ),
    )


def collapse(prompts: Sequence[PromptContent], role: str) -> Finding | None:
    """Finds recommenders that give nearly all users the same few items."""
    groups: dict[tuple[str, str], list[PromptContent]] = defaultdict(list)
    # Equal prompts count once.
    for prompt in {
        (prompt.dataset, prompt.system, prompt.text): prompt for prompt in prompts
    }.values():
        if prompt.read:
            groups[prompt.dataset, prompt.system].append(prompt)
    groups = {name: group for name, group in groups.items() if len(group) >= _FEW}
    if not groups:
        return None
    descriptions = []
    for name, group in sorted(groups.items()):
        items = Counter(prompt.target for prompt in group)
        catalogue = len({title for prompt in group for title in (prompt.target, *prompt.shown)})
        counts = np.sort(np.array(list(items.values()), np.float64))
        share = counts / counts.sum()
        # Effective number of items: as many equally frequent ones have the same entropy.
        effective = float(np.exp(-(share * np.log(share)).sum()))
        if share[-1] > _TOP_SHARE or effective < _EFFECTIVE * min(len(group), catalogue):
            top = items.most_common(1)[0][0]
            title = next(prompt.title for prompt in group if prompt.target == top)
            # Titles that are never recommended count as zeros, else few items would look balanced.
            padded = np.concatenate([np.zeros(catalogue - len(counts)), counts])
            descriptions.append(
                f"{', '.join(filter(None, name)) or 'all'}: {plural(len(items), 'item')} in "
                f"{len(group):,} prompts that show {catalogue:,} titles; {short(title, 40)} in "
                f"{percent(items[top], len(group))}; as uneven as {effective:.1f} equal items; "
                f"Gini {gini(padded):.2f}"
            )
    return Finding(
        code=f"{role}/recommendation_collapse",
        severity="warning",
        count=len(descriptions),
        total=len(groups),
        message=f"Recommenders that give one item to more than {_TOP_SHARE:.0%} of the users, or "
        "few items to nearly all: explanations then speak of the same items again and again.",
        advice="Compare with the popularity baseline, and report figures by item as well.",
        examples=tuple(descriptions[:MAX_EXAMPLES]),
    )


def unread(prompts: Sequence[PromptContent], role: str) -> Finding:
    """Reports prompts that could not be read, which some checks skip."""
    rows = [(place, prompt) for place, prompt in enumerate(prompts) if not prompt.read]
    return Finding(
        code=f"{role}/unread_prompts",
        severity="info",
        count=len(rows),
        total=len(prompts),
        message="Prompts that no template reads: their item and history are not checked.",
        advice="Register their template (xrec_jax.text.prompts.templates.register) in a module "
        "that config.imports names.",
        examples=tuple(
            f"{where(prompt, place)}: {short(prompt.text)}" for place, prompt in rows[:MAX_EXAMPLES]
        ),
    )


def repeated(prompts: Sequence[PromptContent], role: str) -> Finding:
    """Reports prompts that a set contains more than once."""
    places: dict[str, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        places[prompt.text].append(place)
    duplicates = [rows for rows in places.values() if len(rows) > 1]
    return Finding(
        code=f"{role}/repeated_prompts",
        severity="info",
        count=sum(len(rows) - 1 for rows in duplicates),
        total=len(prompts),
        message="Prompts that are word for word an earlier one: they count twice in a mean.",
        advice="Keep one of each, or average over prompts first.",
        examples=tuple(
            f"rows {listing([str(row + 1) for row in rows])}: {short(prompts[rows[0]].text)}"
            for rows in duplicates[:MAX_EXAMPLES]
        ),
    )


def overlap(
    prompts: Sequence[PromptContent],
    others: Sequence[PromptContent],
    role: str,
    other: str,
    *,
    tuned: bool = True,
) -> Finding:
    """Finds prompts of one set that ask about the same recommendation as one of another set.

    Args:
      prompts: a training set.
      others: an evaluation set, or another training set.
      role: name of the first set.
      other: name of the second set.
      tuned: whether results on `others` are wrong if the sets share prompts.
    """
    index = ContentIndex(others)
    matches = [(place, index.find(prompt)) for place, prompt in enumerate(prompts)]
    shared = [(place, match) for place, match in matches if match is not None]
    verbatim = sum(prompts[place].text == others[match].text for place, match in shared)
    distinct = len({match for _, match in shared})
    sizes = Counter(prompt.dataset for prompt in prompts)
    hits = Counter(prompts[place].dataset for place, _ in shared)
    by_dataset = [f"{name}: {hits[name]:,} of {sizes[name]:,}" for name in sorted(hits) if name]
    return Finding(
        code=f"{role}/also_in_{other}",
        severity="error" if tuned else "warning",
        count=len(shared),
        total=len(prompts),
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
                f"{where(prompts[place], place)} is {where(others[match], match)} there: "
                f"{short(prompts[place].title or prompts[place].text)}"
                for place, match in shared[: MAX_EXAMPLES - len(by_dataset[: MAX_EXAMPLES - 1])]
            ),
        ),
    )


def other_form(
    prompts: Sequence[PromptContent], others: Sequence[PromptContent], role: str, other: str
) -> Finding:
    """Reports prompts with a layout or history length unlike those of the other set."""
    forms: dict[str, set[str]] = defaultdict(set)
    longest: dict[str, int] = defaultdict(int)
    own: dict[str, int] = defaultdict(int)
    # The longest history of each set shows how many entries its prompts were cut to.
    for group, most in ((others, longest), (prompts, own)):
        for prompt in group:
            if prompt.read:
                most[prompt.dataset] = max(most[prompt.dataset], len(prompt.history))
    for prompt in others:
        if prompt.read:
            forms[prompt.dataset].add(prompt.template)
    notes: dict[str, int] = defaultdict(int)
    rows = 0
    for prompt in prompts:
        name = prompt.dataset
        if not prompt.read or name not in forms:
            continue
        reasons = []
        if prompt.template not in forms[name]:
            reasons.append(
                f"laid out as {prompt.template}, not {listing(sorted(forms[name]), 'or')}"
            )
        # Slightly shorter histories may be chance, as users differ.
        if longest[name] > 1.5 * own[name]:
            reasons.append(f"at most {own[name]} history entries, there up to {longest[name]}")
        rows += bool(reasons)
        for reason in reasons:
            notes[f"{name or 'all'}: {reason}"] += 1
    return Finding(
        code=f"{role}/other_form_than_{other}",
        severity="info",
        count=rows,
        total=len(prompts),
        message=f"Prompts of the {role} that differ in form from the {other} of their data set: a "
        "model is asked otherwise than it was tuned.",
        advice="Make both with the same template and the same number of history entries.",
        examples=tuple(f"{note} ({plural(n, 'row')})" for note, n in list(notes.items())[:5]),
    )
