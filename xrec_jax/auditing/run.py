"""`xrec audit`: faults of a config's data, split and texts; and those of a finished run."""

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
        *texts.check_run(rundir),
        *texts.check_files(config),
        *profiles.profile_findings(config, data),
    ]
    found = checks.collect(outcomes)
    if is_primary():
        write_json(rundir.path / "audit.json", found.record())
    return found


def check_data(config: Any, data: RunData) -> list[checks.Finding | None]:
    """Checks events and split; nothing where a config has no recommender's data."""
    if not data.dataset.num_items:
        return []
    rules = protocol(config, data)
    return [
        *checks.check_split(data.dataset, data.split, rules),
        *checks.check_times(data.dataset, data.split, rules),
        *checks.check_dataset(data.dataset, _unfiltered(config.data, data.dataset)),
    ]


def protocol(config: Any, data: RunData) -> checks.Protocol:
    """How the events were split, by which findings are judged."""
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


def _unfiltered(config: ConfigDict, dataset: Dataset) -> Dataset | None:
    """Reads the files again with repeats kept, where the filters dropped some; else None."""
    if not dataset.notes.get("duplicates_dropped"):
        return None
    as_read = config.copy_and_resolve_references()
    with as_read.unlocked():
        as_read.filters = ConfigDict({"duplicates": "keep"})
    return load(as_read)
