"""Explanation requests: user-item pairs with their prompt, tokens and shown history."""

from __future__ import annotations

import functools
import hashlib
import json
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.core import rng
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rng import Stream
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.histories import Histories
from xrec_jax.data.run_data import RunData
from xrec_jax.llm import run_base
from xrec_jax.llm.io.checkpoint import open_model
from xrec_jax.llm.io.tokenizer import Tokenizer, load_tokenizer
from xrec_jax.tasks import prompting
from xrec_jax.tasks.titles import title_column, titles
from xrec_jax.text.prompts.render import CountTokens, Prompt, render_prompt, select_history
from xrec_jax.text.prompts.templates import generic, names
from xrec_jax.text.records.explanations import Pair, Planted, PlantedReason, prompt_hash

# Optional fields of a pair: type, and its name in messages.
_OPTIONAL: dict[str, tuple[type, str]] = {
    "rank": (numbers.Integral, "a whole number"),
    "score": (numbers.Real, "a number"),
    "system": (str, "text"),
}


class UserItem(NamedTuple):
    """A user-item pair to explain.

    Attributes:
      user: row of the user.
      item: row of the item.
      rank: rank of the item in a recommendation list, from 1; None without a recommender, as the
        following two.
      score: score of the recommender.
      system: name of the recommender.
    """

    user: int
    item: int
    rank: int | None = None
    score: float | None = None
    system: str | None = None


class ExplanationRequest(NamedTuple):
    """A request for an explanation: a user-item pair with its prompt.

    Attributes:
      user_item: the pair.
      prompt: text of the prompt.
      digest: hash of the prompt.
      ids: tokens of the prompt; empty without a tokenizer.
      history: item rows of the shown history entries, oldest first.
      seed: seed of sampling, from 0 to 2**32 - 1, a function of the pair alone; 0 with greedy
        decoding.
    """

    user_item: UserItem
    prompt: str
    digest: str
    ids: list[int]
    history: list[int]
    seed: int


