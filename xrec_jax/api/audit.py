"""`xrec audit`: prints the faults found in data, split and texts."""

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

WIDTH = 100  # columns of the terminal


def audit(config: Any, *, output: str = "") -> int:
    """Prints the faults of the data, the split and the texts that a config names.

    Args:
      config: see `defaults.base`. Audited are `data`, the files in `audit`, and the instruction
        set where `instruct` is one of the stages.
      output: also write the findings as JSON to this file, atomically.

    Returns:
      1 if a finding is an error, else 0.

    Raises:
      UserError: if the output does not end in .json, the config names nothing to audit, or data or
        files cannot be read.
    """
    _check_output(output)
    # `named` are the files of published texts, which need no data of the config.
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
    findings = checks.collect(outcomes)
    if is_primary():
        about = {"data": summary(data, protocol(config, data))} if data.dataset.num_items else {}
        log(report(_heading(about.get("data"), named), findings))
        if output:
            files = {"files": named} if named else {}
            write_json(output, {**about, **files, **findings.record()})
            log(f"findings written to {output}")
    # The exit status: a warning needs a decision, only an error makes figures wrong.
    return int(findings.count("error") > 0)


def audit_workdir(workdir: epath.PathLike, *, output: str = "", allow_imports: bool = False) -> int:
    """Prints the faults of a run: of its data, split, instruction set and explanations.

    The findings go to the run's `audit.json`, which `xrec report` reads.

    Args:
      workdir: the run directory.
      output: also write them as JSON to this file.
      allow_imports: import the modules that its config names.

    Returns:
      1 if a finding is an error, else 0.

    Raises:
      UserError: if this is no run directory, its data cannot be read, or the output does not end
        in .json.
    """
    _check_output(output)
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = read_config(rundir)
    data = open_data(config, rundir)
    findings = audit_run(rundir, config, data)
    if is_primary():
        about = summary(data, protocol(config, data)) if data.dataset.num_items else None
        log(report(_heading(about, {}), findings))
        if output:
            write_json(output, findings.record())
    return int(findings.count("error") > 0)


def _check_output(output: str) -> None:
    if output and not output.endswith(".json"):
        raise UserError(f"--output={output}: the name must end in .json")
    if output:
        outputs.check_output(output)


def _heading(about: Mapping[str, Any] | None, named: Mapping[str, str]) -> str:
    """Size and split of the data, and the audited files by role."""
    lines = []
    if about:
        sizes = ", ".join(plural(about[key], key[:-1]) for key in ("users", "items", "events"))
        parts = ", ".join(f"{part} {size:,}" for part, size in about["parts"].items())
        lines += [f"{about['name']}: {sizes}", f"split {about['split']}: {parts}"]
    return "\n".join([*lines, *(f"{role}: {path}" for role, path in named.items())])


def report(heading: str, findings: checks.Audit) -> str:
    """An audit as text, the most severe findings first, with their counts at the end."""
    blocks = [heading, *(_finding(finding) for finding in findings.findings)]
    if findings.passed:
        blocks.append(_wrapped(f"nothing found by {listing(findings.passed)}"))
    errors = plural(findings.count("error"), "error")
    warnings = plural(findings.count("warning"), "warning")
    blocks.append(f"{errors}, {warnings}, {findings.count('info')} info")
    return "\n\n".join(blocks)


def _finding(finding: checks.Finding) -> str:
    """A finding with its message, examples and advice."""
    share = percent(finding.count, finding.total)
    lines = [
        f"{finding.severity}: {finding.code}, {finding.count:,} of {finding.total:,} ({share})",
        _wrapped(finding.message, "  "),
        *(_wrapped(example, "    - ", "      ") for example in finding.examples),
        _wrapped(finding.advice, "  -> ", "     "),
    ]
    return "\n".join(lines)


def _wrapped(text: str, first: str = "", rest: str | None = None) -> str:
    """Text wrapped to the terminal: `first` and `rest` indent the first and the other lines."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
