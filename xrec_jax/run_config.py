"""The configuration of a run directory: written once, held against what is there, read back."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from xrec_jax import defaults, recommenders, stages
from xrec_jax.core.errors import UserError
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.llm.io import hub
from xrec_jax.llm.model import precision
from xrec_jax.stages.stored_config import check_types

# Paths of what all stages share; every stage says which keys of its section are paths.
_BASE = "llm.path"
_PATHS = ("data.path", "data.users", "data.items", "data.item_vectors", _BASE)


def _movable() -> tuple[str, ...]:
    """Keys that may change between a run and its resume without changing what is computed."""
    of_stages = (key for stage in stages.registered() for key in stage.full_paths)
    return ("mesh.", "audit.", *_PATHS, *of_stages)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, item in value.items():
            out |= _flat(item, f"{prefix}{key}.")
        return out
    return {prefix[:-1]: value}


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of a config that decide what is computed."""
    movable = _movable()
    return {key: value for key, value in _flat(config).items() if not key.startswith(movable)}


def _as_json(config: ConfigDict) -> dict[str, Any]:
    return json.loads(json.dumps(files.plain(config.to_dict())))


def _extensions(config: Any) -> list[str]:
    """Names of the modules that a config wants imported.

    Raises:
      UserError: if they are not a list of names.
    """
    names = config.get("imports", ()) or ()
    if isinstance(names, str):
        names = (names,)
    well_formed = isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
    if well_formed:  # `--config.imports=a,b` arrives as one text
        names = [name for entry in names for name in entry.removesuffix(",").split(",")]
    if not well_formed or not all(
        part.isidentifier() for name in names for part in name.split(".")
    ):
        raise UserError(
            f"config.imports={names!r} must be names of modules, such as ('my_module',)"
        )
    return list(names)


def import_extensions(config: Any) -> None:
    """Imports the modules that a config names, so that what they register is known.

    Raises:
      UserError: if one cannot be imported.
    """
    for name in _extensions(config):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(
                f"config.imports: cannot import {name!r} ({error}); is its folder in PYTHONPATH?"
            ) from error
        except (Exception, SystemExit) as error:  # whatever a module does while it is imported
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise UserError(f"config.imports: {name!r} fails when imported ({reason})") from error


def settle_dtype(rundir: RunDir, config: ConfigDict) -> None:
    """Puts the dtype that `llm.dtype="auto"` stands for into a config, to be kept with the run.

    A run that is resumed goes on in the dtype it began with, whatever this processor is fast at.
    """
    if config.llm.dtype == precision.AUTO and rundir.config_path.exists():
        # Runs from before it was settled kept the word itself, and go on with it.
        config.llm.dtype = _with_defaults(_stored_config(rundir))["llm"]["dtype"]
    else:
        config.llm.dtype = precision.settled(config.llm.dtype)


def check_config(rundir: RunDir, config: ConfigDict) -> dict[str, Any]:
    """Checks that a run that the directory holds is of the same configuration.

    Returns:
      The configuration as it is written.

    Raises:
      UserError: if it holds another configuration, or is no directory.
    """
    files.check_no_pattern(rundir.path, "--workdir")
    mine = _as_json(config)
    _make_absolute(mine)  # later verbs may be called from another folder
    if rundir.config_path.exists():
        theirs = _flat(_with_defaults(_stored_config(rundir)))
        ours = _flat(mine)
        movable = _movable()
        for key in sorted(theirs.keys() | ours.keys()):
            if key.startswith(movable) or theirs.get(key) == ours.get(key):
                continue
            raise UserError(
                f"{rundir.path} holds a run with {key}={theirs.get(key)!r}, not "
                f"{ours.get(key)!r}; use another --workdir, or the configuration it was "
                "started with"
            )
    return mine


def start_run(rundir: RunDir, config: ConfigDict) -> None:
    """Creates the directory, or checks that it holds a run of the same configuration.

    Raises:
      UserError: see `check_config`; or if it cannot be written.
    """
    mine = check_config(rundir, config)
    # What no later verb could open is refused before anything is computed.
    check_types(mine, _as_json(defaults.base()), "--config", "change it in the config")
    if is_primary():
        try:
            rundir.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create --workdir={rundir.path}: {error.strerror}") from error
        _keep_config(rundir, mine)


def _keep_config(rundir: RunDir, mine: dict[str, Any]) -> None:
    """Writes `config.json`, and beside the marks what in it decides what is computed."""
    if rundir.config_path.exists() and files.read_json(rundir.config_path) == mine:
        if rundir.marks.settings() is None:
            rundir.marks.write_settings(_settings(mine))
        return
    rundir.marks.write_settings(None)  # a kill in between leaves none rather than another's
    files.write_json(rundir.config_path, mine)
    rundir.marks.write_settings(_settings(mine))


