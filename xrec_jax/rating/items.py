"""Items to be rated: recommendations with the explanations of several systems."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage.files import joined, numbered_records
from xrec_jax.inference import run_records
from xrec_jax.text.prompts import layout
from xrec_jax.text.prompts.parsing import read_prompt
from xrec_jax.text.records.explanations import join, prompt_hash
from xrec_jax.text.records.fields import text_of, value_of


@dataclasses.dataclass(frozen=True)
class RatedItem:
    """A recommendation with the explanations of several systems.

    Attributes:
      item: name of the recommendation in the results.
      group: data set, or "".
      prompt: prompt that the systems answered.
      texts: explanation of each system.
      pair: the `text.records.explanations.Pair` of a run; None for explanations from files.
    """

    item: str
    group: str
    prompt: str
    texts: Mapping[str, str]
    pair: Mapping[str, Any] | None = None

    @property
    def title(self) -> str:
        """Title of the recommended item; "" if unknown."""
        return self.context().get("item", {"title": ""})["title"]

    def context(self) -> dict[str, Any]:
        """Context shown to a rater: what the systems were told, without the instruction.

        Returns:
          `profile` (or None), `history` and `item`, whose entries have `title` and `note`; or only
          `prompt`, the whole text, if it follows no registered template and there is no record.
        """
        return context(self.prompt) or _of_pair(self.pair) or {"prompt": self.prompt.strip()}


def of_run(rundir: RunDir, systems: Sequence[str] = ()) -> list[RatedItem]:
    """Items of a run's `explanations` folder.

    Args:
      rundir: directory of a run with a finished stage `explain`.
      systems: explainers; empty for all of them.

    Raises:
      UserError: if there are no explanations, or an explainer is unknown.
    """
    folder = rundir.path / "explanations"
    if not (folder / "pairs.jsonl").exists():
        raise UserError(
            f"--workdir={rundir.path}: it has no explanations/pairs.jsonl; add the stage 'explain' "
            "to config.stages and run it again"
        )
    pairs = run_records.pairs(rundir, "title", "profile", "history", "attributes")
    if not pairs:
        raise UserError(f"{folder / 'pairs.jsonl'}: no record in it")
    paths = run_records.explainer_files(rundir)
    records = {path.stem: run_records.explanations(rundir, path) for path in paths}
    chosen = _chosen(systems, list(records), f"{folder}")
    answered = {name: join(pairs, records[name], where=folder / f"{name}.jsonl") for name in chosen}
    return [
        RatedItem(
            item=f"{pair['user']} {pair['item']}",
            group="",
            prompt=pair["prompt"],
            texts={name: answered[name][row].explanation["text"] for name in chosen},
            pair=pair,
        )
        for row, pair in enumerate(pairs)
    ]


def of_files(names: Sequence[str], systems: Sequence[str] = ()) -> list[RatedItem]:
    """Items of explanation files.

    Args:
      names: paths of JSON lines with `prompt`, `model` (or `explainer`) and `completion` (or
        `text`); or two files `PROMPTS+EXPLANATIONS`, the first with `prompt_id` and `prompt`, the
        second with `prompt_id` in place of `prompt`. The model defaults to the file's name. Prompts
        may have a `dataset`, which becomes the group.
      systems: models; empty for all. Only prompts answered by all of them are kept.

    Raises:
      UserError: names the file, the line and the column, or an unknown system.
    """
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    known: dict[str, None] = {}
    for name in names:
        *prompts_names, texts_name = joined(name)
        if len(prompts_names) > 1:
            raise UserError(f"--explanations={name}: more than two files, PROMPTS+EXPLANATIONS")
        prompts_name = prompts_names[0] if prompts_names else ""
        prompts = _by_id(prompts_name) if prompts_name else {}
        stem = re.sub(r"\.jsonl(\.gz)?$", "", os.path.basename(texts_name))
        for number, record in numbered_records(texts_name):
            where = f"{texts_name}, line {number}"
            source = record
            if prompts_name:
                source = prompts.get(value_of(record, "prompt_id", where), {})
                if not source:
                    id_ = record["prompt_id"]
                    raise UserError(f"{where}: {prompts_name} has no prompt_id {id_!r}")
            prompt = text_of(source, "prompt", where)
            group = str(source.get("dataset") or "")
            key = next((key for key in ("model", "explainer") if record.get(key)), "")
            system = text_of(record, key, where) if key else stem
            text = text_of(record, "completion" if "completion" in record else "text", where)
            item = prompt_hash(prompt)[:12]
            if "prompt_id" in source:
                item = text_of(source, "prompt_id", where)
            # Files may differ in the white space of one and the same prompt.
            prompt_key = group, " ".join(prompt.split())
            entry = entries.setdefault(prompt_key, {"item": item, "prompt": prompt, "texts": {}})
            if entry["texts"].setdefault(system, text) != text:  # files may repeat an answer
                raise UserError(f"{where}: {system} answers this prompt again, with another text")
            known.setdefault(system)
    chosen = _chosen(systems, list(known), ", ".join(names))
    # Systems are compared on the same prompts, so each prompt needs a text of all of them.
    kept = [
        RatedItem(entry["item"], group, entry["prompt"], {s: entry["texts"][s] for s in chosen})
        for (group, _), entry in entries.items()
        if all(entry["texts"].get(s, "").strip() for s in chosen)
    ]
    if not kept:
        raise UserError(f"{', '.join(names)}: no prompt was answered by all of {', '.join(chosen)}")
    return kept


def _by_id(path: str) -> dict[Any, dict[str, Any]]:
    """Reads a file of prompts, by `prompt_id`."""
    by_id: dict[Any, dict[str, Any]] = {}
    for number, record in numbered_records(path):
        where = f"{path}, line {number}"
        text_of(record, "prompt", where)
        known = by_id.setdefault(value_of(record, "prompt_id", where), record)
        if known["prompt"] != record["prompt"]:
            raise UserError(
                f"{where}: prompt_id={record['prompt_id']!r} stands there twice, with two prompts"
            )
    return by_id


def _chosen(systems: Sequence[str], known: Sequence[str], where: str) -> list[str]:
    """Selects the requested systems, without repeats; all if none is requested."""
    if not known:
        raise UserError(f"{where}: no explanation in it")
    for name in systems:
        if name not in known:
            raise UserError(f"--system: {where} has no {name!r}{did_you_mean(name, known)}")
    return list(dict.fromkeys(systems)) or list(known)


def context(prompt: str) -> dict[str, Any]:
    """Parses a prompt, see `RatedItem.context`; empty if no registered template fits."""
    match = read_prompt(prompt)
    if match is None:
        return {}
    template, parsed = match

    def shown(text: str, fields: Mapping[str, str | None], slot: str, number: int) -> dict:
        title = next((f for f in layout.fields_of(slot) if f != "index"), None)
        name = (fields.get(title) if title else None) or ""
        # Title and number are shown apart from the note.
        text = re.sub(rf"^{number}[.:]\s*", "", text.strip()) if "{index}" in slot else text.strip()
        note = text.removeprefix(name).lstrip(" .:\n") if text.startswith(name) else text
        return {"title": name, "note": " ".join(note.split())}

    row = lambda fields: {template.columns.get(k, k): v for k, v in fields.items()}  # noqa: E731
    profile = template.render_user(row(parsed.user)).strip() if template.user else ""
    return {
        "profile": profile or None,
        "history": [
            shown(template.render_entry(row(entry), number), entry, template.entry, number)
            for number, entry in enumerate(parsed.history, start=1)
        ],
        "item": shown(template.render_item(row(parsed.item)), parsed.item, template.item, 0),
    }


def _of_pair(pair: Mapping[str, Any] | None) -> dict[str, Any]:
    """Context from a run's record, for prompts of an unregistered template."""
    if pair is None:
        return {}

    def note(title: str, attributes: Mapping[str, Any]) -> str:
        # A long cell, such as a plot, would take the rater's attention from the explanation.
        short = {
            column: value
            for column, value in attributes.items()
            if isinstance(value, (str, int)) and value not in ("", title) and len(str(value)) < 60
        }
        return ", ".join(f"{column.replace('_', ' ')}: {value}" for column, value in short.items())

    def shown(title: Any, attributes: Mapping[str, Any]) -> dict[str, str]:
        return {"title": str(title), "note": note(str(title), attributes)}

    return {
        "profile": pair["profile"],
        "history": [shown(entry["title"], entry["attributes"]) for entry in pair["history"]],
        "item": shown(pair["title"], pair["attributes"]),
    }
