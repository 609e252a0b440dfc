"""What the sources of the `joint` stage say of cases: a state with one of its candidates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from xrec_jax.data.run_data import RunData
from xrec_jax.data.world.reasons import Reasons
from xrec_jax.joint.states.base import JointStates
from xrec_jax.joint.states.candidates import CaseTexts, drawn_teachers
from xrec_jax.joint.states.file_texts import Texts, read_states_file
from xrec_jax.tasks.prompting import Prompting
from xrec_jax.text.prompts.render import select_history
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.profiles import content_words
from xrec_jax.text.synthetic.grammar import listing
from xrec_jax.text.synthetic.item_pairs import NOTHING, reason_pair
from xrec_jax.text.synthetic.taste_pairs import Pair, join_pair, phrases, split_pair

_ATTRIBUTES = ("kind", "cuisine", "mood")
_WORDS = 5  # that a text made by rule takes from a description
Writer = Callable[[np.ndarray, np.ndarray], CaseTexts]


def _pasts(states: JointStates) -> list[np.ndarray]:
    history = states.history
    return [history.items[history.start[s] : history.start[s + 1]] for s in range(len(states))]


def world_writer(config: Any, data: RunData, states: JointStates) -> Writer:
    """Prompts, true reasons and controls of pairs of the planted world.

    The teacher states the world's reasons for and against the pair in its state. Teaching cases are
    drawn from all cases of the states that teach: whether a candidate is the target plays no part.
    """
    cfg, world = config.joint.states, data.world
    assert world is not None
    prompting = Prompting(data, cfg.template, history=cfg.history)
    template, reviews = prompting.template, data.dataset.reviews
    pasts = _pasts(states)
    # An item reads the same in every prompt, and a state's history in all of its cases.
    shown = [template.render_item(row) for row in prompting.items]

    def history_of(s: int) -> tuple[str, list[str]]:
        user = int(states.user[s])
        rows = pasts[s][-prompting.latest :].tolist()
        entries = [
            template.render_entry({**prompting.items[i], "review": reviews.get((user, i))}, number)
            for number, i in enumerate(rows, start=1)
        ]
        profile = template.render_user(prompting.user(user) or {}) if template.user else ""
        return profile, entries

    def write(state: np.ndarray, candidate: np.ndarray) -> CaseTexts:
        known = {s: history_of(s) for s in np.unique(state).tolist()}
        true = world.reasons(states.user[state], candidate, states.before[state])
        planted = [_planted(one) for one in true]
        said = [join_pair(reason_pair(one)) for one in planted]
        teaching = drawn_teachers(
            np.flatnonzero(np.isin(state, sorted(states.teacher))), config.joint.sft.examples
        )
        pairs = list(zip(state.tolist(), candidate.tolist(), strict=True))
        return CaseTexts(
            prompts=[
                template.assemble(user=known[s][0], item=shown[i], entries=known[s][1])
                for s, i in pairs
            ],
            teacher={int(case): said[case] for case in teaching},
            planted=planted,
            said=said,
            template=[
                _by_counts(prompting.items[i], [prompting.items[k] for k in pasts[s].tolist()])
                for s, i in pairs
            ],
            summary=[states.summary[s] for s, _ in pairs],
        )

    return write


def _planted(true: Reasons) -> dict[str, list[dict[str, str]]]:
    """Reasons of the world as plain values."""
    return {
        side: [
            {"attribute": one.attribute, "value": str(one.value), "phrase": one.phrase}
            for one in reasons
        ]
        for side, reasons in (("for", true.for_), ("against", true.against))
    }


def _by_counts(item: Any, past: list[Any]) -> str:
    """A pair from counts alone: what of an item was visited before, and what never was."""
    likes: dict[str, list[str]] = {}
    avoids: dict[str, list[str]] = {}
    for name in _ATTRIBUTES:
        value = item.get(name)
        if value not in (None, "none"):
            seen = Counter(row.get(name) for row in past)
            (likes if seen[value] else avoids)[name] = [str(value)]
    liked, avoided = phrases(likes), phrases(avoids)
    return join_pair(
        Pair(
            f"you like {liked}." if liked else NOTHING.why,
            f"you avoid {avoided}." if avoided else NOTHING.why_not,
        )
    )


def file_writer(config: Any, data: RunData, states: JointStates) -> Writer:
    """Prompts and controls of pairs whose users and items a file describes.

    Such a file explains visits alone, so only the cases of training targets teach: how to write,
    and not what a candidate is worth. A candidate without a description of its own is shown as
    unknown.
    """
    template = template_from(config.joint.states.template)
    texts = Texts(data, read_states_file(config, data), profiles=bool(template.user))
    latest = config.joint.states.history
    pasts = _pasts(states)
    blank = {"title": None, "item_text": None}
    shown = [template.render_item(texts.shown.get(i, blank)) for i in range(len(texts.titles))]
    spoken = {i: set(content_words(text)) for i, text in texts.item_text.items()}

    def history_of(s: int) -> tuple[str, list[str], set[str]]:
        profile = texts.profile.get(int(states.user[s]), "")
        rows = select_history([i for i in pasts[s].tolist() if i in texts.shown], latest=latest)
        entries = [
            template.render_entry(texts.shown[i], number) for number, i in enumerate(rows, start=1)
        ]
        words = set(content_words(profile)).union(*(spoken.get(i, set()) for i in rows))
        user = template.render_user({"profile": profile}) if template.user else ""
        return user, entries, words

    def write(state: np.ndarray, candidate: np.ndarray) -> CaseTexts:
        known = {s: history_of(s) for s in np.unique(state).tolist()}
        pairs = list(zip(state.tolist(), candidate.tolist(), strict=True))
        teacher = {
            case: states.teacher[s]
            for case, (s, i) in enumerate(pairs)
            if s in states.teacher and i == states.target[s]
        }
        return CaseTexts(
            prompts=[
                template.assemble(user=known[s][0], item=shown[i], entries=known[s][1])
                for s, i in pairs
            ],
            teacher=teacher,
            planted=None,
            said=None,
            template=[_by_words(texts, i, known[s][2], states.template[s]) for s, i in pairs],
            summary=[states.summary[s] for s, _ in pairs],
        )

    return write


def _by_words(texts: Texts, item: int, known: set[str], pair: str) -> str:
    """A pair from words alone: what a description shares with what is known of the user."""
    words = list(dict.fromkeys(content_words(texts.item_text.get(item, ""))))
    shared = [word for word in words if word in known][:_WORDS]
    strange = [word for word in words if word not in known][:_WORDS]
    why = f"it has what you know: {listing(shared)}." if shared else NOTHING.why
    other = f"it has what you do not know: {listing(strange)}." if strange else ""
    return join_pair(Pair(why, other or split_pair(pair).why_not or NOTHING.why_not))


WRITERS = {"world": world_writer, "file": file_writer}