def _stored_config(rundir: RunDir) -> dict[str, Any]:
    """Content of `config.json`.

    Raises:
      UserError: if it is damaged, or was changed since the run was started.
    """
    stored = rundir.stored()
    check_types(stored, _as_json(defaults.base()), rundir.config_path)
    now = _settings(stored)
    kept = rundir.marks.settings() or now
    known = defaults.base()
    for key in sorted(kept.keys() | now.keys()):
        if key not in kept and key.partition(".")[0] not in known:
            continue  # a path, perhaps: the stage that would say so is not imported
        if kept.get(key) != now.get(key):
            raise UserError(
                f"{rundir.config_path}: {key}={now.get(key)!r} was {kept.get(key)!r} when the "
                "run was started; put it back, or start another --workdir with the new value"
            )
    return stored


def compared(config: ConfigDict) -> dict[str, Any]:
    """Values of a configuration, by key, that all processes of a run must have in common."""
    values, movable = _flat(_as_json(config)), _movable()
    return {
        key: value
        for key, value in values.items()
        if key.startswith("mesh.") or not key.startswith(movable)
    }


def read_config(rundir: RunDir, *, need_extensions: bool = True) -> ConfigDict:
    """The configuration of an existing run, with today's defaults for keys it does not have.

    Args:
      rundir: of the run.
      need_extensions: false for what works without that which extensions register.

    Raises:
      UserError: if this is not a run directory, or it names modules that are not imported yet
        and nobody allowed it to.
    """
    stored = _stored_config(rundir)
    new = [name for name in _extensions(stored) if name not in sys.modules]
    if rundir.allow_imports:
        import_extensions(stored)
        # Stages that they registered have sections, with types and defaults, of their own.
        check_types(stored, _as_json(defaults.base()), rundir.config_path)
    elif new and need_extensions:
        raise UserError(
            f"{rundir.config_path}: imports names code to run: {', '.join(new)}; if you trust "
            "whoever made the run, add --allow_imports (in Python allow_imports=True)"
        )
    return ConfigDict(_tuples(_with_defaults(stored)))


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config with today's defaults for keys that did not exist when it was written."""

    def fill(known: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
        merged = known | stored
        for key in known.keys() & stored.keys():
            # A group without defaults, such as `recommend`, is the config file's alone.
            if isinstance(known[key], dict) and isinstance(stored[key], dict) and known[key]:
                merged[key] = fill(known[key], stored[key])
        return merged

    filled = fill(_as_json(defaults.base()), config)
    for name, system in filled["recommend"].items():
        # Other models are a matter of extensions that are not imported.
        if system["model"] in recommenders.names():
            known = defaults.system(system["model"]).to_dict()
            # A hyper-parameter without a default must be in the stored ones.
            hparams = known["hparams"].items()
            known["hparams"] = {k: v for k, v in hparams if v is not dataclasses.MISSING}
            filled["recommend"][name] = fill(json.loads(json.dumps(files.plain(known))), system)
    return filled


def _make_absolute(config: dict[str, Any]) -> None:
    """Makes every path in a config absolute; where several files may be joined by "+", each."""
    for key in _PATHS:
        for group, name in _places(config, key):
            # The name of a base stays, so that a run can go on where the hub's cache is elsewhere.
            if key != _BASE or not hub.is_name(group[name]):
                group[name] = _absolute(group[name])
    for stage in stages.registered():
        for key in stage.full_paths:
            for group, name in _places(config, key):
                if group[name] not in stage.not_paths:
                    group[name] = _absolute(group[name])
    for key, value in config.get("audit", {}).items():
        config["audit"][key] = _each_absolute(value) if value else value


def _places(config: dict[str, Any], key: str) -> Iterator[tuple[dict[str, Any], str]]:
    """The group of a key and its name there, if it has a value."""
    *groups, name = key.split(".")
    parent: Any = config
    for group in groups:
        parent = parent.get(group, {})
    if parent.get(name):
        yield parent, name


def _absolute(value: Any) -> Any:
    """A path, or a list whose entries are paths joined by "+"; what is neither stays."""
    if isinstance(value, list):
        return [_each_absolute(path) for path in value]
    return os.fspath(files.absolute(value)) if isinstance(value, str) else value


def _each_absolute(value: Any) -> Any:
    if not isinstance(value, str):
        return value  # the stage that reads it says what is wrong
    return "+".join(os.fspath(files.absolute(path)) for path in files.joined(value))


def _tuples(value: Any) -> Any:
    """JSON lists back as the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