class RequestBuilder:
    """Builds explanation requests: renders and tokenizes prompts over all events of a user.

    The prompt is that of the `instruct` stage. A prompt that does not fit the model together with
    its answer loses more of its oldest history entries.

    Args:
      config: configuration of the run.
      data: data of the run.
      tokenizer: tokenizer of the base; None if only the template explainer is used.
      max_positions: largest number of tokens that the model takes; 0 without a model.

    Raises:
      UserError: if the answer leaves no room for a prompt.
    """

    def __init__(
        self,
        config: Any,
        data: RunData,
        *,
        tokenizer: Tokenizer | None = None,
        max_positions: int = 0,
    ):
        self.data, self.tokenizer = data, tokenizer
        self._prompting = prompting.prompting(config.instruct, data, tokenizer)
        self._most = self._prompting.max_tokens
        self._chat = run_base.template(config)
        self._templated = tokenizer is not None and (
            tokenizer.has_template if self._chat is None else self._chat
        )
        # Prompt and answer share the positions of the model.
        self._room = max_positions - config.instruct.samples.max_new_tokens
        if tokenizer is not None and self._room < 1:
            raise UserError(
                f"max_new_tokens={config.instruct.samples.max_new_tokens} leaves no room for a "
                f"prompt: the model takes {max_positions} tokens"
            )
        self._seed = rng.fold(config.seeds[0], Stream.SHARED_61)
        self._draws = config.instruct.samples.temperature > 0.0
        split = data.split
        self._histories = Histories.of(
            [split.train, split.valid, split.test], data.dataset.num_users
        )
        self.cut = 0  # prompts that lost entries because of the model's limit

    def identity(self) -> str:
        """Digest of all settings that determine the prompts."""
        prompting = self._prompting
        parts = [
            repr(prompting.template),
            prompting.latest,
            prompting.max_tokens,
            self._room,
            self._chat,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def probe(self) -> None:
        """Renders one prompt to check the tables.

        Raises:
          UserError: if they lack a column that the prompts need.
        """
        if self.data.dataset.num_users and self.data.dataset.num_items:
            self(UserItem(0, 0))

    def __call__(self, user_item: UserItem) -> ExplanationRequest:
        """Request of one pair; see `many`."""
        return self.many([user_item])[0]

    def many(self, pairs: Sequence[UserItem]) -> list[ExplanationRequest]:
        """Requests of pairs, in order; all prompts are tokenized at once.

        Raises:
          UserError: if a column is missing, or a prompt is too long even without any history.
        """
        shown = [self._shown(user_item) for user_item in pairs]
        prompts = [self._render(*pair) for pair in zip(pairs, shown, strict=True)]
        ids: list[list[int]] = [[] for _ in pairs]
        if self.tokenizer is not None:
            # One fast call for all; only the few prompts beyond a limit are rendered again.
            ids = self.tokenizer.encode_batch([prompt.text for prompt in prompts])
            for place, user_item in enumerate(pairs):
                # First the configured budget, which counts the text without the chat template.
                if self._most is not None and len(ids[place]) > self._most:
                    count = self._prompting.count_tokens
                    prompts[place] = self._render(user_item, shown[place], count, self._most)
                    ids[place] = self.tokenizer.encode(prompts[place].text)
                if self._templated:
                    ids[place] = self._read(prompts[place].text)
                # Then the model's limit, with the template's tokens and room for the answer.
                if len(ids[place]) > self._room:
                    prompts[place] = self._render(user_item, shown[place], self._read, self._room)
                    ids[place] = self._read(prompts[place].text)
                    self.cut += 1
        return [
            ExplanationRequest(
                user_item,
                prompt.text,
                prompt_hash(prompt.text),
                tokens,
                # Prompts are cut from the oldest entry on, so the latest ones are those shown.
                rows[len(rows) - prompt.shown :],
                rng.fold(self._seed, user_item.user, user_item.item) & 0xFFFFFFFF
                if self._draws
                else 0,
            )
            for user_item, prompt, tokens, rows in zip(pairs, prompts, ids, shown, strict=True)
        ]

    def _shown(self, user_item: UserItem) -> list[int]:
        """Item rows of the history entries that a prompt may show, oldest first."""
        start = self._histories.start
        events = self._histories.items[start[user_item.user] : start[user_item.user + 1]].tolist()
        return select_history(events, latest=self._prompting.latest, without=user_item.item)

    def _read(self, text: str) -> list[int]:
        assert self.tokenizer is not None
        return self.tokenizer.prompt(text, template=self._chat)

    def _render(
        self,
        user_item: UserItem,
        shown: Sequence[int],
        count_tokens: CountTokens | None = None,
        max_tokens: int | None = None,
    ) -> Prompt:
        prompting = self._prompting
        return render_prompt(
            prompting.template,
            item=prompting.items[user_item.item],
            user=prompting.user(user_item.user),
            history=[prompting.items[row] for row in shown],
            count_tokens=count_tokens,
            max_tokens=max_tokens,
        )

    def user(self, row: int) -> dict[str, Any] | None:
        """Row of the user table, if there is one."""
        return self._prompting.user(row)

    @functools.cached_property
    def _item_rows(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.data.dataset.item_ids)}

    @functools.cached_property
    def _user_rows(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.data.dataset.user_ids)}

    def user_item(self, pair: Mapping[str, Any] | Sequence[Any]) -> UserItem:
        """Converts a pair of ids to rows.

        Args:
          pair: (user, item), or a record with these keys and optional `rank`, `score` and `system`.

        Raises:
          UserError: if it has another form, or an id is not in the data; names the nearest one.
        """
        if isinstance(pair, Mapping):
            record: Mapping[str, Any] = pair
        elif isinstance(pair, (tuple, list)) and len(pair) == 2:
            record = {"user": pair[0], "item": pair[1]}
        else:
            raise UserError(f"a pair is (user, item) or a record with these keys, not {pair!r}")
        indices = []
        for key, rows in (("user", self._user_rows), ("item", self._item_rows)):
            if key not in record:
                raise UserError(f"a pair has no {key!r}: {files.plain(dict(record))}")
            if record[key] is None:
                raise UserError(f"a pair's {key!r} is null")
            if str(record[key]) not in rows:
                hint = did_you_mean(str(record[key]), rows)
                raise UserError(f"no {key} {record[key]!r} in the data{hint}")
            indices.append(rows[str(record[key])])
        for key, (kind, expected) in _OPTIONAL.items():
            value = record.get(key)
            # In Python `True` is a number, too.
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise UserError(f"a pair's {key!r} must be {expected}, not {value!r}")
        rank = record.get("rank")
        if rank is not None and not 0 < rank < 2**31:
            raise UserError(f"a pair's 'rank' must be a number from 1, not {rank!r}")
        return UserItem(indices[0], indices[1], *(record.get(key) for key in _OPTIONAL))

    def named(self, row: int) -> dict[str, Any]:
        """Row of the item table, with the id as `item_id` and the title as `name_column`."""
        # What the run knows as id and title replaces columns that happen to have these names.
        own = {"item_id": str(self.data.dataset.item_ids[row])}
        return {**self._prompting.items[row], **own, self.name_column: str(self._titles[row])}

    @functools.cached_property
    def name_column(self) -> str:
        """Column of item titles; a new one if the table has none."""
        return title_column(self.data.dataset) or "title"

    @functools.cached_property
    def _titles(self) -> np.ndarray:
        return titles(self.data.dataset)

    @functools.cached_property
    def _item_key(self) -> str | None:
        return _id_column(self.data.dataset.items, self.data.dataset.item_ids)

    @functools.cached_property
    def _user_key(self) -> str | None:
        return _id_column(self.data.dataset.users, self.data.dataset.user_ids)

    def pair(self, request: ExplanationRequest) -> Pair:
        """Record of a request; see `text.records.explanations.Pair`."""
        user_item, prompting, data = request.user_item, self._prompting, self.data
        user = prompting.user(user_item.user)
        # Only a planted world knows the true reasons.
        planted, reasons = None, None
        if data.world is not None:
            users, items = np.array([user_item.user]), np.array([user_item.item])
            after = self._histories.lengths[users]  # the state after all of the user's events
            true = data.world.reasons(users, items, after)[0]
            planted, reasons = _planted(true), true.describe()
        profile = prompting.template.render_user(user) if prompting.template.user and user else None
        return {
            "user": str(data.dataset.user_ids[user_item.user]),
            "item": str(data.dataset.item_ids[user_item.item]),
            "rank": user_item.rank,
            "score": user_item.score,
            "system": user_item.system,
            "title": str(self._titles[user_item.item]),
            "prompt": request.prompt,
            "prompt_hash": request.digest,
            "profile": profile,
            "profile_attributes": _without(user or {}, self._user_key),
            "history": [
                {
                    "item": str(data.dataset.item_ids[row]),
                    "title": str(self._titles[row]),
                    "attributes": _without(prompting.items[row], self._item_key),
                }
                for row in request.history
            ],
            "attributes": _without(prompting.items[user_item.item], self._item_key),
            "planted": planted,
            "reasons": reasons,
        }


