"""Audit of texts: files named by the config, the instruction set, and the texts of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation import audit as checks
from xrec_jax.evaluation.audit.contents import level
from xrec_jax.evaluation.ratings.rows import joined, read_rows
from xrec_jax.inference import run_records
from xrec_jax.tasks import instructions
from xrec_jax.text.records.fields import text_of

Outcomes = list[checks.Finding | None]
_WRITERS = ("model", "explainer", "system")
_TEXTS = ("completion", "text", "explanation")
# Keys that the records of a file need; of several alternatives, one.
_NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "instructions": (("prompt", "messages"), ("completion", "messages")),
    "prompts": (("prompt",),),
    "explanations": (_TEXTS, ("prompt_id", "prompt_hash", "prompt")),
    "judgements": (("prompt",), ("first",), ("second",), ("better",)),
    "attributes": (("prompt",), ("completion",)),
}


def file_roles(config: Any) -> list[str]:
    """Roles for which `config.audit` names a file."""
    return [role for role in (*_NEEDED, "ratings", "profiles") if config.audit.get(role)]


def check_files(config: Any) -> Outcomes:
    """Checks the files of `config.audit`, each by itself and against each other.

    Raises:
      UserError: if a file cannot be read or its lines lack a key.
    """
    paths = config.audit
    records_of = {role: _read(paths[role], role) for role in _NEEDED if paths.get(role)}
    prompt_contents = {
        role: checks.read_contents(records)
        for role, records in records_of.items()
        if role != "explanations"
    }
    outcomes: Outcomes = []
    # Prompts by themselves, then sets against each other, then what was answered to them.
    for role in ("instructions", "judgements", "prompts"):
        if role in prompt_contents:
            outcomes += checks.check_prompts(prompt_contents[role], role)
    if "prompts" in prompt_contents:
        outcomes.append(checks.repeated(prompt_contents["prompts"], "prompts"))
    outcomes += _overlaps(prompt_contents)
    if "instructions" in records_of:
        outcomes += checks.check_answers(
            _completions(records_of["instructions"], prompt_contents["instructions"]),
            "instructions",
        )
    # Explanations are matched to prompts by id, hash or text, whichever the records have.
    answers: list[checks.Answer] = []
    if "explanations" in records_of:
        answers, ids = _answers(records_of, prompt_contents, paths)
        outcomes += checks.check_ids(answers, ids, "explanations") if ids else []
        outcomes += checks.check_answers(answers, "explanations")
    if "judgements" in records_of:
        # Texts are recognised by prompt and wording, which gives the writer of each judged one.
        written = {
            (a.prompt.text, level(a.text)): a.writer for a in answers if a.prompt is not None
        }
        judged = checks.read_judgements(records_of["judgements"], prompt_contents["judgements"])
        outcomes += checks.check_judgements(judged, written)
    if "attributes" in records_of:
        outcomes += checks.check_attributes(checks.read_attributes(records_of["attributes"]))
    if paths.get("ratings"):
        outcomes += checks.check_ratings(_table(paths.ratings))
    return outcomes


def _overlaps(prompt_contents: Mapping[str, list[checks.PromptContent]]) -> Outcomes:
    """Checks training sets against the evaluated prompts and against each other."""
    outcomes: Outcomes = []
    for role, other, tuned in (
        ("instructions", "prompts", True),
        ("judgements", "prompts", True),
        ("attributes", "prompts", False),
        ("judgements", "instructions", False),
    ):
        if role in prompt_contents and other in prompt_contents:
            outcomes.append(
                checks.overlap(
                    prompt_contents[role], prompt_contents[other], role, other, tuned=tuned
                )
            )
            if role == "instructions":
                outcomes.append(
                    checks.other_form(prompt_contents[role], prompt_contents[other], role, other)
                )
    return outcomes


def tunes(config: Any) -> bool:
    """True if the stages of a config include instruction tuning."""
    return "instruct" in config.stages


def check_tuning(config: Any, data: RunData) -> Outcomes:
    """Checks the instruction set of the `instruct` stage of a config.

    Raises:
      UserError: if the set cannot be built.
    """
    if not tunes(config):
        return []
    instruction_set = instructions.instructions(config, data, seed=config.seeds[0])
    return _check_parts(
        *(
            [
                {**example.meta, "prompt": example.prompt, "completion": example.completion}
                for example in split
            ]
            for split in (instruction_set.train, instruction_set.held_out)
        )
    )


def _check_parts(
    train: Sequence[Mapping[str, Any]], held_out: Sequence[Mapping[str, Any]]
) -> Outcomes:
    """Checks an instruction set, and that its two splits do not overlap."""
    tuned, held = checks.read_contents(train), checks.read_contents(held_out)
    answers = _completions([*train, *held_out], [*tuned, *held])
    return [
        *checks.check_prompts([*tuned, *held], "instruct"),
        checks.overlap(tuned, held, "instruct", "held_out"),
        *checks.check_answers(answers, "instruct"),
    ]


def check_run(rundir: RunDir) -> Outcomes:
    """Checks the instruction set, the explained pairs and the explanations of a run."""
    outcomes: Outcomes = []
    lines = files.read_json_lines
    folder = rundir.path / "instructions"
    # The instruction set as the run wrote it, whatever the config says today.
    parts = [lines(folder / f"{split}.jsonl") for split in ("train", "held_out")]
    train = [_flat(record) for record in parts[0]]
    if all(parts):
        outcomes += _check_parts(train, [_flat(record) for record in parts[1]])
    folder = rundir.path / "explanations"
    answered = run_records.held_out_answers(rundir, "prompt")
    if answered:  # answers to held-out prompts, by stage `instruct`
        prompts = checks.read_contents(answered)
        outcomes += checks.check_answers(
            [
                checks.Answer(
                    str(row),
                    writer,
                    _said(entry[writer]),
                    case,
                    str(entry.get(f"{writer}_stop") or ""),
                )
                for writer in ("base", "tuned")
                for row, (entry, case) in enumerate(zip(answered, prompts, strict=True), start=1)
                if writer in entry
            ],
            "held_out",
        )
    # The explained pairs must not be among the tuned prompts; answers must fit their prompts.
    pairs = run_records.pairs(rundir)
    if pairs:
        prompt_contents = checks.read_contents(pairs)
        outcomes += checks.check_prompts(prompt_contents, "pairs")
        if train:
            outcomes.append(
                checks.overlap(checks.read_contents(train), prompt_contents, "instruct", "pairs")
            )
        hashes = [str(pair["prompt_hash"]) for pair in pairs]
        answers = []
        for path in run_records.explainer_files(rundir):
            answers += _joined(
                run_records.explanations(rundir, path, "explainer"), hashes, prompt_contents
            )
        if answers:
            ids = list(dict.fromkeys(hashes))  # two users may have the same prompt
            outcomes += checks.check_ids(_first_of_each(answers), ids, "explanations")
            outcomes += checks.check_answers(answers, "explanations")
    # A judge that saw each pair in one order only may have judged the order.
    verdicts = run_records.verdicts(rundir)
    if verdicts:
        orders = [("", str(entry["first"]), str(entry["second"])) for entry in verdicts]
        outcomes.append(checks.shown_in_one_order(orders, "verdicts"))
    return outcomes


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """Converts an instruction of either form to one with `prompt` and `completion`."""
    if "messages" not in record:
        return dict(record)
    turns = record["messages"]
    # The first question stands for a conversation, and its last turn for the answer.
    prompts = [turn["content"] for turn in turns if turn["role"] == "user"]
    return {**record, "prompt": prompts[0], "completion": turns[-1]["content"]}


def _has_turns(record: Mapping[str, Any]) -> bool:
    """True if the `messages` of a record, if any, contain a prompt."""
    turns = record.get("messages", [{"role": "user", "content": ""}])
    return (
        isinstance(turns, list)
        and all(isinstance(turn, dict) and {"role", "content"} <= turn.keys() for turn in turns)
        and any(turn["role"] == "user" for turn in turns)
    )


def _first_of_each(answers: Sequence[checks.Answer]) -> list[checks.Answer]:
    """Keeps one answer of each writer to each prompt: equal prompts are answered per pair."""
    return list({(answer.writer, answer.prompt_id): answer for answer in answers}.values())


def _joined(
    records: Iterable[Mapping[str, Any]],
    hashes: Sequence[str],
    prompt_contents: Sequence[checks.PromptContent],
) -> list[checks.Answer]:
    """Answers of a run's explanation records, with their prompts by hash."""
    # Prompts of one hash are equal, so it does not matter which of them is kept.
    by_hash = dict(zip(hashes, prompt_contents, strict=True))
    return [
        checks.Answer(
            str(record["prompt_hash"]),
            str(record["explainer"]),
            str(record["text"]),
            by_hash.get(str(record["prompt_hash"])),
            str(record.get("stop") or ""),
        )
        for record in records
    ]


