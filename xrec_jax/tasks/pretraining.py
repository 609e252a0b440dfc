"""Pre-training texts of a small base, from a planted world or files, and their split."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError
from xrec_jax.core.rng import Stream, keyed_random
from xrec_jax.core.sections import read_section
from xrec_jax.core.storage import files
from xrec_jax.data.histories import Histories
from xrec_jax.data.packing import Example, windows
from xrec_jax.data.run_data import RunData, need_world
from xrec_jax.data.world.vocabulary import CUISINES, KINDS, MOODS
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.tasks import attributes
from xrec_jax.tasks.prompting import Prompting
from xrec_jax.text.prompts.templates import template_from
from xrec_jax.text.records.fields import text_of, value_of
from xrec_jax.text.synthetic.comprehension import Reading, reading_exercises
from xrec_jax.text.synthetic.corpus import world_sentences
from xrec_jax.text.synthetic.filler import filler_paragraphs
from xrec_jax.text.synthetic.taste_pairs import Visit, join_pair, review_exercises, taste_pair

Text = str | Reading


TELLING = 8  # characters; shorter phrases occur in many texts by chance


@dataclasses.dataclass(frozen=True)
class WorldTextsConfig:
    """Keys of section `pretrain` that shape the texts about a world.

    Attributes:
      copies: wordings of everything in the world.
      described: prompts of each user that are followed by a description.
      talk: paragraphs on places and tastes in general.
    """

    copies: int
    described: int
    talk: int


def world_texts(config: Any, data: RunData) -> list[Text]:
    """Texts about a world's places, people and training visits, and reading exercises.

    There are no explanations among them: those are left for the stages that are measured.

    Raises:
      UserError: if the data is not of a planted world.
    """
    need_world(data, "pretrain.source")
    cfg, instruct = read_section(WorldTextsConfig, config.pretrain), config.instruct
    histories = Histories.of([data.split.train], data.dataset.num_users)
    # The base must not read histories of users whose attributes are asked later.
    held_out = attributes.held_out_rows(config, data)
    visits = [
        (user, histories.items[histories.start[user] : histories.start[user + 1]].tolist())
        for user in range(data.dataset.num_users)
        if user not in held_out
    ]
    items, users = (
        [] if table is None else table.to_dicts()
        for table in (data.dataset.items, data.dataset.users)
    )
    plain = world_sentences(items, users, visits, copies=cfg.copies)
    described = reading_exercises(
        template_from(instruct.template),
        items,
        users,
        visits,
        latest=instruct.history,
        copies=cfg.described,
        named=instruct.named,
    )
    # The joint stage's explainer starts from a base that can read reviews.
    reviews: list[Text] = []
    if config.joint.readings:
        reviews = [
            *(Reading(*pair) for pair in world_readings(config, data)),
            *taught_words(config),
        ]
    return [*plain, *described, *reviews, *filler_paragraphs(items, cfg.talk)]


def file_texts(config: Any) -> list[str]:
    """Reads the texts of the pre-training files.

    Each of `pretrain.files` is a path, or several joined by "+": then lines of a later file get
    also the fields of the line with the same `prompt_id` in the file before.

    Raises:
      UserError: if a file cannot be read or has none of the fields.
    """
    return [text for spec in config.pretrain.files for text in _joined(spec, config.pretrain)]


def plain(text: Text) -> str:
    """Joins a text to one string."""
    return text if isinstance(text, str) else "".join(text)


def level_of(text: Text) -> str:
    """Normalises white space to single blanks, for comparisons."""
    return " ".join(plain(text).split())


def _joined(spec: str, cfg: Any) -> list[str]:
    """Reads the texts of one entry of `pretrain.files`; `cfg` is the section `pretrain`."""
    if not isinstance(spec, str):
        raise UserError(f"pretrain.files: {spec!r} must be a path")
    paths = files.joined(spec)
    records = list(files.numbered_records(paths[0]))
    last = paths[0]
    # An inner join on `prompt_id`, from left to right; fields of later files win.
    for path in paths[1:]:
        by_key = {
            value_of(record, "prompt_id", f"{last}, line {number}"): record
            for number, record in records
            if "prompt_id" in record
        }
        records = [
            (number, {**by_key[record["prompt_id"]], **record})
            for number, record in files.numbered_records(path)
            if "prompt_id" in record
            and value_of(record, "prompt_id", f"{path}, line {number}") in by_key
        ]
        last = path
        if not records:
            raise UserError(f"{path}: no line shares its prompt_id with one of {paths[0]}")
    if not records:
        raise UserError(f"{paths[0]}: no record in it")
    # After the join, so that the field may come from any of the files.
    if cfg.keep.field:
        field, values = cfg.keep.field, tuple(cfg.keep.among)
        kept = [(number, record) for number, record in records if record.get(field) in values]
        if not kept:
            present = sorted({str(record.get(field)) for _, record in records})
            raise UserError(
                f"pretrain.keep: no line of {paths[-1]} has {field} in {', '.join(values)}; its "
                f"values: {', '.join(present[:8])}"
            )
        records = kept
    # Empty fields are dropped, so that no text has empty paragraphs.
    texts = []
    for number, record in records:
        where = f"{last}, line {number}"
        filled = [name for name in cfg.fields if record.get(name) not in (None, "")]
        parts = [text_of(record, name, where).strip() for name in filled]
        if not any(parts):
            names = ", ".join(cfg.fields)
            raise UserError(f"{where}: none of {names} is there")
        texts.append("\n\n".join(parts))
    return texts


def split_texts(texts: Sequence[Text], share: float, *, seed: int) -> tuple[list[Text], list[Text]]:
    """Splits texts at random into training and held-out ones, at least one each.

    Raises:
      UserError: if there are fewer than two texts, or the share is not valid.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"pretrain.held_out={share} must be above 0 and below 1")
    if len(texts) < 2:
        raise UserError("pretrain: fewer than two texts")
    order = rng.permutation(rng.fold(seed, Stream.PRETRAIN_SPLIT), len(texts))
    count = min(max(1, round(share * len(texts))), len(texts) - 1)
    # A set of places, so that both parts keep the order of the texts.
    held = set(np.asarray(order[:count]).tolist())
    return (
        [text for place, text in enumerate(texts) if place not in held],
        [text for place, text in enumerate(texts) if place in held],
    )


