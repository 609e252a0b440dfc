"""Records of explanations: the explained pairs, and the answers of each explainer.

A finished `explain` stage writes `explanations/pairs.jsonl` with a `Pair` a line, and
`explanations/EXPLAINER.jsonl` with an `Explanation` a line for the same pairs in the same order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

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


# Files of `explanations/` that do not hold the answers of an explainer.
OTHER_FILES = ("pairs", "held_out", "recommended", "during_training")


def answer_files(folder: epath.Path) -> list[epath.Path]:
    """Files of explainers' answers in a folder `explanations/`, sorted by name."""
    if not folder.is_dir():
        return []
    # No glob pattern: the path of the folder may contain brackets.
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix == ".jsonl" and path.stem not in OTHER_FILES and path.name[0] != "."
    ]


class Entry(TypedDict):
    """An entry of the history as shown in the prompt.

    Attributes:
      item: id of the item.
      title: title of the item.
      attributes: row of the item table without the id.
    """

    item: str
    title: str
    attributes: dict[str, Any]


class PlantedReason(TypedDict):
    """A true reason of a planted world.

    Attributes:
      attribute: attribute of the item: "kind", "price", ...
      value: the item's value of it.
      phrase: the reason in words.
      contribution: contribution to the utility; its sign is the direction.
    """

    attribute: str
    value: str
    phrase: str
    contribution: float


# The functional form, because "for" cannot name a field in the body of a class. Both lists hold the
# strongest reason first.
Planted = TypedDict("Planted", {"for": list[PlantedReason], "against": list[PlantedReason]})


class Pair(TypedDict):
    """A recommendation to explain, with the content of its prompt.

    Attributes:
      user: id of the user.
      item: id of the item.
      rank: rank in the user's list, from 1; None for a pair that was not recommended.
      score: score of the recommender, or None.
      system: name of the recommender, or None.
      title: title of the item.
      prompt: text of the prompt.
      prompt_hash: see `prompt_hash`.
      profile: profile as in the prompt; None if the prompt has none.
      profile_attributes: the user's row without the id; empty without a user table.
      history: entries in the prompt, oldest first.
      attributes: the item's row without the id.
      planted: the true reasons, None outside of a planted world.
      reasons: the true reasons in one sentence.
      systems: rank by recommender, of all that recommend the pair; only where several were asked.
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
    systems: NotRequired[dict[str, int]]


class Explanation(TypedDict):
    """An explainer's answer about a pair.

    Attributes:
      user: id of the user.
      item: id of the item.
      rank: see `Pair`.
      score: see `Pair`.
      system: see `Pair`.
      explainer: "template", "base", "tuned", the name of a registered explainer or of an adapter.
      prompt_hash: hash of the answered prompt.
      text: the explanation.
      tokens: number of generated tokens, including the end-of-text token; None for the template.
      log_prob: sum of their log-probabilities at the sampling temperature, in nats; None for the
        template.
      stop: "eos" for a complete text (the template's always is), or "length".
      base: identity of the base; None for the template.
      adapter: identity of the adapter; None for template and base.
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
    """A pair with its explanation."""

    pair: Pair
    explanation: Explanation


def prompt_hash(text: str) -> str:
    """Hash of a prompt: the first 32 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def join(
    pairs: Iterable[Pair], records: Iterable[Explanation], *, where: object = "the explanations"
) -> list[Explained]:
    """Joins the explanations with their pairs, in the order of the pairs.

    Records may come in any order. They are matched by user and item; the prompt hash must agree
    too, so that no text is shown with a prompt that it does not answer.

    Args:
      pairs: the explained pairs.
      records: records of one explainer.
      where: the explainer's file, for messages.

    Raises:
      UserError: if a pair or record lacks a key, has no partner, is repeated, or answers another
        prompt.
    """
    # Index the pairs, then the records by the same key, checking each; last, every pair must have
    # an answer.
    pair_by_key: dict[tuple[str, str], Pair] = {}
    for number, pair in enumerate(pairs, start=1):
        require_texts(pair, ("user", "item", "prompt", "prompt_hash"), f"pair {number}")
        if _key(pair) in pair_by_key:
            raise UserError(f"{_name(pair)} is there twice among the pairs")
        pair_by_key[_key(pair)] = pair
    record_by_key: dict[tuple[str, str], Explanation] = {}
    for number, record in enumerate(records, start=1):
        require_texts(record, ("user", "item", "prompt_hash", "text"), f"{where}, record {number}")
        if _key(record) not in pair_by_key:
            raise UserError(f"{where}: {_name(record)} is explained, but it is not among the pairs")
        if _key(record) in record_by_key:
            raise UserError(f"{where}: {_name(record)} is explained twice by one explainer")
        if record["prompt_hash"] != pair_by_key[_key(record)]["prompt_hash"]:
            raise UserError(
                f"{where}: {_name(record)} answers another prompt than the pair's; both files "
                "must come from one run"
            )
        record_by_key[_key(record)] = record
    for key, pair in pair_by_key.items():
        if key not in record_by_key:
            raise UserError(
                f"{where}: {_name(pair)} has no explanation; delete the file and run the stage "
                "'explain' again"
            )
    return [Explained(pair, record_by_key[key]) for key, pair in pair_by_key.items()]


def require_texts(record: Mapping[str, Any], keys: Iterable[str], where: object) -> None:
    """Checks a record of a run for keys with texts.

    Args:
      record: record of a file.
      keys: keys that must hold text.
      where: name of the record, for the message.

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