def _said(value: Any) -> str:
    """Text of an answer; "" for null."""
    return "" if value is None else str(value)


def _completions(
    records: Iterable[Mapping[str, Any]], prompt_contents: Iterable[checks.PromptContent]
) -> list[checks.Answer]:
    """Answers of an instruction set, numbered from 1."""
    return [
        checks.Answer(str(row), "the set", _said(_flat(record)["completion"]), case)
        for row, (record, case) in enumerate(zip(records, prompt_contents, strict=True), start=1)
    ]


def _answers(
    records_of: Mapping[str, Sequence[Mapping[str, Any]]],
    prompt_contents: Mapping[str, Sequence[checks.PromptContent]],
    paths: Any,
) -> tuple[list[checks.Answer], list[str]]:
    """Joins explanations with their prompts.

    Returns:
      The answers, those of a writer in the order of the prompts, and the ids of all prompts; no ids
      if explanations carry their own prompts.
    """
    records = records_of["explanations"]
    key = next((key for key in ("prompt_id", "prompt_hash") if key in records[0]), "prompt")
    place: dict[str, int] = {}
    ids: list[str] = []
    # Prompts come with the explanations, or from a file of their own that names them by id or hash.
    if key == "prompt":
        for number, record in enumerate(records, start=1):
            if "prompt" not in record:
                raise UserError(f"{paths.explanations}, record {number}: no key 'prompt'")
        by_place = checks.read_contents(records)
        # Reversed, so that the first record of a prompt stays.
        place = {str(record["prompt"]): row for row, record in reversed([*enumerate(records)])}
    elif "prompts" not in records_of:
        raise UserError(
            f"audit.explanations={paths.explanations}: its lines name prompts by {key!r}, so "
            "audit.prompts must name the file of prompts"
        )
    else:
        by_place = list(prompt_contents["prompts"])
        for row, record in enumerate(records_of["prompts"]):
            if key not in record:
                raise UserError(f"{paths.prompts}, record {row + 1}: no {key!r} to join answers by")
            ids.append(str(record[key]))
            place.setdefault(ids[-1], row)
    writer = next((name for name in _WRITERS if name in records[0]), "")
    text = next(name for name in _TEXTS if name in records[0])
    answers = []
    for number, record in enumerate(records, start=1):
        for name in (key, text, *([writer] if writer else [])):
            if name not in record:
                raise UserError(f"{paths.explanations}, record {number}: no key {name!r}")
        prompt_row = place.get(str(record[key]))
        prompt_id = str(record[key]) if key != "prompt" else str(number)
        answers.append(
            checks.Answer(
                prompt_id,
                str(record[writer]) if writer else "the file",
                _said(record[text]),
                None if prompt_row is None else by_place[prompt_row],
                str(record.get("stop") or ""),
            )
        )
    # In the order of the prompts, writers can be compared row by row.
    if ids:
        answers.sort(key=lambda answer: (answer.writer, place.get(answer.prompt_id, len(ids))))
    return answers, ids