def text_examples(
    tokenizer: Tokenizer, texts: Sequence[Text], length: int
) -> tuple[list[Example], int]:
    """Tokenizes texts: running text in windows; of reading exercises, only answers are trained.

    Args:
      tokenizer: tokenizer of the model.
      texts: texts in any order.
      length: tokens of a row.

    Returns:
      The examples, and the number of exercises dropped because they are longer than a row.
    """
    running = tokenizer.encode_batch([text for text in texts if isinstance(text, str)])
    examples = windows([np.array([*ids, tokenizer.eos_id], np.int32) for ids in running], length)
    readings = [
        rendered(tokenizer, tuple(text), template=False)
        for text in texts
        if isinstance(text, Reading)
    ]
    # Cut to a row, an exercise would lose its answer, which is all that is trained.
    kept = [example for example in readings if len(example.ids) <= length]
    return [*examples, *kept], len(readings) - len(kept)


def world_readings(config: Any, data: RunData) -> list[tuple[str, str]]:
    """Comprehension exercises on reviews of training visits (see `text.synthetic.taste_pairs`).

    Raises:
      UserError: if the world has no reviews.
    """
    world, cfg = data.world, config.joint
    if world is None or not cfg.readings:
        return []
    if not data.dataset.reviews:
        raise UserError(
            "joint.readings needs reviews to read: set data.world.review_share above 0, or "
            "joint.readings=0"
        )
    prompting = Prompting(data, cfg.states.template, history=cfg.states.history)
    reviews, train = world.reviews, data.learned
    visits = [
        Visit(prompting.items[i], *reviews.get((u, i), ("", ())))
        for u, i in zip(train.user.tolist(), train.item.tolist(), strict=True)
    ]
    # Users without a training event are left out: their reviews may be held out.
    known = set(train.user.tolist())
    people = [
        Visit(row, "", person.facts)
        for user, (row, person) in enumerate(zip(prompting.users or [], world.about, strict=False))
        if user in known
    ]
    return list(
        review_exercises(
            prompting.template, visits, people, count=cfg.readings, latest=cfg.states.history
        )
    )


def taught_words(config: Any) -> list[str]:
    """Texts with random values of no user, so that a new tokenizer learns their words."""
    texts = []
    for number in range(config.joint.readings // 40):
        rng = keyed_random("pair words", number)
        sides = [
            {
                "kind": rng.sample(KINDS, rng.randint(1, 2)),
                "cuisine": rng.sample(CUISINES[1:], rng.randint(0, 2)),
                "mood": rng.sample(MOODS, rng.randint(0, 2)),
            }
            for _ in range(2)
        ]
        texts.append(join_pair(taste_pair(*sides)))
    return texts


def rendered(tokenizer: Tokenizer, turns: Any, *, template: bool | None) -> Example:
    """Tokenizes a prompt with its answer, or the turns of a conversation, with a mask."""
    text = tokenizer.render(turns, template=template)
    return Example(np.array(text.ids, np.int32), np.array(text.trained, bool))
