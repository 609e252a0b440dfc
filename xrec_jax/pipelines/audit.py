"""`xrec audit`: faults of a config's data and split, before anything is trained on them."""

from __future__ import annotations

import textwrap
from typing import Any

from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError
from xrec_jax.core.files import write_json
from xrec_jax.core.logging import say
from xrec_jax.data.dataset import Dataset
from xrec_jax.data.load import load
from xrec_jax.evaluation import audit as checks
from xrec_jax.evaluation.audit.findings import listing, percent, plural
from xrec_jax.parallel.distributed import is_first
from xrec_jax.pipelines.datasets import RunData, prepare

WIDTH = 100


def audit(config: Any, *, output: str = "") -> int:
    """Prints what is wrong with the data and the split of a config.

    Args:
      config: the whole config; only `data` is read.
      output: also write the findings as JSON to this file, which appears whole or not at all.

    Returns:
      1 if a finding is an error, else 0.

    Raises:
      UserError: the output does not end in .json, or the data cannot be read or split.
    """
    if output and not output.endswith(".json"):
        raise UserError(f"--output={output}: the name must end in .json")
    data = prepare(config.data)
    protocol = checks.Protocol(config.data.split.kind, config.data.split.order)
    found = checks.collect(
        [
            *checks.check_split(data.dataset, data.split, protocol),
            *checks.check_times(data.dataset, data.split, protocol),
            *checks.check_dataset(data.dataset, _unfiltered(config.data, data.dataset)),
        ]
    )
    if is_first():
        say(report(data, protocol, found))
        if output:
            write_json(output, {"data": summary(data, protocol), **found.record()})
            say(f"findings written to {output}")
    return int(found.count("error") > 0)


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


def report(data: RunData, protocol: checks.Protocol, found: checks.Audit) -> str:
    """The audit as text, the most severe findings first."""
    about = summary(data, protocol)
    sizes = ", ".join(plural(about[key], key[:-1]) for key in ("users", "items", "events"))
    parts = ", ".join(f"{part} {size:,}" for part, size in about["parts"].items())
    blocks = [f"{about['name']}: {sizes}\nsplit {protocol}: {parts}"]
    blocks += [_finding(finding) for finding in found.findings]
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
