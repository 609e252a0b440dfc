"""`xrec audit`: faults of a config's data, split and texts; and those of a finished run."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.files import write_json
from xrec_jax.core.logging import say
from xrec_jax.data.dataset import Dataset
from xrec_jax.data.load import load
from xrec_jax.evaluation import audit as checks
from xrec_jax.evaluation.audit.findings import listing, percent, plural
from xrec_jax.parallel.distributed import is_first
from xrec_jax.pipelines import audit_profiles, audit_texts, outputs
from xrec_jax.pipelines.data_identity import open_data
from xrec_jax.pipelines.datasets import RunData, prepare
from xrec_jax.pipelines.rundir import RunDir

WIDTH = 100


def audit(config: Any, *, output: str = "") -> int:
    """Prints what is wrong with the data, the split and the texts of a config.

    Args:
      config: the whole config. Looked at are `data`, the files that `audit` names, and the
        instruction set, where `instruct` is one of the stages.
      output: also write the findings as JSON to this file, which appears whole or not at all.

    Returns:
      1 if a finding is an error, else 0.

    Raises:
      UserError: the output does not end in .json, there is nothing to look at, or data or files
        cannot be read.
    """
    _check_output(output)
    named = {role: config.audit[role] for role in audit_texts.file_roles(config)}
    if config.data.format == "none" and not named and not audit_texts.tunes(config):
        raise UserError(
            "nothing to audit: data.format is 'none', config.audit names no file and nothing is "
            f"tuned; set one of {', '.join(f'audit.{key}' for key in config.audit)}"
        )
    data = prepare(config.data)
    outcomes = [
        *check_data(config, data),
        *audit_texts.check_tuning(config, data),
        *audit_texts.check_files(config),
        *audit_profiles.profile_findings(config, data),
    ]
    found = checks.collect(outcomes)
    if is_first():
        protocol = _protocol(config, data)
        about = {"data": summary(data, protocol)} if data.dataset.num_items else {}
        say(report(_heading(about.get("data"), named), found))
        if output:
            write_json(output, {**about, **({"files": named} if named else {}), **found.record()})
            say(f"findings written to {output}")
    return int(found.count("error") > 0)


def audit_workdir(workdir: epath.PathLike, *, output: str = "", allow_imports: bool = False) -> int:
    """Prints what is wrong with a run: its data, split, instruction set and explanations.

    Writes the findings to the run's `audit.json`, where its report finds them.

    Args:
      workdir: the run directory.
      output: also write them as JSON to this file.
      allow_imports: import the modules that its config names.

    Returns:
      1 if a finding is an error, else 0.

    Raises:
      UserError: this is not a run, its data cannot be read, or the output does not end in .json.
    """
    _check_output(output)
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = rundir.config()
    data = open_data(config, rundir)
    found = audit_run(rundir, config, data)
    if is_first():
        about = summary(data, _protocol(config, data)) if data.dataset.num_items else None
        say(report(_heading(about, {}), found))
        if output:
            write_json(output, found.record())
    return int(found.count("error") > 0)


def audit_run(rundir: RunDir, config: Any, data: RunData) -> checks.Audit:
    """Looks for faults in a run's data and texts, and writes them to its `audit.json`.

    Args:
      rundir: of the run; what its stages left so far is looked at.
      config: of the run.
      data: of the run.

    Raises:
      UserError: a file that `config.audit` names cannot be read.
    """
    outcomes = [
        *check_data(config, data),
        *audit_texts.check_run(rundir),
        *audit_texts.check_files(config),
        *audit_profiles.profile_findings(config, data),
    ]
    found = checks.collect(outcomes)
    if is_first():
        write_json(rundir.path / "audit.json", found.record())
    return found


def _check_output(output: str) -> None:
    if output and not output.endswith(".json"):
        raise UserError(f"--output={output}: the name must end in .json")
    if output:
        outputs.check_output(output)


def check_data(config: Any, data: RunData) -> list[checks.Finding | None]:
    """Checks events and split; nothing where a config has no recommender's data."""
    if not data.dataset.num_items:
        return []
    protocol = _protocol(config, data)
    return [
        *checks.check_split(data.dataset, data.split, protocol),
        *checks.check_times(data.dataset, data.split, protocol),
        *checks.check_dataset(data.dataset, _unfiltered(config.data, data.dataset)),
    ]


def _protocol(config: Any, data: RunData) -> checks.Protocol:
    return checks.Protocol(data.split.kind, config.data.split.order)


def summary(data: RunData, protocol: checks.Protocol) -> dict[str, Any]:
    """Name, sizes and protocol of what was audited."""
    dataset, split = data.dataset, data.split
    return {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "events": len(dataset.interactions),
        "split": str(protocol),
        "parts": {part: len(getattr(split, part)) for part in ("train", "valid", "test")},
    }


def _heading(about: Mapping[str, Any] | None, named: Mapping[str, str]) -> str:
    lines = []
    if about:
        sizes = ", ".join(plural(about[key], key[:-1]) for key in ("users", "items", "events"))
        parts = ", ".join(f"{part} {size:,}" for part, size in about["parts"].items())
        lines += [f"{about['name']}: {sizes}", f"split {about['split']}: {parts}"]
    return "\n".join([*lines, *(f"{role}: {path}" for role, path in named.items())])


def report(heading: str, found: checks.Audit) -> str:
    """The audit as text, the most severe findings first."""
    blocks = [heading, *(_finding(finding) for finding in found.findings)]
    if found.passed:
        blocks.append(_wrapped(f"nothing found by {listing(found.passed)}"))
    counts = [plural(found.count("error"), "error"), plural(found.count("warning"), "warning")]
    blocks.append(f"{', '.join(counts)}, {found.count('info')} info")
    return "\n\n".join(blocks)


def _finding(finding: checks.Finding) -> str:
    share = percent(finding.count, finding.total)
    lines = [
        f"{finding.severity}: {finding.code}, {finding.count:,} of {finding.total:,} ({share})",
        _wrapped(finding.message, "  "),
        *(_wrapped(example, "    - ", "      ") for example in finding.examples),
        _wrapped(finding.advice, "  -> ", "     "),
    ]
    return "\n".join(lines)


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=first, subsequent_indent=first if rest is None else rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def _unfiltered(config: ConfigDict, dataset: Dataset) -> Dataset | None:
    """Reads the files again with repeats kept, where the filters dropped some; else None."""
    if not dataset.notes.get("duplicates_dropped"):
        return None
    as_read = config.copy_and_resolve_references()
    with as_read.unlocked():
        as_read.filters = ConfigDict({"duplicates": "keep"})
    return load(as_read)
