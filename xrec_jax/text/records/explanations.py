"""Records of explanations: what was asked about a pair, and what each explainer answered.

A finished `explain` stage leaves `explanations/pairs.jsonl` with a `Pair` a line, and
`explanations/EXPLAINER.jsonl` with an `Explanation` a line for the same pairs in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from etils import epath

from xrec_jax.core.errors import UserError

EXPLANATION_COLUMNS = (
    "user",
    "item",
    "rank",
    "score",
    "system",
    "explainer",
    "prompt_hash",
    "text",
    "tokens",
    "log_prob",
    "stop",
    "base",
    "adapter",
)


# Files of `explanations/` that hold other things than one explainer's answers.
OTHER_FILES = ("pairs", "held_out", "recommended", "during_training")


def answer_files(folder: epath.Path) -> list[epath.Path]:
    """Files of explainers' answers in a folder `explanations/`, in order of their names."""
    if not folder.is_dir():
        return []
    # Not by a pattern: the folder's own path may hold brackets.
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix == ".jsonl" and path.stem not in OTHER_FILES and path.name[0] != "."
    ]


class Entry(TypedDict):
    """One entry of the history as the prompt shows it.

    Attributes:
      item: its id.
      title: its plain name.
      attributes: its row of the item table without the id.
    """

    item: str
    title: str
    attributes: dict[str, Any]


class PlantedReason(TypedDict):
    """A true reason of a planted world.

    Attributes:
      attribute: what it is about: "kind", "price", ...
      value: the item's value of it.
      phrase: how a text may say it.
      contribution: to the utility; its sign is the direction.
    """

    attribute: str
    value: str
    phrase: str
    contribution: float


# The functional form, because "for" cannot name a field in the body of a class. Both lists hold the
# strongest reason first.
Planted = TypedDict("Planted", {"for": list[PlantedReason], "against": list[PlantedReason]})


class Pair(TypedDict):
    """A recommendation to explain, with all that its prompt was made of.

    Attributes:
      user: id.
      item: id.
      rank: place in the user's list, from 1; None for a pair that no recommender gave.
      score: of the recommender, None as before.
      system: the recommender's name, None as before.
      title: plain name of the item.
      prompt: what the explainers read.
      prompt_hash: see `prompt_hash`.
      profile: the user in words as the prompt says it; None where the prompt has no profile.
      profile_attributes: the user's row without the id; empty without a user table.
      history: entries in the prompt, oldest first.
      attributes: the item's row without the id.
      planted: the true reasons, None outside of a planted world.
      reasons: the same in one sentence.
    """

    user: str
    item: str
    rank: int | None
    score: float | None
    system: str | None
    title: str
    prompt: str
    prompt_hash: str
    profile: str | None
    profile_attributes: dict[str, Any]
    history: list[Entry]
    attributes: dict[str, Any]
    planted: Planted | None
    reasons: str | None


class Explanation(TypedDict):
    """What an explainer wrote about a pair.

    Attributes:
      user: id.
      item: id.
      rank: see `Pair`, as the next two.
      score: see `Pair`.
      system: see `Pair`.
      explainer: "template", "base", "tuned", the name of a user's own, or that given to an adapter.
      prompt_hash: of the prompt that was answered.
      text: the explanation.
      tokens: generated ones, the one that ended the text included; None for the template.
      log_prob: their sum at the sampling temperature, in nats; None for the template.
      stop: "eos" for a text that ended by itself (the template's always does), or "length".
      base: identity of the base, None for the template.
      adapter: identity of the adapter, None for template and base.
    """

    user: str
    item: str
    rank: int | None
    score: float | None
    system: str | None
    explainer: str
    prompt_hash: str
    text: str
    tokens: int | None
    log_prob: float | None
    stop: str
    base: str | None
    adapter: str | None


class Explained(NamedTuple):
    """A pair and what an explainer wrote about it."""

    pair: Pair
    explanation: Explanation


def prompt_hash(text: str) -> str:
    """32 hexadecimal digits that stand for a prompt: the first half of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def join(
    pairs: Iterable[Pair], records: Iterable[Explanation], *, where: object = "the explanations"
) -> list[Explained]:
    """Puts every explanation beside its pair, in the pairs' order.

    Records may come in any order. Pairs are told apart by user and item; the prompt's hash must
    agree too, so that nothing is ever read beside a prompt that it does not answer.

    Args:
      pairs: what was asked.
      records: what one explainer answered.
      where: the explainer's file, for messages.

    Raises:
      UserError: if a pair or a record lacks a key, has no partner, stands there twice, or answers
        another prompt.
    """
    asked: dict[tuple[str, str], Pair] = {}
    for number, pair in enumerate(pairs, start=1):
        whole(pair, ("user", "item", "prompt", "prompt_hash"), f"pair {number}")
        if _key(pair) in asked:
            raise UserError(f"{_name(pair)} is there twice among the pairs")
        asked[_key(pair)] = pair
    answered: dict[tuple[str, str], Explanation] = {}
    for number, record in enumerate(records, start=1):
        whole(record, ("user", "item", "prompt_hash", "text"), f"{where}, record {number}")
        if _key(record) not in asked:
            raise UserError(f"{where}: {_name(record)} is explained, but it is not among the pairs")
        if _key(record) in answered:
            raise UserError(f"{where}: {_name(record)} is explained twice by one explainer")
        if record["prompt_hash"] != asked[_key(record)]["prompt_hash"]:
            raise UserError(
                f"{where}: {_name(record)} answers another prompt than the pair's; both files "
                "must come from one run"
            )
        answered[_key(record)] = record
    for key, pair in asked.items():
        if key not in answered:
            raise UserError(
                f"{where}: {_name(pair)} has no explanation; delete the file and run the stage "
                "'explain' again"
            )
    return [Explained(pair, answered[key]) for key, pair in asked.items()]


def whole(record: Mapping[str, Any], keys: Iterable[str], where: object) -> None:
    """Refuses a damaged record of a run.

    Args:
      record: a line of a file.
      keys: that must hold text.
      where: names the record.

    Raises:
      UserError: names the key.
    """
    for key in keys:
        if not isinstance(record.get(key), str):
            raise UserError(
                f"{where} is damaged: no text as {key!r}; delete the file and run the stage "
                "'explain' again"
            )


def _key(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["user"], record["item"]


def _name(record: Mapping[str, Any]) -> str:
    return f"user {record['user']!r} with item {record['item']!r}"
