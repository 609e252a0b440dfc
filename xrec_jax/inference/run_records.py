"""The one reader of every kind of file in a run directory: whole, unchanged, and as it should be.

What a finished stage left is compared with the stage's mark first (`core.marks`), then each record
with its schema. What is damaged is named with file and line; nothing of it becomes a figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import read_metrics
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files, schema
from xrec_jax.core.storage.arrays import read_npz
from xrec_jax.core.storage.schema import (
    NUMBER,
    OBJECT,
    TEXT,
    WHOLE,
    Kind,
    Schema,
    of_list,
    of_object,
    or_null,
    perhaps,
    record_of,
)
from xrec_jax.inference import run_records
from xrec_jax.text.records.explanations import answer_files
from xrec_jax.training.recommender import STAGE, seeds_of

Record = dict[str, Any]

_REASON = record_of(
    {"attribute": TEXT, "value": TEXT, "phrase": perhaps(TEXT), "contribution": perhaps(NUMBER)},
    "a reason",
)
_PLANTED = record_of({"for": of_list(_REASON), "against": of_list(_REASON)}, "planted reasons")
_ENTRY = record_of(
    {"title": TEXT, "item": perhaps(TEXT), "attributes": perhaps(OBJECT)}, "an entry"
)
PAIR: Schema = {
    "user": TEXT,
    "item": TEXT,
    "prompt": TEXT,
    "prompt_hash": TEXT,
    "title": perhaps(TEXT),
    "rank": perhaps(WHOLE),
    "score": perhaps(NUMBER),
    "system": perhaps(TEXT),
    "profile": perhaps(TEXT),
    "profile_attributes": perhaps(OBJECT),
    "history": perhaps(of_list(_ENTRY)),
    "attributes": perhaps(OBJECT),
    "planted": perhaps(_PLANTED),
    "reasons": perhaps(TEXT),
}
EXPLANATION: Schema = {
    "user": TEXT,
    "item": TEXT,
    "prompt_hash": TEXT,
    "text": TEXT,
    "explainer": perhaps(TEXT),
    "rank": perhaps(WHOLE),
    "score": perhaps(NUMBER),
    "system": perhaps(TEXT),
    "tokens": perhaps(WHOLE),
    "log_prob": perhaps(NUMBER),
    "stop": perhaps(TEXT),
    "base": perhaps(TEXT),
    "adapter": perhaps(TEXT),
}
_HELD_OUT: Schema = {
    "prompt": perhaps(TEXT),
    "reference": perhaps(TEXT),
    "base": perhaps(TEXT),
    "tuned": perhaps(TEXT),
    "base_stop": perhaps(TEXT),
    "tuned_stop": perhaps(TEXT),
}
_DURING: Schema = {"step": WHOLE, "prompt": TEXT, "text": TEXT}
_RECOMMENDED: Schema = {"user": TEXT, "item": TEXT, "base": perhaps(TEXT), "tuned": perhaps(TEXT)}
_VERDICT: Schema = {
    "user": or_null(TEXT),
    "item": or_null(TEXT),
    "first": TEXT,
    "second": TEXT,
    "p_first": NUMBER,
}
_ROUND: Schema = {
    "round": WHOLE,
    "verdict": perhaps(TEXT),
    "best_round": perhaps(WHOLE),
    "stop_cause": perhaps(TEXT),
}
_SAID = Kind("a reason or its words", lambda value: isinstance(value, (dict, str)))
_SAMPLE: Schema = {
    "round": WHOLE,
    "user": schema.ID,
    "text": TEXT,
    "part": perhaps(TEXT),
    "planted": perhaps(of_object(of_list(_SAID))),
    "f1": perhaps(NUMBER),
}
_JOINT_TEXT: Schema = {"user": TEXT, "item": perhaps(TEXT), "system": TEXT, "text": TEXT}
_STATE_TEXT: Schema = {"state": WHOLE, "text": TEXT}
_PART = record_of({"prompts": of_list(TEXT)}, "a part")
_SPLIT: Schema = {"train": _PART, "held_out": _PART}
_FINDING = record_of(
    {
        "severity": TEXT,
        "code": TEXT,
        "message": TEXT,
        "advice": TEXT,
        "count": NUMBER,
        "total": NUMBER,
        "examples": perhaps(of_list(TEXT)),
    },
    "a finding",
)
_SIZES: Schema = {
    "name": perhaps(TEXT),
    "users": perhaps(NUMBER),
    "items": perhaps(NUMBER),
    "events": perhaps(NUMBER),
    "parts": perhaps(of_object(NUMBER)),
}
_AUDIT: Schema = {
    "findings": of_list(_FINDING)._replace(needed=False),
    "passed": of_list(TEXT)._replace(needed=False),
    "count": of_object(NUMBER)._replace(needed=False),
    "data": perhaps(record_of(_SIZES, "sizes")),
}
_EPOCH: Schema = {"train/epoch": NUMBER}  # of a recommender's line


def needing(fields: Schema, *names: str) -> Schema:
    """A schema in which further keys must be there."""
    return {key: kind._replace(needed=kind.needed or key in names) for key, kind in fields.items()}


def read(
    rundir: RunDir,
    path: epath.Path,
    fields: Schema,
    *,
    stage: str,
    most: int | None = None,
    growing: bool = False,
) -> list[Record]:
    """Records of a JSON-lines file that a stage wrote whole; none where there is no file.

    Args:
      rundir: of the run.
      path: in it.
      fields: what each record must hold.
      stage: that wrote it, for the way out.
      most: records to read, those after them unread.
      growing: whether the stage may still be at it, so that a torn last line is left out.

    Raises:
      UserError: names the file, and the line of a record that is damaged or cut.
    """
    if not path.exists():
        return []
    rundir.marks.check_file(path)
    records: list[Record] = []
    numbered = enumerate(files.iter_json_lines(path), start=1)
    for number, record in numbered if growing else files.numbered_records(path):
        if len(records) == most:
            break
        way_out = f"delete the file and run the stage {stage!r} again"
        schema.check(record, fields, f"{path}, line {number}", way_out)
        records.append(record)
    return records


def answers_folder(rundir: RunDir) -> epath.Path:
    """Where pairs and explanations lie."""
    return rundir.path / "explanations"


def pairs(rundir: RunDir, *needed: str, most: int | None = None) -> list[Any]:
    """What was asked; see `text.records.Pair`.

    Args:
      rundir: of the run.
      *needed: keys that the caller reads and that must be there, besides ids and prompts.
      most: see `read`.
    """
    path = answers_folder(rundir) / "pairs.jsonl"
    return read(rundir, path, needing(PAIR, *needed), stage="explain", most=most)


def explanations(
    rundir: RunDir, path: epath.Path, *needed: str, most: int | None = None
) -> list[Any]:
    """What one explainer answered; see `text.records.Explanation`."""
    return read(rundir, path, needing(EXPLANATION, *needed), stage="explain", most=most)


def explainer_files(rundir: RunDir) -> list[epath.Path]:
    """Files of explanations that lie beside the pairs, whoever put them there."""
    joint = rundir.path / "joint"
    seeds = [path.name for path in joint.iterdir()] if joint.exists() else []
    final = {f"joint_{seed}" for seed in seeds}  # their last texts
    return [path for path in answer_files(answers_folder(rundir)) if path.stem not in final]


def held_out_answers(rundir: RunDir, *needed: str) -> list[Record]:
    """Answers of base and tuned model to the held-out prompts of the instruction set."""
    path = answers_folder(rundir) / "held_out.jsonl"
    return read(rundir, path, needing(_HELD_OUT, *needed), stage="instruct")


def answers_during_training(rundir: RunDir) -> list[Record]:
    """Answers that were written while the adapter was tuned."""
    return read(rundir, answers_folder(rundir) / "during_training.jsonl", _DURING, stage="instruct")


def recommended(rundir: RunDir, most: int) -> list[Record]:
    """The few explanations of a run without stage `explain`."""
    path = answers_folder(rundir) / "recommended.jsonl"
    return read(rundir, path, _RECOMMENDED, stage="showcase", most=most)


def verdicts(rundir: RunDir) -> list[Record]:
    """What the judge said of each pair of explanations in each order."""
    path = rundir.path / "judge" / "verdicts.jsonl"
    found = read(rundir, path, _VERDICT, stage="judge")
    for number, record in enumerate(found, start=1):
        if not 0.0 <= record["p_first"] <= 1.0:
            raise UserError(
                f"{path}, record {number} is damaged: 'p_first' is {record['p_first']}, no "
                "probability; delete the file and run the stage 'judge' again"
            )
    return found


def learned_prompts(rundir: RunDir) -> list[str]:
    """Hashes of the prompts that the run's judge learned from; none before it is trained."""
    path = rundir.path / "judge" / "split.json"
    if not path.exists():
        return []
    rundir.marks.check_file(path)
    split = files.read_json(path)
    schema.check(split, _SPLIT, path, "put it back, or delete it and run `xrec evaluate`")
    return list(split["train"]["prompts"])


