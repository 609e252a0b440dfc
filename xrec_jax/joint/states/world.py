"""States of the planted world: prompts with reviews, true tastes, and controls made by rule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import Stream
from xrec_jax.core.sections import read_section
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.data.world.world import World
from xrec_jax.joint.states.base import (
    TRAIN,
    JointStates,
    StatesConfig,
    check_template,
    chosen_states,
)
from xrec_jax.tasks.prompting import Prompting
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.synthetic.grammar import listing, with_article
from xrec_jax.text.synthetic.taste_pairs import Pair, join_pair, phrases, taste_pair, values_of

_ATTRIBUTES = {"kind": 2, "cuisine": 2, "mood": 2}  # values that a text names at most
_PLAIN = ("kind", "cuisine", "mood", "price", "district", "popularity")


def world_states(config: Any, data: RunData) -> JointStates:
    """The states of a run on the planted world.

    Raises:
      UserError: if the data is no world, or leaves nothing to explain.
    """
    need_world(data, "joint.states.source")
    world, cfg = data.world, read_section(StatesConfig, config.joint.states)
    assert world is not None
    template = template_from(cfg.template)
    check_template(config, template, user="'tastes'", user_item="'candidate'")
    if "{about}" in template.user and not world.about:
        raise UserError(
            f"joint.states.template={cfg.template!r} shows what users say of themselves, but "
            "data.world.about_share=0 lets them say nothing; set it above 0"
        )
    count = data.dataset.num_users
    users = rng.permutation(rng.fold(0, Stream.WORLD_STATES), count)[: cfg.max_users or count]
    user, before, target, part, history = chosen_states(
        data,
        train_states=cfg.train_states,
        min_history=cfg.min_history,
        reach=cfg.reach,
        users=sorted(int(u) for u in users),
    )
    prompting = Prompting(data, cfg.template, history=cfg.history)
    tastes = world.tastes_at(user, before)
    pasts = [history.items[history.start[s] : history.start[s + 1]] for s in range(len(user))]
    groups, group = _groups(cfg.group, data, user)
    stated = _stated(world, prompting, user, pasts)
    return JointStates(
        user=user,
        before=before,
        target=target,
        part=part,
        history=history,
        prompts=[_prompt(prompting, int(u), past) for u, past in zip(user, pasts, strict=True)],
        # Where candidates are explained, these are the states whose cases teach.
        teacher=_teacher(
            config.joint.sft.examples,
            user,
            part,
            stated if config.joint.sft.teacher == "stated" else tastes,
            each=config.joint.candidates if template.item else 1,
        ),
        planted=[_planted(one) for one in tastes],
        stated=[join_pair(taste_pair(one["likes"], one["dislikes"])) for one in stated],
        template=[_by_rule(prompting, past) for past in pasts],
        summary=[_summary(prompting, past[-cfg.history :]) for past in pasts],
        features=_user_features(prompting, user, history),
        item_features=_one_hot(prompting.items, _PLAIN),
        titles=[str(row["name"]) for row in prompting.items],
        item_texts=[_item_text(row) for row in prompting.items],
        groups=groups,
        group=group,
    )


def _prompt(prompting: Prompting, user: int, past: np.ndarray) -> str:
    template, reviews = prompting.template, prompting.data.dataset.reviews
    rows = past[-prompting.latest :].tolist()
    entries = [
        template.render_entry({**prompting.items[i], "review": reviews.get((user, i))}, number)
        for number, i in enumerate(rows, start=1)
    ]
    profile = template.render_user(prompting.user(user) or {}) if template.user else ""
    return template.assemble(user=profile, item="", entries=entries)


def _stated(
    world: World, prompting: Prompting, user: np.ndarray, pasts: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """The tastes that prompts state, in the form of `World.tastes_at`.

    A teacher who tells what no prompt shows would teach to guess.
    """
    rendered, template = [], prompting.template
    for u, past in zip(user.tolist(), pasts, strict=True):
        own = [world.about[u]] if world.about and "{about}" in template.user else []
        latest = past[-prompting.latest :].tolist() if "{review}" in template.entry else []
        shown = [world.reviews.get((u, i)) for i in latest]
        facts = [fact for one in (*own, *shown) if one for fact in one.facts]
        rendered.append(
            {
                key: values_of(fact for fact in facts if fact[2] is liked)
                for key, liked in (("likes", True), ("dislikes", False))
            }
        )
    return rendered


def _teacher(
    count: int, user: np.ndarray, part: np.ndarray, tastes: Sequence[Any], *, each: int = 1
) -> dict[int, str]:
    """Tastes in words, for training states of users drawn by key, one each.

    As many states as `count` texts need where every state has `each` of them.
    """
    needed = -(-count // each)
    rows = np.flatnonzero(part == TRAIN)
    last = {int(user[row]): int(row) for row in rows}  # the latest training state of each
    order = rng.permutation(rng.fold(0, Stream.WORLD_TEACHERS), len(last))
    chosen = np.array(list(last.values()))[order][:needed]
    if len(chosen) < needed:
        raise UserError(
            f"joint.sft.examples={count}, but only {len(chosen)} users have a training state"
        )
    return {
        int(s): join_pair(taste_pair(tastes[s]["likes"], tastes[s]["dislikes"])) for s in chosen
    }


def _planted(tastes: Any) -> dict[str, list[dict[str, str]]]:
    """Tastes in the form of planted reasons."""
    return {
        side: [
            {"attribute": name, "value": value, "phrase": f"{verb} {value}"}
            for name, taste in tastes[key].items()
            for value in taste
        ]
        for side, key, verb in (("for", "likes", "likes"), ("against", "dislikes", "dislikes"))
    }


def _by_rule(prompting: Prompting, past: np.ndarray) -> str:
    """A pair from counts alone: what was visited most, and what is common but was never visited."""
    rows = [prompting.items[i] for i in past.tolist()]
    likes: dict[str, list[str]] = {}
    avoids: dict[str, list[str]] = {}
    for name, most in _ATTRIBUTES.items():
        seen = Counter(str(row[name]) for row in rows if row.get(name) not in (None, "none"))
        common = Counter(
            str(row[name]) for row in prompting.items if row.get(name) not in (None, "none")
        )
        likes[name] = [value for value, _ in seen.most_common(most)]
        avoids[name] = [value for value, _ in common.most_common() if value not in seen][:1]
    return join_pair(taste_pair(likes, avoids))


def _item_text(row: Mapping[str, Any]) -> str:
    """What a place is, in the words that tastes are written in."""
    return phrases({k: [str(row[k])] for k in _ATTRIBUTES if row.get(k) not in (None, "none")})


def _summary(prompting: Prompting, past: np.ndarray) -> str:
    """What was visited, and no reason."""
    places = []
    for i in past.tolist():
        row = prompting.items[i]
        words = [
            str(row[k]) for k in ("mood", "cuisine", "kind") if row.get(k) not in (None, "none")
        ]
        places.append(with_article(" ".join(words)))
    return join_pair(Pair(f"the last visits were to {listing(places)}.", ""))


def _one_hot(rows: Sequence[Any], columns: Sequence[str]) -> np.ndarray:
    """Columns of rows as 0 and 1: `[rows, values of all columns]` float32."""
    parts = []
    for name in columns:
        cells = np.array([str(row.get(name)) for row in rows])
        parts.append(cells[:, None] == np.unique(cells))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _user_features(prompting: Prompting, user: np.ndarray, history: Histories) -> np.ndarray:
    """Shares of attribute values in the history, and the profile."""
    items = _one_hot(prompting.items, _PLAIN)
    running = np.zeros((len(history.items) + 1, items.shape[1]))
    np.cumsum(items[history.items], axis=0, out=running[1:])
    sums = running[history.start[1:]] - running[history.start[:-1]]
    shares = sums / np.maximum(history.lengths, 1)[:, None]
    table = prompting.users or []
    columns = [
        k for k in ("age_band", "gender", "occupation", "home_district") if table and k in table[0]
    ]
    profile = _one_hot(table, columns)[user] if columns else np.zeros((len(user), 0))
    return np.concatenate([shares, profile], axis=1).astype(np.float32)


def _groups(column: str, data: RunData, user: np.ndarray) -> tuple[tuple[str, ...], Any]:
    """Group names and each state's group by a column of the user table."""
    if not column:
        return (), None
    table = data.dataset.users
    if table is None or column not in table.columns:
        hint = "" if table is None else did_you_mean(column, table.columns)
        raise UserError(f"joint.states.group={column!r}: no such column of the user table{hint}")
    cells = np.array([str(cell) for cell in table[column].to_list()])
    names = np.unique(cells)
    return tuple(names.tolist()), np.searchsorted(names, cells)[user].astype(np.int32)
