"""Pairs of a user and an item made ready to be explained: prompt, history shown, rows."""

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

# What a pair may say beside its ids.
_GIVEN: dict[str, tuple[type, str]] = {
    "rank": (numbers.Integral, "a whole number"),
    "score": (numbers.Real, "a number"),
    "system": (str, "text"),
}


class Asked(NamedTuple):
    """A pair as a recommender or a user gave it.

    Attributes:
      user: row.
      item: row.
      rank: from 1; None where no recommender gave it, as the next two.
      score: of the recommender.
      system: the recommender.
    """

    user: int
    item: int
    rank: int | None = None
    score: float | None = None
    system: str | None = None


class Case(NamedTuple):
    """A pair with its prompt.

    Attributes:
      asked: the pair.
      prompt: what is asked.
      digest: its hash.
      ids: its tokens; empty where nobody reads any.
      history: item rows of the entries shown, oldest first.
      seed: of its random choices, from 0 to 2**32 - 1; a function of the pair alone. 0 where the
        most likely token is always taken.
    """

    asked: Asked
    prompt: str
    digest: str
    ids: list[int]
    history: list[int]
    seed: int


class CaseMaker:
    """Renders the prompts of a run's pairs, over all of a user's events.

    The prompt is that of the `instruct` stage. One that the model could not take together with its
    answer loses more of its oldest entries.

    Args:
      config: of the run.
      data: of the run.
      tokenizer: of the base; None where only the template writes.
      max_positions: tokens that the model takes; 0 without a model.
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
        """A digest of how prompts are rendered."""
        made = self._prompting
        parts = [repr(made.template), made.latest, made.max_tokens, self._room, self._chat]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def probe(self) -> None:
        """Raises a `UserError` if the tables lack a column that the prompts need."""
        if self.data.dataset.num_users and self.data.dataset.num_items:
            self(Asked(0, 0))

    def __call__(self, asked: Asked) -> Case:
        """The pair with its prompt; see `many`."""
        return self.many([asked])[0]

    def many(self, pairs: Sequence[Asked]) -> list[Case]:
        """Pairs with their prompts, in order; tokens are counted for all of them at once.

        Raises:
          UserError: if a column is missing, or a prompt is too long even without any history.
        """
        shown = [self._shown(asked) for asked in pairs]
        prompts = [self._render(*pair) for pair in zip(pairs, shown, strict=True)]
        ids: list[list[int]] = [[] for _ in pairs]
        if self.tokenizer is not None:
            ids = self.tokenizer.encode_batch([prompt.text for prompt in prompts])
            for place, asked in enumerate(pairs):
                if self._most is not None and len(ids[place]) > self._most:
                    count = self._prompting.count_tokens
                    prompts[place] = self._render(asked, shown[place], count, self._most)
                    ids[place] = self.tokenizer.encode(prompts[place].text)
                if self._templated:
                    ids[place] = self._read(prompts[place].text)
                if len(ids[place]) > self._room:
                    prompts[place] = self._render(asked, shown[place], self._read, self._room)
                    ids[place] = self._read(prompts[place].text)
                    self.cut += 1
        return [
            Case(
                asked,
                prompt.text,
                prompt_hash(prompt.text),
                tokens,
                rows[len(rows) - prompt.shown :],
                rng.fold(self._seed, asked.user, asked.item) & 0xFFFFFFFF if self._draws else 0,
            )
            for asked, prompt, tokens, rows in zip(pairs, prompts, ids, shown, strict=True)
        ]

    def _shown(self, asked: Asked) -> list[int]:
        """Item rows of the history that a prompt may show, oldest first."""
        start = self._histories.start
        events = self._histories.items[start[asked.user] : start[asked.user + 1]].tolist()
        return select_history(events, latest=self._prompting.latest, without=asked.item)

    def _read(self, text: str) -> list[int]:
        assert self.tokenizer is not None
        return self.tokenizer.prompt(text, template=self._chat)

    def _render(
        self,
        asked: Asked,
        shown: Sequence[int],
        count_tokens: CountTokens | None = None,
        max_tokens: int | None = None,
    ) -> Prompt:
        made = self._prompting
        return render_prompt(
            made.template,
            item=made.items[asked.item],
            user=made.user(asked.user),
            history=[made.items[row] for row in shown],
            count_tokens=count_tokens,
            max_tokens=max_tokens,
        )

    def user(self, row: int) -> dict[str, Any] | None:
        """A row of the user table, if there is one."""
        return self._prompting.user(row)

    @functools.cached_property
    def _item_rows(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.data.dataset.item_ids)}

    @functools.cached_property
    def _user_rows(self) -> dict[str, int]:
        return {str(name): row for row, name in enumerate(self.data.dataset.user_ids)}

    def asked(self, pair: Mapping[str, Any] | Sequence[Any]) -> Asked:
        """A pair given by ids.

        Args:
          pair: (user, item), or a record with these keys and perhaps `rank`, `score` and `system`.

        Raises:
          UserError: if it is something else, or an id is not in the data; names the nearest.
        """
        if isinstance(pair, Mapping):
            record: Mapping[str, Any] = pair
        elif isinstance(pair, (tuple, list)) and len(pair) == 2:
            record = {"user": pair[0], "item": pair[1]}
        else:
            raise UserError(f"a pair is (user, item) or a record with these keys, not {pair!r}")
        found = []
        for key, rows in (("user", self._user_rows), ("item", self._item_rows)):
            if key not in record:
                raise UserError(f"a pair has no {key!r}: {files.plain(dict(record))}")
            if record[key] is None:
                raise UserError(f"a pair's {key!r} is null")
            if str(record[key]) not in rows:
                hint = did_you_mean(str(record[key]), rows)
                raise UserError(f"no {key} {record[key]!r} in the data{hint}")
            found.append(rows[str(record[key])])
        for key, (kind, what) in _GIVEN.items():
            value = record.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise UserError(f"a pair's {key!r} must be {what}, not {value!r}")
        rank = record.get("rank")
        if rank is not None and not 0 < rank < 2**31:
            raise UserError(f"a pair's 'rank' must be a number from 1, not {rank!r}")
        return Asked(found[0], found[1], *(record.get(key) for key in _GIVEN))

    def named(self, row: int) -> dict[str, Any]:
        """A row of the item table: its id as `item_id`, its plain name as `name_column`."""
        own = {"item_id": str(self.data.dataset.item_ids[row])}
        return {**self._prompting.items[row], **own, self.name_column: str(self._titles[row])}

    @functools.cached_property
    def name_column(self) -> str:
        """The column of an item's name, one of its own where the table has none."""
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

    def pair(self, case: Case) -> Pair:
        """The record of a pair; see `text.records.Pair`."""
        asked, made, data = case.asked, self._prompting, self.data
        user = made.user(asked.user)
        planted, reasons = None, None
        if data.world is not None:
            users, items = np.array([asked.user]), np.array([asked.item])
            after = self._histories.lengths[users]  # the state after all of the user's events
            true = data.world.reasons(users, items, after)[0]
            planted, reasons = _planted(true), true.describe()
        profile = made.template.render_user(user) if made.template.user and user else None
        return {
            "user": str(data.dataset.user_ids[asked.user]),
            "item": str(data.dataset.item_ids[asked.item]),
            "rank": asked.rank,
            "score": asked.score,
            "system": asked.system,
            "title": str(self._titles[asked.item]),
            "prompt": case.prompt,
            "prompt_hash": case.digest,
            "profile": profile,
            "profile_attributes": _without(user or {}, self._user_key),
            "history": [
                {
                    "item": str(data.dataset.item_ids[row]),
                    "title": str(self._titles[row]),
                    "attributes": _without(made.items[row], self._item_key),
                }
                for row in case.history
            ],
            "attributes": _without(made.items[asked.item], self._item_key),
            "planted": planted,
            "reasons": reasons,
        }