def _planted(true: Any) -> Planted:
    """Record of the planted reasons of a pair."""

    def records(reasons: Sequence[Any]) -> list[PlantedReason]:
        return [
            {
                "attribute": reason.attribute,
                "value": str(reason.value),
                "phrase": reason.phrase,
                "contribution": float(reason.contribution),
            }
            for reason in reasons
        ]

    return {"for": records(true.for_), "against": records(true.against)}


def _id_column(table: Any, ids: np.ndarray) -> str | None:
    """Column that holds the ids themselves, judged by its first rows; None without one."""
    if table is None:
        return None
    for column in table.columns:
        if [str(value) for value in table[column].head(8).to_list()] == [*map(str, ids[:8])]:
            return column
    return None


def _without(row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    return {key: files.plain(value) for key, value in row.items() if key != column}


def request_builder(config: Any, rundir: RunDir, data: RunData) -> RequestBuilder:
    """Builder of a run's requests, with the limits of its base for all explainers.

    One pair thus has one prompt, whichever explainer answers it.
    """
    # Without a base nothing is tokenized: the template explainer needs no limits.
    if not run_base.has_base(config, rundir):
        return RequestBuilder(config, data)
    path = run_base.base_path(config, rundir)
    return RequestBuilder(
        config,
        data,
        tokenizer=load_tokenizer(path),
        max_positions=open_model(path).config.max_positions,
    )


def choose_prompts(config: Any, data: RunData, prompt: str) -> None:
    """Sets the prompt template in `config.instruct`.

    Args:
      config: configuration of the run; changed in place.
      data: data of the run.
      prompt: a registered name or "generic"; "" for the run's own, which is generic in a run that
        neither tunes nor has a world.

    Raises:
      UserError: on an unknown name.
    """
    if prompt == "generic" or not (prompt or data.world or "instruct" in config.stages):
        use_generic_prompts(config, data)
    elif prompt:
        if prompt not in names():
            raise UserError(f"--prompt={prompt!r}{did_you_mean(prompt, [*names(), 'generic'])}")
        with config.ignore_type():
            config.instruct.template = prompt


def use_generic_prompts(config: Any, data: RunData) -> None:
    """Sets a template in `config.instruct` that shows all columns of the tables.

    Raises:
      UserError: if there is no item table, or one without columns.
    """
    items, users = data.dataset.items, data.dataset.users
    if items is None:
        raise UserError("prompts need a table of items: their titles and features")
    # Ids say nothing to a language model.
    columns = [c for c in items.columns if c != _id_column(items, data.dataset.item_ids)]
    title = title_column(data.dataset) or (columns[0] if columns else items.columns[0])
    profile = [] if users is None else users.columns
    template = generic(
        item_columns=[column for column in columns if column != title] or [title],
        title=title,
        user_columns=[c for c in profile if c != _id_column(users, data.dataset.user_ids)],
    )
    with config.ignore_type():
        config.instruct.template = {
            "name": template.name,
            "body": template.body,
            "entry": template.entry,
            "item": template.item,
            "user": template.user,
            "no_history": template.no_history,
            "unknown": template.unknown,
        }
