"""Contrastive explanation pairs about one place: why the user may like it, and why not.

The counterpart of `taste_pairs` with a pair for every candidate of a user. A prompt shows the
candidate in the format of the history, the same for every candidate.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.text.prompts.templates import register
from xrec_jax.text.records.profiles import PROFILES, VISITS
from xrec_jax.text.synthetic.grammar import with_article
from xrec_jax.text.synthetic.taste_pairs import TASTES, Pair, phrases

_TASK = "Say why this user may like the candidate below and why not"

CANDIDATE = register(
    dataclasses.replace(
        TASTES,
        name="candidate",
        body=(
            f"{_TASK}, from what they look for in a place and what they avoid.\n\n"
            "Visits, oldest first, and what the user wrote:\n{history}"
            "The user: {user}\nCandidate: {item}\n\n"
        ),
        user="{about}[[; lives in {home_district}]]",
        item="{mood}[[ {cuisine}]] {kind}, price {price}, {district}[[, {popularity}]]",
    )
)
_FILE = (
    f'{_TASK}: "Why: ..." and then "Why not: ...".\n\nSome places the user went to:\n{{history}}'
)
_SHOWN = "[[{title}: ]]{item_text}"

PROFILE_CANDIDATE = register(
    dataclasses.replace(
        PROFILES,
        name="profile_candidate",
        item=_SHOWN,
        body=f"{_FILE}About the user: {{user}}\nCandidate: {{item}}\n\n",
    )
)
VISIT_CANDIDATE = register(
    dataclasses.replace(
        VISITS, name="visit_candidate", item=_SHOWN, body=f"{_FILE}Candidate: {{item}}\n\n"
    )
)

_TASTES = ("kind", "cuisine", "mood")
NOTHING = Pair("nothing speaks for it.", "nothing speaks against it.")


def reason_pair(reasons: Mapping[str, Sequence[Mapping[str, Any]]]) -> Pair:
    """Words true reasons for and against one place so that `text.claims` can read them.

    Args:
      reasons: lists "for" and "against" of mappings `attribute`, `value` and `phrase`, strongest
        first, with the attributes of the planted world.

    Returns:
      For example "you like bars, quiet places; price level 2 suits your budget." and "you avoid
      Thai food.".
    """
    return Pair(
        _side(reasons["for"], "you like") or NOTHING.why,
        _side(reasons["against"], "you avoid") or NOTHING.why_not,
    )


def _side(reasons: Sequence[Mapping[str, Any]], verb: str) -> str:
    # Tastes are collected into one clause, in front of the others.
    tastes: dict[str, list[str]] = {}
    clauses = []
    for reason in reasons:
        if reason["attribute"] in _TASTES:
            tastes.setdefault(reason["attribute"], []).append(str(reason["value"]))
        else:
            clauses.append(_clause(reason, liked=verb == "you like"))
    if tastes:
        clauses.insert(0, f"{verb} {phrases(tastes)}")
    return "; ".join(clauses) + "." if clauses else ""


def _clause(reason: Mapping[str, Any], *, liked: bool) -> str:
    """Clause for a reason other than a taste."""
    attribute, value = reason["attribute"], str(reason["value"])
    if attribute == "price":
        off = "cheaper" if "cheaper" in reason["phrase"] else "pricier"
        return f"price level {value} {'suits your budget' if liked else f'is {off} than usual'}"
    if attribute == "distance":
        return f"it is {'closer to' if liked else 'farther from'} home than most"
    if attribute == "popularity":
        return f"it is {'more' if liked else 'less'} popular than most places"
    before = with_article(value)
    return f"it goes well after {before}" if liked else f"your last visit was to {before} too"
