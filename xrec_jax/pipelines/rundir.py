"""The run directory: what lies where, and which configuration it belongs to."""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath
from ml_collections import ConfigDict

from xrec_jax.core import files, identity, schema
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import read_metrics
from xrec_jax.core.marks import Marks
from xrec_jax.parallel.distributed import is_first, meet
from xrec_jax.pipelines import defaults
from xrec_jax.pipelines.stored_config import check_types

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


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of a config that decide what is computed."""
    return {key: value for key, value in _flat(config).items() if not key.startswith(_MOVABLE)}


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


class Left(NamedTuple):
    """What a finished stage leaves in the run directory.

    Attributes:
      paths: files, and folders with all that is in them; perhaps some that are not there.
      sections: of `evaluation.json` besides that of the stage's own name.
    """

    paths: Sequence[epath.Path]
    sections: tuple[str, ...] = ()


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

    @functools.cached_property
    def marks(self) -> Marks:
        """Of finished stages."""
        return Marks(self.path)

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
            theirs = _flat(_with_defaults(self._stored_config()))
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
        """Raises a `UserError` if a file, or a link to nowhere, is where the directory is to be."""
        if files.is_local(self.path) and os.path.islink(self.path) and not self.path.exists():
            target = os.readlink(self.path)
            raise UserError(f"--workdir={self.path} is a link to {target}, which is not there")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--workdir={self.path} is a file, not a directory")

    def check_records(self) -> None:
        """Reads what a finished stage's mark is made of, before anything is changed.

        Raises:
          UserError: if figures or metrics are damaged.
        """
        self.evaluation()
        read_metrics(self.path / "metrics.jsonl")

    def start(self, config: ConfigDict) -> None:
        """Creates the directory, or checks that it holds a run of the same configuration.

        Raises:
          UserError: see `check`; or if it cannot be written.
        """
        mine = self.check(config)
        # What no later verb could open is refused before anything is computed.
        check_types(mine, _as_json(defaults.base()), "--config", "change it in the config")
        if is_first():
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot create --workdir={self.path}: {error.strerror}") from error
            self._keep_config(mine)

    def _keep_config(self, mine: dict[str, Any]) -> None:
        """Writes `config.json`, and beside the marks what in it decides what is computed."""
        if self.config_path.exists() and files.read_json(self.config_path) == mine:
            if self.marks.settings() is None:
                self.marks.write_settings(_settings(mine))
            return
        self.marks.write_settings(None)  # a kill in between leaves none rather than another's
        files.write_json(self.config_path, mine)
        self.marks.write_settings(_settings(mine))

    def _stored_config(self) -> dict[str, Any]:
        """Content of `config.json`.

        Raises:
          UserError: if it is damaged, or was changed since the run was started.
        """
        stored = _object(self.config_path)
        check_types(stored, _as_json(defaults.base()), self.config_path)
        now = _settings(stored)
        kept = self.marks.settings() or now
        for key in sorted(kept.keys() | now.keys()):
            if kept.get(key) != now.get(key):
                raise UserError(
                    f"{self.config_path}: {key}={now.get(key)!r} was {kept.get(key)!r} when the "
                    "run was started; put it back, or start another --workdir with the new value"
                )
        return stored

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
        config = ConfigDict(_tuples(_with_defaults(self._stored_config())))
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
        found = self._sections()
        for name, systems in found.items():
            self.marks.check_section("evaluation", name, systems)
        return found

    def _sections(self) -> dict[str, Any]:
        found = _object(self.evaluation_path)
        schema.check_figures(
            found, self.evaluation_path, "put it back, or delete it and run `xrec evaluate`"
        )
        return found

    def write_evaluation(self, stage: str, systems: dict[str, Any], **more: dict[str, Any]) -> None:
        """Replaces one stage of `evaluation.json`, and what else the stage writes, all at once.

        Args:
          stage: name of the stage and of its section.
          systems: its content.
          **more: further sections of the stage.
        """
        self.reopen(stage)
        if is_first():
            kept = self._sections() if self.evaluation_path.exists() else {}
            files.write_json(self.evaluation_path, kept | {stage: systems, **more})

    def keep_identity(self, path: epath.Path, now: Mapping[str, str], *, started: str) -> None:
        """Keeps what a stage was started with; refuses to go on with something else.

        All processes call it.

        Args:
          path: the stage's `identity.json`.
          now: digests by name.
          started: subject of messages, such as "tuning".

        Raises:
          UserError: names what is another one.
        """
        meet(f"{path.name} looked for")
        known = identity.is_known(path, now, workdir=self.path, started=started)
        meet(f"{path.name} compared")  # before anybody writes
        if is_first() and not known:
            files.write_json(path, now)

    # What is done.

    def gone(self, stage: str) -> list[str] | None:
        """What a finished stage left and is not there any more; None if it is not marked as done.

        Raises:
          UserError: if a file or a figure was changed since.
        """
        return self.marks.missing(stage, self.evaluation())

    def reopen(self, stage: str) -> None:
        """Says, before anything of a stage changes, that it is not done; see `mark_done`."""
        if is_first():
            self.marks.remove(stage)

    def mark_done(self, stage: str, left: Left) -> None:
        """Marks a stage as done, on the first process."""
        if is_first():
            found = self.evaluation()
            self.marks.write(
                stage,
                left.paths,
                evaluation={n: found[n] for n in (stage, *left.sections) if n in found},
                metrics=self.lines_of(stage, read_metrics(self.path / "metrics.jsonl")),
            )

    @staticmethod
    def lines_of(stage: str, records: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Lines of `metrics.jsonl` that a stage wrote."""
        return [r for r in records if f"{r['stage']}/".startswith(f"{stage}/")]


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
            paths = config[group][key]  # whatever else somebody gave is the stage's to refuse
            config[group][key] = [each_absolute(p) if isinstance(p, str) else p for p in paths]


def _tuples(value: Any) -> Any:
    """JSON lists back as the tuples they were."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