def rounds(rundir: RunDir, seed: str) -> list[Record]:
    """The numbers of every round of a joint seed."""
    path = rundir.path / "joint" / seed / "rounds.jsonl"
    return read(rundir, path, _ROUND, stage="joint", growing=True)


def samples(rundir: RunDir, seed: str) -> list[Record]:
    """Some texts of every round of a joint seed."""
    path = rundir.path / "joint" / seed / "samples.jsonl"
    return read(rundir, path, _SAMPLE, stage="joint", growing=True)


def joint_texts(rundir: RunDir, path: epath.Path) -> list[Record]:
    """The final texts of a joint seed."""
    return read(rundir, path, _JOINT_TEXT, stage="joint")


def state_texts(rundir: RunDir, path: epath.Path, rows: np.ndarray) -> list[str]:
    """Texts of a system for states.

    Args:
      rundir: of the run.
      path: of the system's file.
      rows: `[texts]` states that they must be of, in order.
    """
    records = read(rundir, path, _STATE_TEXT, stage="joint")
    if [record["state"] for record in records] != rows.tolist():
        raise UserError(
            f"{path} is damaged: it does not hold a text for each of the {len(rows)} states; "
            "delete the file and run the stage 'joint' again"
        )
    return [record["text"] for record in records]


def metrics(rundir: RunDir) -> list[Record]:
    """Lines of `metrics.jsonl`; a torn last one is left out."""
    records = read_metrics(rundir.path / "metrics.jsonl")
    for number, record in enumerate(records, start=1):
        if record["stage"].startswith("recommend/"):
            schema.check(record, _EPOCH, f"{rundir.path / 'metrics.jsonl'}, record {number}")
    stages = dict.fromkeys(str(record["stage"]).split("/")[0] for record in records)
    for stage in stages:
        rundir.marks.check_section("metrics", stage, rundir.lines_of(stage, records))
    return records