def _read(spec: str, role: str) -> list[dict[str, Any]]:
    """Reads the records of a role's files; instructions get `prompt` and `completion`."""
    records: list[dict[str, Any]] = []
    for path in files.joined(spec):
        before = len(records)
        for number, record in files.numbered_records(path):
            where = f"{path}, line {number}"
            for choices in _NEEDED[role]:
                if not any(key in record for key in choices):
                    names = " or ".join(map(repr, choices))
                    raise UserError(
                        f"audit.{role}={where}: no key {names}{did_you_mean(choices[0], record)}"
                    )
            _check(record, role, where)
            records.append(_flat(record) if role == "instructions" else record)
        if len(records) == before:
            raise UserError(f"{path}: no record in it")
    return records


def _check(record: dict[str, Any], role: str, where: str) -> None:
    """Validates the types of a record; a null answer counts as an empty text."""
    if role == "instructions" and not _has_turns(record):
        raise UserError(f"{where}: expected messages with role and content, one of a user")
    flat = _flat(record) if role == "instructions" else record
    if (role != "explanations" or "prompt" in record) and not isinstance(flat["prompt"], str):
        raise UserError(f"{where}: expected a text as prompt")
    if role == "judgements":
        for key in ("first", "second"):
            text_of(record, key, where)
        if record["better"] not in (1, 2):
            raise UserError(f"{where}: expected 1 or 2 as better")
    if role in ("instructions", "explanations"):
        for key in (*_WRITERS, "prompt_id", "prompt_hash"):
            if key in record and role == "explanations":
                text_of(record, key, where)
        for key in _TEXTS:
            if flat.get(key) is not None:
                text_of(flat, key, where)


def _table(spec: str) -> list[dict[str, str]]:
    """Reads rating tables, with columns `item`, `model` and one per question."""
    tables = []
    for path in files.joined(spec):
        table = read_rows(path)
        for key in ("item", "system"):
            if key not in table.names:
                raise UserError(
                    f"audit.ratings={path}: no column {key!r}{did_you_mean(key, table.names)}"
                )
        if {"question", "value"} <= {*table.names}:
            raise UserError(f"audit.ratings={path}: a column a question is needed, not 'question'")
        tables.append(table)
    merged = joined(tables)
    for note in merged.notes:
        log(f"audit.ratings={note}")
    theirs = {"system": "model", "group": "dataset"}
    return [
        {theirs.get(name, name): _said(row.get(name)) for name in merged.names}
        for _, row in merged.rows
    ]
