"""Audit of the data, split and texts of a config or a run."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from xrec_jax.auditing import profiles, texts
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.files import write_json
from xrec_jax.data.dataset import Dataset
from xrec_jax.data.load import load
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation import audit as checks


def audit_run(rundir: RunDir, config: Any, data: RunData) -> checks.Audit:
    """Audits a run's data and texts, and writes the findings to its `audit.json`.

    Args:
      rundir: directory of the run; texts of the stages that are done are checked.
      config: configuration of the run.
      data: data of the run.

    Raises:
      UserError: if a file of `config.audit` cannot be read.
    """
    outcomes = [
        *check_data(config, data),
        *texts.check_run(rundir),
        *texts.check_files(config),
        *profiles.profile_findings(config, data),
    ]
    audit = checks.collect(outcomes)
    if is_primary():
        write_json(rundir.path / "audit.json", audit.record())
    return audit


def check_data(config: Any, data: RunData) -> list[checks.Finding | None]:
    """Checks events and split; empty for a config without interactions."""
    if not data.dataset.num_items:
        return []
    rules = protocol(config, data)
    return [
        *checks.check_split(data.dataset, data.split, rules),
        *checks.check_times(data.dataset, data.split, rules),
        *checks.check_dataset(data.dataset, _unfiltered(config.data, data.dataset)),
    ]


def protocol(config: Any, data: RunData) -> checks.Protocol:
    """Protocol of the split, on which the severity of findings depends."""
    return checks.Protocol(
        data.split.kind, config.data.split.order, repeats=not config.ranking.mask_seen
    )


def summary(data: RunData, protocol: checks.Protocol) -> dict[str, Any]:
    """Name, sizes and protocol of the audited data."""
    dataset, split = data.dataset, data.split
    return {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "events": len(dataset.interactions),
        "split": str(protocol),
        "parts": {name: len(getattr(split, name)) for name in ("train", "valid", "test")},
    }


def _unfiltered(config: ConfigDict, dataset: Dataset) -> Dataset | None:
    """Reads the files again with duplicates kept; None if the filters dropped none."""
    if not dataset.notes.get("duplicates_dropped"):
        return None
    # The finding shows examples of repeats, which the filtered data no longer have.
    as_read = config.copy_and_resolve_references()
    with as_read.unlocked():
        as_read.filters = ConfigDict({"duplicates": "keep"})
    return load(as_read)