def audit(rundir: RunDir) -> Record | None:
    """What the audit found; None where there was none."""
    return _object(rundir.path / "audit.json", _AUDIT, "run `xrec report` again")


def ratings(rundir: RunDir) -> Record | None:
    """What people said; None where nobody was asked."""
    found = _object(rundir.path / "ratings.json", {}, "")
    if found is not None:
        way_out = "collect the ratings again with `xrec rate collect`"
        schema.check_figures(found, rundir.path / "ratings.json", way_out)
    return found


def _object(path: epath.Path, fields: Schema, way_out: str) -> Record | None:
    if not path.exists():
        return None
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; the file was not written by a run")
    schema.check(found, fields, path, way_out)
    return found


def per_user(rundir: RunDir, stage: str) -> dict[str, np.ndarray]:
    """Every user's metrics of a finished stage, such as `recommend/bpr/0`.

    Returns:
      `GROUP/METRIC` to `[users]` values, and `GROUP_users` (of a joint seed `users`) to ids.

    Raises:
      UserError: if the file is missing, damaged or changed.
    """
    return _figures(rundir, rundir.per_user(stage))


def _figures(rundir: RunDir, path: epath.Path) -> dict[str, np.ndarray]:
    if path.exists():
        rundir.marks.check_file(path)
    arrays = read_npz(path)
    problem = _per_user_fault(arrays)
    if problem is not None:
        raise UserError(
            f"{path} is damaged: {problem}; put it back, or delete it and run `xrec run` again"
        )
    return arrays


def stacked(arrays: Sequence[Mapping[str, np.ndarray]], folder: epath.Path) -> dict[str, Any]:
    """Metrics of several seeds as one.

    Args:
      arrays: of each seed, see `per_user`.
      folder: of their files, for messages.

    Returns:
      `GROUP/METRIC` to `[seeds, users]` values.

    Raises:
      UserError: if the seeds have other metrics or were tested on others.
    """
    first = arrays[0]
    for number, other in enumerate(arrays[1:], start=2):
        for name in sorted(first.keys() | other.keys()):
            same = name in first and name in other and first[name].shape == other[name].shape
            if not same or ("/" not in name and not np.array_equal(first[name], other[name])):
                raise UserError(
                    f"{folder}: file {number} of the seeds does not go with the first: {name} "
                    "differs; put both back, or delete them and run `xrec run` again"
                )
    names = [name for name in first if "/" in name]
    return {name: np.stack([one[name] for one in arrays]) for name in names}


def system_figures(rundir: RunDir, path: epath.Path) -> dict[str, np.ndarray]:
    """Per-user test metrics of a system of the joint stage."""
    return _figures(rundir, path)


def candidates(rundir: RunDir, path: epath.Path, shape: tuple[int, int]) -> np.ndarray:
    """What a joint seed retrieved: `[states, candidates]` items."""
    if path.exists():
        rundir.marks.check_file(path)
    found = read_npz(path).get("candidates")
    if found is None or found.shape != shape or found.dtype.kind not in "iu":
        raise UserError(
            f"{path} is damaged: no {shape[0]} rows of {shape[1]} candidates are in it; put it "
            "back, or use another --workdir"
        )
    return found


def _per_user_fault(arrays: Mapping[str, np.ndarray]) -> str | None:
    if not any("/" in name for name in arrays):
        return "there is no metric in it"
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            return f"{name} is no row of numbers"
        if "/" not in name:
            continue
        users = f"{name.split('/')[0].removesuffix('_unmasked')}_users"
        users = users if users in arrays else "users"
        if users not in arrays:
            return f"there are no {users}"
        if len(values) != len(arrays[users]):
            return f"{name} has {len(values)} values for {len(arrays[users])} users"
        if not np.isfinite(values).all():
            return f"{name} holds values that are no numbers"
    return None


def per_user_values(config: Any, name: str, rundir: RunDir) -> dict[str, np.ndarray]:
    """Metric name to `[seeds, users]` values of a finished system."""
    seeds = seeds_of(config, name)
    arrays = [run_records.per_user(rundir, f"{STAGE}/{name}/{seed}") for seed in seeds]
    return run_records.stacked(arrays, rundir.path / "per_user" / STAGE / name)
