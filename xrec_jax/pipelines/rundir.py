"""The run directory: what lies where, and which configuration it belongs to."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from xrec_jax.core import files
from xrec_jax.core.errors import UserError
from xrec_jax.parallel.distributed import is_first
from xrec_jax.pipelines import defaults

# Keys that may change between a run and its resume without changing what is computed.
_MOVABLE = (
    "mesh.", "data.path", "data.users", "data.items", "llm.path", "instruct.path", "pretrain.files",
    "judge.path", "joint.states.path", "joint.judge.adapter", "judge.explanations",
    "attributes.path", "audit.",
)  # fmt: skip


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        out: dict[str, Any] = {}
        for key, item in value.items():
            out |= _flat(item, f"{prefix}{key}.")
        return out
    return {prefix[:-1]: value}


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
    if not isinstance(names, (list, tuple)) or not all(
        isinstance(name, str) and all(part.isidentifier() for part in name.split("."))
        for name in names
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


class RunDir:
    """Paths and small files of a run.

    Args:
      path: local or `gs://`.
      allow_imports: whether `config` may import the modules that the directory's own `config.json`
        names. It may come from somebody else, so only who asks for it runs its code.
    """

    def __init__(self, path: epath.PathLike, *, allow_imports: bool = False):
        self._allow_imports = allow_imports
        try:
            self.path = files.absolute(path)
        except UserError as error:
            raise UserError(f"--workdir={error}") from error

    @property
    def config_path(self) -> epath.Path:
        return self.path / "config.json"

    @property
    def evaluation_path(self) -> epath.Path:
        return self.path / "evaluation.json"

    def checkpoints(self, stage: str) -> epath.Path:
        """Folder of a stage's checkpoints."""
        return self.path / "checkpoints" / stage

    def per_user(self, stage: str) -> epath.Path:
        """File of a finished stage's per-user metrics; it exists once the stage is done."""
        return self.path / "per_user" / f"{stage}.npz"

    def check(self, config: ConfigDict) -> dict[str, Any]:
        """Checks that a run that the directory holds is of the same configuration.

        Returns:
          The configuration as it is written.

        Raises:
          UserError: if it holds another configuration, or is no directory.
        """
        files.check_no_pattern(self.path, "--workdir")
        mine = _as_json(config)
        _make_absolute(mine)  # later verbs may be called from another folder
        if self.config_path.exists():
            theirs = _flat(_with_defaults(_object(self.config_path)))
            ours = _flat(mine)
            for key in sorted(theirs.keys() | ours.keys()):
                if key.startswith(_MOVABLE) or theirs.get(key) == ours.get(key):
                    continue
                raise UserError(
                    f"{self.path} holds a run with {key}={theirs.get(key)!r}, not "
                    f"{ours.get(key)!r}; use another --workdir, or the configuration it was "
                    "started with"
                )
        return mine

    def check_is_directory(self) -> None:
        """Raises a `UserError` if a file is where the directory is to be."""
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file, not a directory")

    def start(self, config: ConfigDict) -> None:
        """Creates the directory, or checks that it holds a run of the same configuration.

        Raises:
          UserError: see `check`; or if it cannot be written.
        """
        mine = self.check(config)
        if is_first():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot create --workdir={self.path}: {error.strerror}") from error
            files.write_json(self.config_path, mine)

    def compared(self, config: ConfigDict) -> dict[str, Any]:
        """Values of a configuration, by key, that all processes of a run must have in common."""
        values = _flat(_as_json(config))
        return {
            key: value
            for key, value in values.items()
            if key.startswith("mesh.") or not key.startswith(_MOVABLE)
        }

    def config(self, *, need_extensions: bool = True) -> ConfigDict:
        """The configuration of an existing run.

        Args:
          need_extensions: false for what works without that which extensions register.

        Raises:
          UserError: if this is not a run directory, or it names modules that are not imported yet
            and nobody allowed it to.
        """
        if not self.config_path.exists():
            raise UserError(f"{self.path} is not a run directory: it has no config.json")
        config = ConfigDict(_tuples(_with_defaults(_object(self.config_path))))
        new = [name for name in _extensions(config) if name not in sys.modules]
        if self._allow_imports:
            import_extensions(config)
        elif new and need_extensions:
            raise UserError(
                f"{self.config_path}: imports names code to run: {', '.join(new)}; if you trust "
                "whoever made the run, add --allow_imports (in Python allow_imports=True)"
            )
        return config

    def evaluation(self) -> dict[str, Any]:
        """Content of `evaluation.json`; empty before the first stage is done."""
        if not self.evaluation_path.exists():
            return {}
        found = _object(self.evaluation_path)
        for stage, systems in found.items():
            if not isinstance(systems, dict) or not all(
                isinstance(figures, dict) for figures in systems.values()
            ):
                raise UserError(
                    f"{self.evaluation_path}: {stage!r} does not hold figures of systems; delete "
                    "it and run the stage again"
                )
        return found

    def write_evaluation(self, stage: str, systems: dict[str, Any]) -> None:
        """Replaces one stage of `evaluation.json`."""
        if is_first():
            files.write_json(self.evaluation_path, self.evaluation() | {stage: systems})


def _object(path: epath.Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    found = files.read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object; the file was not written by a run")
    return found


def _with_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config with today's defaults for keys that did not exist when it was written."""

    def fill(known: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
        merged = known | given
        for key in known.keys() & given.keys():
            if isinstance(known[key], dict) and isinstance(given[key], dict) and known[key]:
                merged[key] = fill(known[key], given[key])
        return merged

    return fill(_as_json(defaults.base()), config)


def _make_absolute(config: dict[str, Any]) -> None:
    """Makes every path in a config absolute; where several files may be joined by "+", each."""

    def absolute(path: str) -> str:
        return os.fspath(files.absolute(path))

    def each_absolute(spec: Any) -> Any:
        if not isinstance(spec, str):
            return spec  # the stage that reads it says what is wrong
        return "+".join(absolute(path) for path in files.joined(spec))

    for group, keys in (
        ("data", ("path", "users", "items")), ("llm", ("path",)), ("instruct", ("path",)),
        ("judge", ("path",)), ("attributes", ("path",)),
    ):  # fmt: skip
        for key in keys:
            if config.get(group, {}).get(key):
                config[group][key] = absolute(config[group][key])
    for key, spec in config.get("audit", {}).items():
        config["audit"][key] = each_absolute(spec) if spec else spec
    for group, key in (("states", "path"), ("judge", "adapter")):
        found = config.get("joint", {}).get(group, {})
        if found.get(key) and found[key] != "run":
            found[key] = absolute(found[key])
    for group, key in (("pretrain", "files"), ("judge", "explanations")):
        if group in config:
            config[group][key] = [each_absolute(spec) for spec in config[group][key]]


def _tuples(value: Any) -> Any:
    """JSON lists back as the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
