"""Questions for the `attributes` stage, from a run's tables or a file, split by user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import keyed_hash
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
_LEAST = 4  # visits of a user who is asked about: a history, and a place to recommend


class Questions(NamedTuple):
    """The questions of a config.

    Attributes:
      train: to tune on.
      valid: to choose the adapter by; of other users.
      held_out: to measure on; of other users again.
      malformed: completions of a file that cannot be used.
      notes: what was dropped, in words.
      unseen: every question of a held-out user, also those that are not evaluated.
    """

    train: list[Question]
    valid: list[Question]
    held_out: list[Question]
    malformed: int
    notes: tuple[str, ...]
    unseen: list[Question]

    @property
    def attributes(self) -> list[Attribute]:
        """All that is asked, once each."""
        found = {
            one.key: one
            for question in (*self.train, *self.held_out)
            for one in question.attributes
        }
        return list(found.values())

    def known(self, key: str) -> list[Value]:
        """Values of an attribute in the part to tune on."""
        return [one.truth[key] for one in self.train if key in one.truth]


def questions(config: Any, data: RunData, *, tokenizer: Tokenizer | None = None) -> Questions:
    """The questions of a config.

    Args:
      config: of the run.
      data: of the run.
      tokenizer: keeps prompts from tables within `attributes.max_prompt_tokens`.

    Raises:
      UserError: on an unknown source or column, a file that cannot be read, too few users, or a
        prompt that would give its answer away.
    """
    asked, seed = config.attributes, config.seeds[0]
    notes: list[str] = []
    malformed = 0
    if asked.source == "world":
        need_world(data, "attributes.source")
        found = _from_tables(asked, data, tokenizer)
    elif asked.source == "file":
        if not asked.path:
            raise UserError("attributes.source='file' needs attributes.path: a JSONL file")
        read = read_questions(asked.path, keys=tuple(asked.only), entry=asked.entry)
        found, malformed = list(read.questions), read.malformed
        if malformed:
            notes.append(f"{malformed} malformed completions left out, such as {read.example}")
        notes += [
            f"{count} prompts name the true value of {key!r}"
            for key, count in read.stated.items()
            if count
        ]
    else:
        raise UserError(f"attributes.source={asked.source!r} is not valid; valid: world, file")
    for key in ("held_out", "valid"):
        if not 0.0 < asked[key] < 1.0:
            raise UserError(f"attributes.{key}={asked[key]} must be above 0 and below 1")
    rest, held_out = split_by_user(found, share=asked.held_out, seed=seed)
    if asked.source == "file":
        # Another window of one history has other entries, and so looks like another user's.
        texts, gone = without_users(
            [one.prompt for one in rest], [one.prompt for one in held_out], asked.entry
        )
        if gone:
            left = set(texts)
            rest = [one for one in rest if one.prompt in left]
            notes.append(f"{gone} prompts left out that show most of a held-out user's history")
    train, valid = split_by_user(rest, share=asked.valid, seed=seed + 1)
    for part, what in ((train, "to tune on"), (valid, "to choose by"), (held_out, "held out")):
        if not part:
            raise UserError(f"attributes: no question is {what}; more users are needed")
    names = [{one.user for one in part} for part in (train, valid, held_out)]
    check_disjoint(names[0] | names[1], names[2])
    check_disjoint(names[0], names[1])
    if asked.examples > len(train):
        raise UserError(
            f"attributes.examples={asked.examples}, but {len(train)} are left to tune on; 0 takes "
            "all"
        )
    train = _some(train, asked.examples, seed)
    chosen = _some(held_out, asked.evaluated, seed)
    made = Questions(train, valid, chosen, malformed, tuple(notes), held_out)
    for attribute in made.attributes:
        if not made.known(attribute.key):
            raise UserError(
                f"attributes: no question to tune on asks for {attribute.key!r}; raise "
                "attributes.examples, or leave it out by attributes.only"
            )
    return made


def held_out_rows(config: Any, data: RunData) -> frozenset[int]:
    """Rows of the users that the stage holds out; nothing may be learned from their visits.

    Empty where the stage is not part of the run, or does not ask about users of its tables.
    """
    if STAGE not in config.stages or config.attributes.source != "world":
        return frozenset()
    names = {one.user for one in questions(config, data).unseen}
    return frozenset(row for row, name in enumerate(data.dataset.user_ids) if str(name) in names)


def without_held_out(texts: Sequence[str], config: Any, data: RunData) -> tuple[list[str], int]:
    """Texts of files without those on users whom the stage holds out, and how many those are."""
    if STAGE not in config.stages or config.attributes.source != "file":
        return list(texts), 0
    prompts = [one.prompt for one in questions(config, data).unseen]
    return without_users(texts, prompts, config.attributes.entry)


def _some(found: list[Question], count: int, seed: int) -> list[Question]:
    """At most `count` of them, drawn by user and prompt; 0: all. The order stays."""
    if not count or count >= len(found):
        return found
    ranked = sorted(
        range(len(found)),
        key=lambda place: keyed_hash("question", seed, found[place].user, found[place].prompt),
    )
    return [found[place] for place in sorted(ranked[:count])]


def _from_tables(asked: Any, data: RunData, tokenizer: Tokenizer | None) -> list[Question]:
    count = (lambda text: len(tokenizer.encode(text))) if tokenizer is not None else None
    budget = asked.max_prompt_tokens if tokenizer is not None else 0
    prompting = Prompting(data, asked.template, history=asked.history)
    users = prompting.users
    tables = (("user", users or []), ("item", prompting.items))
    for key, rows in (*tables, ("profile", users or [])):
        columns = rows[0] if rows else {}
        for column in asked[key]:
            if column not in columns:
                hint = did_you_mean(column, columns)
                raise UserError(f"attributes.{key}: no column {column!r}{hint}")
    profile = [column for column in asked.profile if column not in asked.user]
    check_no_leak(users or [], asked.user, profile, what="attributes.profile")
    made = []
    for key, rows in tables:
        if not asked[key]:
            continue
        attributes = [infer(column, _values(rows, column)) for column in asked[key]]
        hidden = tuple(asked.item) if key == "item" else ()
        template = question_template(prompting.template, attributes, item=hidden, profile=profile)
        if hidden:
            # A title is what an item is called; it may say what it likes.
            names = layouts.fields_of(without(prompting.template, hidden, of="item"))
            shown = [template.columns.get(name, name) for name in names[1:]]
            check_no_leak(rows, hidden, shown, what="attributes.template")
        made.append((key, attributes, template))
    if not made:
        raise UserError("attributes.user and attributes.item are both empty: nothing is asked")
    found = []
    for user, item, before in _visits(data):
        history = [prompting.items[i] for i in select_history(before, latest=asked.history)]
        row = prompting.user(user) or {}
        for key, attributes, template in made:
            found.append(
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
    return found


def _values(rows: Sequence[dict[str, Any]], column: str) -> list[Value]:
    """Values of a column that a question may have; numbers stay numbers.

    Raises:
      UserError: where a row has none, so that no answer would be right.
    """
    values: list[Value] = []
    for number, row in enumerate(rows):
        value = row[column]
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
            raise UserError(f"attributes: column {column!r} is {value!r} in row {number}")
        values.append(value if isinstance(value, str) else float(value))
    return values


def _visits(data: RunData) -> list[tuple[int, int, list[int]]]:
    """Of each user the last training visit, and the items before it without its own."""
    histories = Histories.of([data.split.train], data.dataset.num_users)
    found = []
    for user in range(data.dataset.num_users):
        items = histories.items[histories.start[user] : histories.start[user + 1]].tolist()
        if len(items) >= _LEAST:
            found.append((user, items[-1], [item for item in items[:-1] if item != items[-1]]))
    if len(found) < 3:
        raise UserError(f"attributes: fewer than three users have {_LEAST} visits to ask about")
    return found