def _planted(true: Any) -> Planted:
    def told(reasons: Sequence[Any]) -> list[PlantedReason]:
        return [
            {
                "attribute": reason.attribute,
                "value": str(reason.value),
                "phrase": reason.phrase,
                "contribution": float(reason.contribution),
            }
            for reason in reasons
        ]

    return {"for": told(true.for_), "against": told(true.against)}


def _id_column(table: Any, ids: np.ndarray) -> str | None:
    """The column that holds the ids themselves."""
    if table is None:
        return None
    for column in table.columns:
        if [str(value) for value in table[column].head(8).to_list()] == [*map(str, ids[:8])]:
            return column
    return None


def _without(row: Mapping[str, Any], column: str | None) -> dict[str, Any]:
    return {key: files.plain(value) for key, value in row.items() if key != column}


def case_maker(config: Any, rundir: RunDir, data: RunData) -> CaseMaker:
    """Of a run; its base, if it has one, says how long prompts may be, whoever reads them.

    So one pair has one prompt, whichever explainer answers it.
    """
    path = run_base.base_path(config, rundir)
    if not config.llm.path and not path.exists():
        return CaseMaker(config, data)
    return CaseMaker(
        config,
        data,
        tokenizer=load_tokenizer(path),
        max_positions=open_model(path).config.max_positions,
    )


def choose_prompts(config: Any, data: RunData, prompt: str) -> None:
    """Sets the template of prompts in `config.instruct`.

    Args:
      config: of the run; changed.
      data: of the run.
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
    """Lets `config.instruct` render prompts from whatever columns the tables have.

    Raises:
      UserError: if there is no item table, or one without columns.
    """
    items, users = data.dataset.items, data.dataset.users
    if items is None:
        raise UserError("prompts need a table of items: their titles and features")
    columns = [c for c in items.columns if c != _id_column(items, data.dataset.item_ids)]
    title = title_column(data.dataset) or (columns[0] if columns else items.columns[0])
    profile = [] if users is None else users.columns
    made = generic(
        item_columns=[column for column in columns if column != title] or [title],
        title=title,
        user_columns=[c for c in profile if c != _id_column(users, data.dataset.user_ids)],
    )
    with config.ignore_type():
        config.instruct.template = {
            "name": made.name,
            "body": made.body,
            "entry": made.entry,
            "item": made.item,
            "user": made.user,
            "no_history": made.no_history,
            "unknown": made.unknown,
        }
