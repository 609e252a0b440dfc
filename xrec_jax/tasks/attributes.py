"""Questions for the `attributes` stage, from a run's tables or a file, split by user."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import keyed_hash
from xrec_jax.core.sections import read_section
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.evaluation.attributes import check_disjoint
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.tasks.prompting import Prompting
from xrec_jax.text.prompts import layout as layouts
from xrec_jax.text.prompts.render import select_history
from xrec_jax.text.records.attribute_prompts import ask, check_no_leak, question_template, without
from xrec_jax.text.records.attribute_questions import read_questions, without_users
from xrec_jax.text.records.attributes import Attribute, Question, Value, infer, split_by_user

STAGE = "attributes"
_MIN_VISITS = 4  # of a user in a question: a history, and a place to recommend


@dataclasses.dataclass(frozen=True)
class AttributesConfig:
    """Source and split of the questions: keys of the config section `attributes`.

    Attributes:
      source: "world" or "file".
      path: JSONL file of the source "file".
      only: keys of the attributes to read from the file; empty for all.
      entry: template of a history entry in the file's prompts.
      held_out: share of users to evaluate on.
      valid: share of the remaining users to select the adapter by.
      examples: number of training questions; 0 for all.
      evaluated: number of held-out questions to evaluate; 0 for all.
      user: columns of the user table to ask for.
      item: columns of the item table to ask for.
      profile: columns of the user table to show.
      template: template of the prompts.
      history: number of history entries in a prompt.
      max_prompt_tokens: token budget of a prompt; 0 for none.
    """

    source: str
    path: str
    only: Sequence[str]
    entry: str
    held_out: float
    valid: float
    examples: int
    evaluated: int
    user: Sequence[str]
    item: Sequence[str]
    profile: Sequence[str]
    template: Any
    history: int
    max_prompt_tokens: int


class Questions(NamedTuple):
    """Questions of a run, split by user.

    Attributes:
      train: training questions.
      valid: questions that select the adapter, of other users.
      held_out: questions to evaluate, of yet other users.
      malformed: number of completions of a file that cannot be used.
      notes: messages about what was dropped.
      unseen: all questions of held-out users, including those that are not evaluated.
    """

    train: list[Question]
    valid: list[Question]
    held_out: list[Question]
    malformed: int
    notes: tuple[str, ...]
    unseen: list[Question]

    @property
    def attributes(self) -> list[Attribute]:
        """Distinct attributes of the training and held-out questions."""
        by_key = {
            attribute.key: attribute
            for question in (*self.train, *self.held_out)
            for attribute in question.attributes
        }
        return list(by_key.values())

    def known(self, key: str) -> list[Value]:
        """Values of an attribute in the training questions."""
        return [question.truth[key] for question in self.train if key in question.truth]


def questions(config: Any, data: RunData, *, tokenizer: Tokenizer | None = None) -> Questions:
    """Builds or reads the questions of a config, and splits them by user.

    Args:
      config: configuration of the run.
      data: data of the run.
      tokenizer: counts tokens to keep prompts from tables within `attributes.max_prompt_tokens`.

    Raises:
      UserError: on an unknown source or column, a file that cannot be read, too few users, or a
        prompt that would give its answer away.
    """
    cfg, seed = read_section(AttributesConfig, config.attributes), config.seeds[0]
    notes: list[str] = []
    malformed = 0
    if cfg.source == "world":
        need_world(data, "attributes.source")
        all_questions = _from_tables(cfg, data, tokenizer)
    elif cfg.source == "file":
        if not cfg.path:
            raise UserError("attributes.source='file' needs attributes.path: a JSONL file")
        read = read_questions(cfg.path, keys=tuple(cfg.only), entry=cfg.entry)
        all_questions, malformed = list(read.questions), read.malformed
        if malformed:
            notes.append(f"{malformed} malformed completions left out, such as {read.example}")
        notes += [
            f"{count} prompts name the true value of {key!r}"
            for key, count in read.stated.items()
            if count
        ]
    else:
        raise UserError(f"attributes.source={cfg.source!r} is not valid; valid: world, file")
    # Both parts are needed: one selects the adapter, the other is what figures are about.
    for key in ("held_out", "valid"):
        if not 0.0 < getattr(cfg, key) < 1.0:
            raise UserError(f"attributes.{key}={getattr(cfg, key)} must be above 0 and below 1")
    # By user: an adapter that has read a user's history could recall the answer.
    rest, held_out = split_by_user(all_questions, share=cfg.held_out, seed=seed)
    if cfg.source == "file":
        # Another window of one history has other entries, and so looks like another user's.
        texts, gone = without_users(
            [question.prompt for question in rest],
            [question.prompt for question in held_out],
            cfg.entry,
        )
        if gone:
            left = set(texts)
            rest = [question for question in rest if question.prompt in left]
            notes.append(f"{gone} prompts left out that show most of a held-out user's history")
    train, valid = split_by_user(rest, share=cfg.valid, seed=seed + 1)
    for subset, purpose in ((train, "to tune on"), (valid, "to choose by"), (held_out, "held out")):
        if not subset:
            raise UserError(f"attributes: no question is {purpose}; more users are needed")
    # A user on two sides would spoil every figure, so the split is verified.
    users = [{question.user for question in subset} for subset in (train, valid, held_out)]
    check_disjoint(users[0] | users[1], users[2])
    check_disjoint(users[0], users[1])
    if cfg.examples > len(train):
        raise UserError(
            f"attributes.examples={cfg.examples}, but {len(train)} are left to tune on; 0 takes all"
        )
    train = _some(train, cfg.examples, seed)
    chosen = _some(held_out, cfg.evaluated, seed)
    result = Questions(train, valid, chosen, malformed, tuple(notes), held_out)
    # Baselines and the adapter need at least one training value of each attribute.
    for attribute in result.attributes:
        if not result.known(attribute.key):
            raise UserError(
                f"attributes: no question to tune on asks for {attribute.key!r}; raise "
                "attributes.examples, or leave it out by attributes.only"
            )
    return result


def held_out_rows(config: Any, data: RunData) -> frozenset[int]:
    """Rows of the users that the stage holds out, whose visits no stage may learn from.

    Empty if the stage is not part of the run, or its questions come from a file.
    """
    if STAGE not in config.stages or config.attributes.source != "world":
        return frozenset()
    names = {question.user for question in questions(config, data).unseen}
    return frozenset(row for row, name in enumerate(data.dataset.user_ids) if str(name) in names)


def without_held_out(texts: Sequence[str], config: Any, data: RunData) -> tuple[list[str], int]:
    """Drops texts about users that the stage holds out, and returns the number dropped."""
    if STAGE not in config.stages or config.attributes.source != "file":
        return list(texts), 0
    prompts = [question.prompt for question in questions(config, data).unseen]
    return without_users(texts, prompts, config.attributes.entry)


def _some(candidates: list[Question], count: int, seed: int) -> list[Question]:
    """Draws at most `count` questions by a hash of user and prompt, in order; 0 for all."""
    if not count or count >= len(candidates):
        return candidates
    # Ranked by hash: a larger count keeps the questions of a smaller one.
    ranked = sorted(
        range(len(candidates)),
        key=lambda place: keyed_hash(
            "question", seed, candidates[place].user, candidates[place].prompt
        ),
    )
    return [candidates[place] for place in sorted(ranked[:count])]


def _from_tables(
    cfg: AttributesConfig, data: RunData, tokenizer: Tokenizer | None
) -> list[Question]:
    """Builds a question of each kind for the last training visit of every user."""
    count = (lambda text: len(tokenizer.encode(text))) if tokenizer is not None else None
    budget = cfg.max_prompt_tokens if tokenizer is not None else 0
    prompting = Prompting(data, cfg.template, history=cfg.history)
    users = prompting.users
    tables = (("user", users or []), ("item", prompting.items))
    for key, rows in (*tables, ("profile", users or [])):
        columns = rows[0] if rows else {}
        for column in getattr(cfg, key):
            if column not in columns:
                hint = did_you_mean(column, columns)
                raise UserError(f"attributes.{key}: no column {column!r}{hint}")
    # A column that is asked for must not be shown.
    profile = [column for column in cfg.profile if column not in cfg.user]
    # A shown column that determines the asked one would give the answer away.
    check_no_leak(users or [], cfg.user, profile, what="attributes.profile")
    templates = []
    for key, rows in tables:
        if not (columns := getattr(cfg, key)):
            continue
        attributes = [infer(column, _values(rows, column)) for column in columns]
        hidden = tuple(cfg.item) if key == "item" else ()
        template = question_template(prompting.template, attributes, item=hidden, profile=profile)
        if hidden:
            # Titles are not checked: an item's name may well hint at its attributes.
            names = layouts.fields_of(without(prompting.template, hidden, of="item"))
            shown = [template.columns.get(name, name) for name in names[1:]]
            check_no_leak(rows, hidden, shown, what="attributes.template")
        templates.append((key, attributes, template))
    if not templates:
        raise UserError("attributes.user and attributes.item are both empty: nothing is asked")
    result = []
    for user, item, before in _visits(data):
        history = [prompting.items[i] for i in select_history(before, latest=cfg.history)]
        row = prompting.user(user) or {}
        for key, attributes, template in templates:
            result.append(
                ask(
                    template,
                    attributes,
                    row=row if key == "user" else prompting.items[item],
                    item=prompting.items[item],
                    history=history,
                    user=row or None,
                    name=str(data.dataset.user_ids[user]),
                    count_tokens=count if budget else None,
                    max_tokens=budget or None,
                )
            )
    return result


def _values(rows: Sequence[dict[str, Any]], column: str) -> list[Value]:
    """Values of a column as answers: text, or numbers as floats.

    Raises:
      UserError: if a row has no value, so that no answer would be right.
    """
    values: list[Value] = []
    for number, row in enumerate(rows):
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
            raise UserError(f"attributes: column {column!r} is {value!r} in row {number}")
        values.append(value if isinstance(value, str) else float(value))
    return values


def _visits(data: RunData) -> list[tuple[int, int, list[int]]]:
    """Last training visit of each user, with the items before it (without that item)."""
    histories = Histories.of([data.split.train], data.dataset.num_users)
    visits = []
    for user in range(data.dataset.num_users):
        items = histories.items[histories.start[user] : histories.start[user + 1]].tolist()
        if len(items) >= _MIN_VISITS:
            visits.append((user, items[-1], [item for item in items[:-1] if item != items[-1]]))
    if len(visits) < 3:
        raise UserError(
            f"attributes: fewer than three users have {_MIN_VISITS} visits to ask about"
        )
    return visits
