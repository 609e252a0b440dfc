"""Audit of the file of profiles and descriptions that the `joint` stage may read."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from xrec_jax.data.run_data import RunData, need_events
from xrec_jax.evaluation.audit.findings import Finding
from xrec_jax.evaluation.audit.profiles import profile_checks
from xrec_jax.joint.states.file_texts import read_states_file


def profiles_path(config: ConfigDict) -> str:
    """Path of the file: `audit.profiles`, or the one of the config's joint stage; "" for none."""
    if config.audit.get("profiles"):
        return config.audit.profiles
    # The joint stage learns from these texts, so they are audited without being asked for.
    states = config.joint.states
    return states.path if "joint" in config.stages and states.source == "file" else ""


def profile_findings(config: Any, data: RunData) -> list[Finding | None]:
    """Checks the file of profiles against the data of the config; empty without a file.

    Raises:
      UserError: if the file cannot be read, or there are no events to compare it with.
    """
    path = profiles_path(config)
    if not path:
        return []
    need_events(data, "audit.profiles")
    rows = read_states_file(config, data, path)
    return profile_checks(rows, data.dataset, data.split, seed=config.seeds[0])
