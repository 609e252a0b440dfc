"""States of the `joint` stage from a file of texts about users and items.

Data of this kind are split beforehand and often have no times: a user's places are a set, several
are held out. So a training state asks about one training place and has all the others as its past.

What a prompt may show must not depend on what is held out, or its absence would tell. So texts are
cut by one rule for all (`joint.states.file_texts`), and the past of a state never holds its
target. Nothing of the target or of what is held out later can stand in a prompt but what a profile
itself says of it; how much that is, `evaluation.audit.profiles` measures. A template without a
profile ("visits") leaves profiles out of all texts and features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream
from xrec_jax.core.sections import read_section
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData, need_events
from xrec_jax.joint.states.base import TEST, TRAIN, VALID, JointStates, StatesConfig, check_template
from xrec_jax.joint.states.file_texts import Texts, far_places, read_states_file, vocabulary
from xrec_jax.text.bag_of_words import bag
from xrec_jax.text.prompts.render import select_history
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.profiles import addressed, both_sides
from xrec_jax.text.synthetic.grammar import listing
from xrec_jax.text.synthetic.taste_pairs import Pair, join_pair

_UNKNOWN = "nothing is known of what you avoid."


def file_states(config: Any, data: RunData) -> JointStates:
    """The states of a run on data with a file of texts.

    Only users who have a profile and a held-out event have states. The warm start's teachers are
    explanations of the file whose pair is a training event, at most `joint.sft.examples`. Such a
    file says why only. What an explanation puts behind "despite" becomes a reason why not; beside
    it stands one made by rule: whom a place is for that is not in the past and whose description
    shares the least words with the profile and with the places of the past, ties drawn by key. It
    is a guess of what is far from the user, no record of a dislike. Neither side names a place.

    Args:
      config: the whole config; read are `joint.states` and `joint.sft.examples`.
      data: of the run.

    Raises:
      UserError: the file is wrong (names its line), or nothing is left to train on.
    """
    need_events(data, "joint")
    cfg = read_section(StatesConfig, config.joint.states)
    if cfg.group:
        raise UserError(
            f"joint.states.group={cfg.group!r}: states from a file know no groups; set it to ''"
        )
    template = template_from(cfg.template)
    check_template(
        config,
        template,
        user="'profiles' or 'visits'",
        user_item="'profile_candidate' or 'visit_candidate'",
    )
    texts = Texts(data, read_states_file(config, data), profiles=bool(template.user))
    chosen = _chosen(texts, cfg.max_users)
    drawn = _Drawn.of(texts, chosen, train_states=cfg.train_states, min_history=cfg.min_history)
    pasts = [drawn.past(s) for s in range(len(drawn.user))]
    shown = [
        select_history([i for i in past.tolist() if i in texts.shown], latest=cfg.history)
        for past in pasts
    ]
    avoided = far_places(texts, drawn.user, pasts)
    why_not = [
        f"you may care less for places for {texts.audience[i]}." if i >= 0 else _UNKNOWN
        for i in avoided
    ]
    profiles = [texts.profile[int(u)] for u in drawn.user]
    teacher = _teacher(texts, drawn, why_not, config.joint.sft.examples)
    words = vocabulary(texts)
    item_features = np.zeros((data.dataset.num_items, len(words)), np.float32)
    for item, text in texts.item_text.items():
        item_features[item] = bag(text, words)
    return JointStates(
        user=drawn.user,
        before=drawn.history.lengths,
        target=drawn.target,
        part=drawn.part,
        history=drawn.history,
        prompts=[
            template.assemble(
                user=template.render_user({"profile": profile}) if template.user else "",
                item="",
                entries=[
                    template.render_entry(texts.shown[i], number)
                    for number, i in enumerate(items, start=1)
                ],
            )
            for profile, items in zip(profiles, shown, strict=True)
        ],
        teacher=teacher,
        planted=None,
        template=[
            join_pair(Pair(addressed(profile) or _liked(texts, items), no))
            for profile, items, no in zip(profiles, shown, why_not, strict=True)
        ],
        summary=[join_pair(Pair(_visited(texts, items), "")) for items in shown],
        features=_user_features(profiles, pasts, item_features, words),
        item_features=item_features,
        titles=texts.titles,
        item_texts=[texts.nameless.get(i, "") for i in range(data.dataset.num_items)],
        notes=_notes(texts, drawn, cfg, teacher),
    )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """States as `JointStates` has them."""

    user: np.ndarray
    target: np.ndarray
    part: np.ndarray
    history: Histories

    def past(self, state: int) -> np.ndarray:
        return self.history.items[self.history.start[state] : self.history.start[state + 1]]

    @classmethod
    def of(
        cls, texts: Texts, users: Sequence[int], *, train_states: int, min_history: int
    ) -> _Drawn:
        """States of users; training states whose explanation is known come first."""
        split, count = texts.data.split, texts.data.dataset.num_users
        known = {
            TRAIN: Histories.of([split.train], count),
            VALID: Histories.of([split.valid], count),
            TEST: Histories.of([split.test], count),
        }

        def of(part: int, user: int) -> np.ndarray:
            start = known[part].start
            return known[part].items[start[user] : start[user + 1]]

        taught: dict[int, list[int]] = {}
        for user, item in texts.taught:
            taught.setdefault(user, []).append(item)
        rows: list[tuple[int, int, int, np.ndarray]] = []
        learned = set(texts.data.learned.user.tolist())
        for user in users:
            if user not in learned:
                continue
            # In faulty data a held-out place may stand in training too: its audit says so.
            seen = _without(of(TRAIN, user), of(VALID, user), of(TEST, user))
            places = np.unique(seen)
            places = places[rng.permutation(rng.fold(0, Stream.SHARED_61, user), len(places))]
            places = places[np.argsort(~np.isin(places, taught.get(user, [])), kind="stable")]
            for target in places[:train_states]:
                past = seen[seen != target]
                if len(past) >= min_history:
                    rows.append((user, int(target), TRAIN, past))
        for part, earlier in ((VALID, (TRAIN,)), (TEST, (TRAIN, VALID))):
            for user in users:
                places = np.unique(of(part, user))
                if len(places):
                    past = np.concatenate([of(one, user) for one in earlier])
                    past = _without(past, *(of(one, user) for one in known if one >= part))
                    target = int(places[0]) if len(places) == 1 else -1
                    rows.append((user, target, part, past))
        if not any(part == TRAIN for _, _, part, _ in rows):
            raise UserError(
                f"joint: no user with a profile has {min_history} training events beside one that "
                "is explained; lower joint.states.min_history or set joint.states.train_states "
                "above 0"
            )
        pasts = [past for *_, past in rows]
        start = np.concatenate([[0], np.cumsum([len(past) for past in pasts])])
        return cls(
            np.array([row[0] for row in rows], np.int32),
            np.array([row[1] for row in rows], np.int32),
            np.array([row[2] for row in rows], np.int8),
            Histories(np.concatenate(pasts).astype(np.int32), start.astype(np.int64)),
        )


def _without(items: np.ndarray, *others: np.ndarray) -> np.ndarray:
    return items[~np.isin(items, np.concatenate(others))]


def _chosen(texts: Texts, most: int) -> list[int]:
    """Users with a profile and something held out, `most` of them drawn by key; 0: all."""
    split = texts.data.split
    held_out = np.concatenate([split.valid.user, split.test.user])
    users = np.intersect1d(texts.users, held_out)
    order = rng.permutation(rng.fold(0, Stream.SHARED_62), len(users))
    return sorted(users[order[: most or len(users)]].tolist())


def _teacher(texts: Texts, drawn: _Drawn, why_not: Sequence[str], count: int) -> dict[int, str]:
    """Good pairs of training states, `count` of them drawn by key."""
    rows = [
        (int(s), texts.taught[pair])
        for s in np.flatnonzero(drawn.part == TRAIN)
        if (pair := (int(drawn.user[s]), int(drawn.target[s]))) in texts.taught
    ]
    if len(rows) < count:
        raise UserError(
            f"joint.sft.examples={count}, but only {len(rows)} training states have an explanation "
            "in joint.states.path; lower it"
        )
    order = rng.permutation(rng.fold(0, Stream.FILE_TEACHERS), len(rows))[:count]
    made = {}
    for s, text in (rows[place] for place in sorted(order)):
        why, against = both_sides(texts.masks.mask(text, by="the place"))
        made[s] = join_pair(Pair(why, f"{against}; {why_not[s]}" if against else why_not[s]))
    return made


def _liked(texts: Texts, items: Sequence[int]) -> str:
    """What the places of the past are for, where there is no profile."""
    said = [texts.audience[i] for i in items if texts.audience[i]]
    return (
        f"you like places for {'; '.join(said)}." if said else "nothing is known of what you like."
    )


def _visited(texts: Texts, items: Sequence[int]) -> str:
    """What was visited, and no reason."""
    if not items:
        return "nothing is known of the places you went to."
    said = [texts.shown[i]["title"] or f"a place for {texts.audience[i]}".strip() for i in items]
    return f"you went to {listing([str(one) for one in said])}."


def _user_features(
    profiles: Sequence[str],
    pasts: Sequence[np.ndarray],
    items: np.ndarray,
    words: Mapping[str, int],
) -> np.ndarray:
    """Words of the profile, and the mean over the places of the past whose text is known."""
    made = {text: bag(text, words) for text in dict.fromkeys(profiles)}
    described = items.sum(axis=1) > 0
    features = np.zeros((len(profiles), 2 * len(words)), np.float32)
    for s, (profile, past) in enumerate(zip(profiles, pasts, strict=True)):
        features[s, : len(words)] = made[profile]
        known = past[described[past]]
        if len(known):
            features[s, len(words) :] = items[known].mean(axis=0)
    return features


def _notes(texts: Texts, drawn: _Drawn, cfg: Any, teacher: dict[int, str]) -> tuple[str, ...]:
    with_profile, ranked = len(texts.profile), len(np.unique(drawn.user))
    used = sum(
        any(item in texts.shown for item in drawn.past(s).tolist()) for s in range(len(drawn.user))
    )
    return (
        f"{with_profile} of {texts.data.dataset.num_users} users have a profile; {ranked} of them, "
        "with something held out, are explained",
        f"{len(texts.item_text)} of {texts.data.dataset.num_items} places are described, "
        f"{len(texts.item_text) - len(texts.shown)} of them as another place is and not shown; "
        f"{used} of {len(drawn.user)} prompts show a place",
        f"names of places were taken out of {texts.masked} profiles"
        if any(texts.profile.values())
        else "the prompt has no profile, so nothing is made of profiles",
        f"{len(teacher)} explanations of training events teach; what they say against a place is "
        "made by rule",
        "a training state's target is among the events its recommender was trained on",
    )
