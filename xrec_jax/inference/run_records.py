"""Reader of all kinds of files in a run directory, which verifies that they are intact.

The files of a finished stage are compared with the stage's mark first (`core.storage.marks`), then
each record with its schema. Errors name file and line, and no damaged value is used.
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
    "systems": perhaps(of_object(WHOLE)),
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
    """Schema in which further keys are required."""
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
    """Reads the records of a JSON-lines file of a stage; empty without the file.

    Args:
      rundir: directory of the run.
      path: path of the file in it.
      fields: schema of the records.
      stage: stage that wrote the file, for the advice in messages.
      most: largest number of records to read.
      growing: whether the stage may still append to it, so that a torn last line is skipped.

    Raises:
      UserError: names the file and the line of a damaged or truncated record.
    """
    if not path.exists():
        return []
    rundir.marks.check_file(path)
    records: list[Record] = []
    # A stage that still appends may be in the middle of a line, so that one is skipped.
    numbered = enumerate(files.iter_json_lines(path), start=1)
    for number, record in numbered if growing else files.numbered_records(path):
        if len(records) == most:
            break
        way_out = f"delete the file and run the stage {stage!r} again"
        schema.check(record, fields, f"{path}, line {number}", way_out)
        records.append(record)
    return records


def answers_folder(rundir: RunDir) -> epath.Path:
    """Folder of pairs and explanations."""
    return rundir.path / "explanations"


def pairs(rundir: RunDir, *needed: str, most: int | None = None) -> list[Any]:
    """Reads the explained pairs; see `text.records.explanations.Pair`.

    Args:
      rundir: directory of the run.
      *needed: required keys besides ids and prompts.
      most: see `read`.
    """
    path = answers_folder(rundir) / "pairs.jsonl"
    return read(rundir, path, needing(PAIR, *needed), stage="explain", most=most)


def explanations(
    rundir: RunDir, path: epath.Path, *needed: str, most: int | None = None
) -> list[Any]:
    """Reads the answers of one explainer; see `text.records.explanations.Explanation`."""
    return read(rundir, path, needing(EXPLANATION, *needed), stage="explain", most=most)


def explainer_files(rundir: RunDir) -> list[epath.Path]:
    """Files of explanations beside the pairs, including those added by users."""
    joint = rundir.path / "joint"
    seeds = [path.name for path in joint.iterdir()] if joint.exists() else []
    final = {f"joint_{seed}" for seed in seeds}  # final texts of the joint stage
    return [path for path in answer_files(answers_folder(rundir)) if path.stem not in final]


def held_out_answers(rundir: RunDir, *needed: str) -> list[Record]:
    """Reads the answers of base and tuned model to the held-out prompts."""
    path = answers_folder(rundir) / "held_out.jsonl"
    return read(rundir, path, needing(_HELD_OUT, *needed), stage="instruct")


def answers_during_training(rundir: RunDir) -> list[Record]:
    """Reads the answers sampled during tuning."""
    return read(rundir, answers_folder(rundir) / "during_training.jsonl", _DURING, stage="instruct")


def recommended(rundir: RunDir, most: int) -> list[Record]:
    """Reads the explanations of stage `showcase`."""
    path = answers_folder(rundir) / "recommended.jsonl"
    return read(rundir, path, _RECOMMENDED, stage="showcase", most=most)


def verdicts(rundir: RunDir) -> list[Record]:
    """Reads the judge's verdicts on each pair of explanations in each order."""
    path = rundir.path / "judge" / "verdicts.jsonl"
    records = read(rundir, path, _VERDICT, stage="judge")
    for number, record in enumerate(records, start=1):
        if not 0.0 <= record["p_first"] <= 1.0:
            raise UserError(
                f"{path}, record {number} is damaged: 'p_first' is {record['p_first']}, no "
                "probability; delete the file and run the stage 'judge' again"
            )
    return records


def learned_prompts(rundir: RunDir) -> list[str]:
    """Reads the hashes of the judge's training prompts; empty before it is trained."""
    path = rundir.path / "judge" / "split.json"
    if not path.exists():
        return []
    rundir.marks.check_file(path)
    split = files.read_json(path)
    schema.check(split, _SPLIT, path, "put it back, or delete it and run `xrec evaluate`")
    return list(split["train"]["prompts"])


def rounds(rundir: RunDir, seed: str) -> list[Record]:
    """Reads the metrics of every round of a joint seed."""
    path = rundir.path / "joint" / seed / "rounds.jsonl"
    return read(rundir, path, _ROUND, stage="joint", growing=True)


def samples(rundir: RunDir, seed: str) -> list[Record]:
    """Reads sample texts of every round of a joint seed."""
    path = rundir.path / "joint" / seed / "samples.jsonl"
    return read(rundir, path, _SAMPLE, stage="joint", growing=True)


def joint_texts(rundir: RunDir, path: epath.Path) -> list[Record]:
    """Reads the final texts of a joint seed."""
    return read(rundir, path, _JOINT_TEXT, stage="joint")


def state_texts(rundir: RunDir, path: epath.Path, rows: np.ndarray) -> list[str]:
    """Reads the texts of a control for states.

    Args:
      rundir: directory of the run.
      path: path of the control's file.
      rows: `[texts]` expected states, in order.

    Raises:
      UserError: if the texts are of other states.
    """
    records = read(rundir, path, _STATE_TEXT, stage="joint")
    if [record["state"] for record in records] != rows.tolist():
        raise UserError(
            f"{path} is damaged: it does not hold a text for each of the {len(rows)} states; "
            "delete the file and run the stage 'joint' again"
        )
    return [record["text"] for record in records]


