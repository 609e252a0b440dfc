"""`xrec audit`: faults of data, split and texts, reported on the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from etils import epath

from xrec_jax.auditing import profiles, texts
from xrec_jax.auditing.run import audit_run, check_data, protocol, summary
from xrec_jax.core import outputs
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.files import write_json
from xrec_jax.data.run_data import prepare
from xrec_jax.data.run_identity import open_data
from xrec_jax.evaluation import audit as checks
from xrec_jax.evaluation.audit.findings import listing, percent, plural
from xrec_jax.run_config import read_config

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
    named = {role: config.audit[role] for role in texts.file_roles(config)}
    if config.data.format == "none" and not named and not texts.tunes(config):
        raise UserError(
            "nothing to audit: data.format is 'none', config.audit names no file and nothing is "
            f"tuned; set one of {', '.join(f'audit.{key}' for key in config.audit)}"
        )
    data = prepare(config.data)
    outcomes = [
        *check_data(config, data),
        *texts.check_tuning(config, data),
        *texts.check_files(config),
        *profiles.profile_findings(config, data),
    ]
    found = checks.collect(outcomes)
    if is_primary():
        about = {"data": summary(data, protocol(config, data))} if data.dataset.num_items else {}
        log(report(_heading(about.get("data"), named), found))
        if output:
            write_json(output, {**about, **({"files": named} if named else {}), **found.record()})
            log(f"findings written to {output}")
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
    config = read_config(rundir)
    data = open_data(config, rundir)
    found = audit_run(rundir, config, data)
    if is_primary():
        about = summary(data, protocol(config, data)) if data.dataset.num_items else None
        log(report(_heading(about, {}), found))
        if output:
            write_json(output, found.record())
    return int(found.count("error") > 0)


def _check_output(output: str) -> None:
    if output and not output.endswith(".json"):
        raise UserError(f"--output={output}: the name must end in .json")
    if output:
        outputs.check_output(output)


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
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
