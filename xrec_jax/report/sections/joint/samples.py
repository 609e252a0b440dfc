"""Texts of one user over the rounds, side by side, with the true reasons that they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.faithfulness.planted import agrees, planted_claims, world_vocabulary
from xrec_jax.report.html.markup import Html, escape, join, tag
from xrec_jax.report.html.numbers import percent
from xrec_jax.report.joint_files import Joint, Seed, number
from xrec_jax.text.claims.reader import read_claims
from xrec_jax.text.synthetic.taste_pairs import split_pair
from xrec_jax.text.words import word_count

_WHOLE = 4  # rounds that stand side by side without folding
_SIDES = (("for", "Why"), ("against", "Why not"))


def build(joint: Joint) -> Html | None:
    """A user's texts by round, chosen by seed and user; None where none was kept."""
    seeds = [seed for seed in joint.seeds if seed.samples]
    if not seeds:
        return None
    users = list(dict.fromkeys(str(r["user"]) for s in seeds for r in s.samples))
    cards = []
    for seed in seeds:
        for user in users:
            records = [r for r in seed.samples if str(r["user"]) == user]
            if records:
                cards.append(_user(seed, user, records))
    fields = [
        _field("joint-seed", "Seed", [(s.name, f"seed {s.name}") for s in seeds]),
        _field("joint-user", "User", [(user, f"user {user}") for user in users]),
    ]
    return tag(
        "div",
        # Hidden until the script runs: without it all texts stand there and a choice does nothing.
        tag("div", *fields, class_="tools two", id="joint-tools", hidden=True),
        tag("div", *cards, id="joint-samples"),
        tag(
            "p",
            "This seed has no texts of this user.",
            id="joint-nothing",
            class_="nothing",
            hidden=True,
        ),
    )


def _field(id_: str, label: str, options: Sequence[tuple[str, str]]) -> Html:
    chosen = tag("select", *(tag("option", text, value=value) for value, text in options), id=id_)
    return tag("div", tag("label", label, for_=id_), chosen, class_="field")


def _user(seed: Seed, user: str, records: Sequence[Mapping[str, Any]]) -> Html:
    last, best = records[-1], seed.best()
    planted = next((r["planted"] for r in reversed(records) if r.get("planted")), None)
    # All rounds if they are few, else the first, the best and the last, with a middle one if these
    # are only two.
    shown = list(range(len(records)))
    if len(records) > _WHOLE:
        at = [n for n, r in enumerate(records) if int(r["round"]) == best]
        shown = sorted({0, *at, len(records) - 1})
        if len(shown) < 3:
            shown = sorted({*shown, len(records) // 2})
    rest = [n for n in range(len(records)) if n not in shown]
    made = [_round(record, seed, best) for record in records]
    folded = None
    if rest:
        more = f"{len(rest)} rounds between" if len(rest) > 1 else "1 round between"
        folded = tag(
            "details",
            tag("summary", more),
            tag(
                "div",
                *(made[n] for n in rest),
                class_="strip",
                tabindex="0",
                role="region",
                aria_label=f"user {user}, seed {seed.name}: rounds between",
            ),
        )
    prompt = None
    if last.get("prompt"):
        prompt = tag(
            "details",
            tag("summary", "What the model was asked"),
            tag(
                "div",
                str(last["prompt"]),
                class_="prompt",
                tabindex="0",
                role="region",
                aria_label=f"prompt of user {user}",
            ),
        )
    title = f"User {user}, seed {seed.name}"
    return tag(
        "article",
        tag("header", tag("h3", title), tag("p", _part(last), class_="where")),
        _reasons("True reasons", planted) if planted else None,
        tag("div", *(made[n] for n in shown), class_="texts", style=f"--texts: {len(shown)}"),
        folded,
        prompt,
        class_="pair joint",
        data_seed=seed.name,
        data_user=user,
        aria_label=title,
    )


def _part(record: Mapping[str, Any]) -> str:
    return (
        f"{record['part']} user, never trained on"
        if record.get("part") == "valid"
        else str(record.get("part") or "")
    )


def _round(record: Mapping[str, Any], seed: Seed, best: int | None) -> Html:
    at, text = int(record["round"]), str(record["text"])
    name = f"Round {at}"
    notes = ["warm start"] if at == 0 else []
    notes += ["best"] if at == best and len(seed.rounds) > 1 else []
    if notes:
        name += f" ({', '.join(notes)})"
    pair = split_pair(text)
    parts = [
        tag("p", tag("b", label), " ", part or "(nothing)", class_=f"side {side}")
        for (side, label), part in zip(_SIDES, pair, strict=True)
    ]
    f1 = number(record.get("f1"))
    planted = record.get("planted") or {}
    right = named_reasons(text, planted)
    tally = [f"{sum(map(word_count, pair))} words"]
    if f1 is not None:
        tally.insert(0, f"F1 {percent(f1, 1)}")
    if planted:
        tally.append(f"{len(right)} of {len(_phrases(planted))} true reasons")
    return tag(
        "div",
        tag("h4", name),
        *parts,
        tag("p", ", ".join(tally), class_="tally"),
        _chips([_phrases(planted)[n] for n in right], f"True reasons given in round {at}")
        if right
        else None,
        class_=f"text {'k0' if at == best else 'k5'}",
    )


def _phrases(planted: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Side and words of every true reason, those for first."""
    phrases = []
    for side, _ in _SIDES:
        for reason in planted.get(side) or ():
            if isinstance(reason, Mapping):
                said = reason.get("phrase") or f"{reason.get('attribute')} {reason.get('value')}"
                phrases.append((side, str(said)))
            else:
                phrases.append((side, str(reason)))
    return phrases


def named_reasons(text: str, planted: Mapping[str, Any]) -> list[int]:
    """Places in `_phrases` of the true reasons that a text gives; not those in mere words."""
    claims = read_claims(text, world_vocabulary())
    sides = [(side, reason) for side, _ in _SIDES for reason in planted.get(side) or ()]
    right = []
    for place, (side, reason) in enumerate(sides):
        try:
            [true] = planted_claims({"for": [], "against": [], side: [reason]})
        except UserError:  # a reason in words alone cannot be compared
            continue
        if any(agrees(claim, true) for claim in claims):
            right.append(place)
    return right


def _reasons(title: str, planted: Mapping[str, Any]) -> Html | None:
    phrases = _phrases(planted)
    if not phrases:
        return None
    return tag("div", tag("h4", title), _chips(phrases, title), class_="reasons")


def _chips(phrases: Sequence[tuple[str, str]], label: str) -> Html:
    marks = [
        tag(
            "li",
            tag("span", "against: ", class_="hidden") if side == "against" else None,
            join([escape(said)]),
            class_=side,
        )
        for side, said in phrases
    ]
    return tag("ul", *marks, class_="chips", role="list", aria_label=label)