def metrics(rundir: RunDir) -> list[Record]:
    """Reads the lines of `metrics.jsonl`; a torn last one is skipped."""
    records = read_metrics(rundir.path / "metrics.jsonl")
    for number, record in enumerate(records, start=1):
        if record["stage"].startswith("recommend/"):
            schema.check(record, _EPOCH, f"{rundir.path / 'metrics.jsonl'}, record {number}")
    # A recommender's lines are of `recommend/NAME`, and the mark is that of the stage.
    stages = dict.fromkeys(str(record["stage"]).split("/")[0] for record in records)
    for stage in stages:
        rundir.marks.check_section("metrics", stage, rundir.lines_of(stage, records))
    return records


def audit(rundir: RunDir) -> Record | None:
    """Reads the findings of the audit; None without an audit."""
    return _object(rundir.path / "audit.json", _AUDIT, "run `xrec report` again")


def ratings(rundir: RunDir) -> Record | None:
    """Reads the human ratings; None without any."""
    record = _object(rundir.path / "ratings.json", {}, "")
    if record is not None:
        way_out = "collect the ratings again with `xrec rate collect`"
        schema.check_figures(record, rundir.path / "ratings.json", way_out)
    return record


def _object(path: epath.Path, fields: Schema, way_out: str) -> Record | None:
    if not path.exists():
        return None
    record = files.read_json(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: not a JSON object; the file was not written by a run")
    schema.check(record, fields, path, way_out)
    return record


def per_user(rundir: RunDir, stage: str) -> dict[str, np.ndarray]:
    """Reads the per-user metrics of a finished stage, such as `recommend/bpr/0`.

    Returns:
      Values `[users]` by `GROUP/METRIC`, and ids by `GROUP_users` (`users` for a joint seed).

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
    """Stacks the metrics of several seeds.

    Args:
      arrays: arrays of each seed, see `per_user`.
      folder: folder of their files, for messages.

    Returns:
      Values `[seeds, users]` by `GROUP/METRIC`.

    Raises:
      UserError: if the seeds have different metrics or users.
    """
    first = arrays[0]
    for number, other in enumerate(arrays[1:], start=2):
        for name in sorted(first.keys() | other.keys()):
            # Seeds from before cold items stood apart do not say which they are.
            if name.endswith("_cold") and not (name in first and name in other):
                continue
            # Metrics only need the same shape, ids of users must be the same in the same order.
            same = name in first and name in other and first[name].shape == other[name].shape
            if not same or ("/" not in name and not np.array_equal(first[name], other[name])):
                raise UserError(
                    f"{folder}: file {number} of the seeds does not go with the first: {name} "
                    "differs; put both back, or delete them and run `xrec run` again"
                )
    # Names with a slash are metrics, the others ids of users.
    names = [name for name in first if "/" in name]
    return {name: np.stack([seed_arrays[name] for seed_arrays in arrays]) for name in names}


def system_figures(rundir: RunDir, path: epath.Path) -> dict[str, np.ndarray]:
    """Reads the per-user test metrics of a control of the joint stage."""
    return _figures(rundir, path)


def candidates(rundir: RunDir, path: epath.Path, shape: tuple[int, int]) -> np.ndarray:
    """Reads the retrieved candidates of a joint seed: `[states, candidates]` items."""
    if path.exists():
        rundir.marks.check_file(path)
    items = read_npz(path).get("candidates")
    if items is None or items.shape != shape or items.dtype.kind not in "iu":
        raise UserError(
            f"{path} is damaged: no {shape[0]} rows of {shape[1]} candidates are in it; put it "
            "back, or use another --workdir"
        )
    return items


def _per_user_fault(arrays: Mapping[str, np.ndarray]) -> str | None:
    if not any("/" in name for name in arrays):
        return "there is no metric in it"
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            return f"{name} is no row of numbers"
        if "/" not in name:
            continue
        # Each group of metrics has its own ids; a joint seed has one set of ids for all.
        users = f"{name.split('/')[0].removesuffix('_unmasked')}_users"
        users = users if users in arrays else "users"
        if users not in arrays:
            return f"there are no {users}"
        if len(values) != len(arrays[users]):
            return f"{name} has {len(values)} values for {len(arrays[users])} users"
        if not np.isfinite(values).all():
            return f"{name} holds values that are no numbers"
    return None


def per_user_ids(config: Any, name: str, rundir: RunDir) -> dict[str, np.ndarray]:
    """Ids of the rows of `per_user_values`, the same for all seeds: `[users]` by name."""
    arrays = per_user(rundir, f"recommend/{name}/{seeds_of(config, name)[0]}")
    return {key: values for key, values in arrays.items() if "/" not in key}


def per_user_values(config: Any, name: str, rundir: RunDir) -> dict[str, np.ndarray]:
    """Values `[seeds, users]` of a finished recommender by metric name."""
    seeds = seeds_of(config, name)
    arrays = [run_records.per_user(rundir, f"{STAGE}/{name}/{seed}") for seed in seeds]
    return run_records.stacked(arrays, rundir.path / "per_user" / STAGE / name)
