"""Marks of finished stages: `done/STAGE.json`, the one file that says a stage is done.

A mark is written atomically, after all other outputs of the stage, and lists them: size and SHA-256
of every file, and a SHA-256 of every section of `evaluation.json` and of the stage's lines in
`metrics.jsonl`. A file that was changed since is refused by name before its content becomes a
figure; if one is missing, the stage is not done. A directory without marks was written by an
earlier version; its content is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files

_SETTINGS = "config.json"  # beside the marks, no stage's
_KINDS = ("evaluation", "metrics")  # sections of JSON, by name


class Marks:
    """The marks of a run directory.

    Args:
      root: the run directory.

    Raises:
      UserError: if their folder is a file.
    """

    def __init__(self, root: epath.Path):
        self._root = root
        self._folder = root / "done"
        if self._folder.exists() and not self._folder.is_dir():
            raise UserError(
                f"{self._folder} is a file; the marks of finished stages belong in a folder of "
                "that name: put it back, or delete the file, then what is there is taken as it is"
            )

    def write(
        self,
        stage: str,
        left: Iterable[epath.Path],
        *,
        evaluation: Mapping[str, Any],
        metrics: Iterable[Mapping[str, Any]],
    ) -> None:
        """Marks a stage as done.

        Args:
          stage: name of the stage.
          left: its files, and folders with all their content; missing ones are skipped.
          evaluation: its sections of `evaluation.json`.
          metrics: its lines of `metrics.jsonl`.
        """
        digests = {
            str(path.relative_to(self._root)): _content(path)
            for entry in left
            for path in (_below(entry) if entry.is_dir() else [entry])
            if path.exists()
        }
        # The mark itself comes last and is written atomically.
        sections = {name: section_digest(value) for name, value in evaluation.items()}
        files.write_json(
            self._path(stage),
            {
                "stage": stage,
                "files": dict(sorted(digests.items())),
                "evaluation": sections,
                "metrics": {stage: section_digest(_untimed(metrics))},
            },
        )

    def remove(self, stage: str) -> None:
        """Removes a stage's mark, before any of its outputs changes."""
        self._path(stage).unlink(missing_ok=True)

    def settings(self) -> dict[str, Any] | None:
        """Settings that the run was started with; None if they were not stored.

        Raises:
          UserError: if the file is damaged.
        """
        path = self._folder / _SETTINGS
        if not path.exists():
            return None
        settings = files.read_json(path)
        if not isinstance(settings, dict):
            raise UserError(f"{path}: damaged, not a JSON object; delete it to go on without it")
        return settings

    def write_settings(self, settings: Mapping[str, Any] | None) -> None:
        """Stores the settings that a run is started with; None removes them."""
        path = self._folder / _SETTINGS
        if settings is None:
            path.unlink(missing_ok=True)
        else:
            files.write_json(path, settings)

    def text(self, stage: str) -> str:
        """Text of a mark; "" if there is none."""
        path = self._path(stage)
        return path.read_text() if path.exists() else ""

    def put(self, stage: str, text: str) -> None:
        """Restores the text of a mark."""
        files.write_text(self._path(stage), text)

    def missing(self, stage: str, sections: Iterable[str]) -> list[str] | None:
        """Outputs of a marked stage that are missing now; None if it has no mark.

        Args:
          stage: name of the stage.
          sections: names of the sections that `evaluation.json` has now.

        Raises:
          UserError: if a file was changed since the stage wrote it.
        """
        if not self._path(stage).exists():
            return None
        mark, present = self._read(stage), set(sections)
        gone = [name for name in mark["evaluation"] if name not in present]
        for name, content in mark["files"].items():
            if not (self._root / name).exists():
                gone.append(name)
            else:
                self._compare(stage, name, content)
        return gone

    def has_file(self, path: epath.Path) -> bool:
        """True if a file is an output of a marked stage."""
        name = str(path.relative_to(self._root))
        return any(name in self._read(stage)["files"] for stage in self._stages())

    def check_file(self, path: epath.Path) -> None:
        """Refuses a file that was changed since its stage wrote it.

        Raises:
          UserError: names the file, the stage and the way out.
        """
        name = str(path.relative_to(self._root))
        for stage in self._stages():
            content = self._read(stage)["files"].get(name)
            if content is not None and path.exists():
                self._compare(stage, name, content)

    def check_section(self, kind: str, name: str, value: Any) -> None:
        """Refuses a section of `evaluation.json`, or metric lines, that were changed since.

        Args:
          kind: "evaluation" or "metrics".
          name: name of the section, or of the stage.
          value: present content.
        """
        if kind == "metrics":
            value = _untimed(value)
        for stage in self._stages():
            digest = self._read(stage)[kind].get(name)
            if digest is not None and digest != section_digest(value):
                if kind == "metrics":
                    file, what = "metrics.jsonl", f"its lines of stage {name!r}"
                else:
                    file, what = "evaluation.json", f"its section {name!r}"
                raise UserError(
                    f"{self._root / file}: {what} were changed since stage {stage!r} wrote them; "
                    f"put the file back, or delete it"
                    + ("" if kind == "metrics" else " and run `xrec evaluate`")
                )

    def _compare(self, stage: str, name: str, content: Mapping[str, Any]) -> None:
        path = self._root / name
        now = _content(path)
        if now != content:
            what = f"{now['bytes']:,} bytes instead of {content['bytes']:,}"
            if now["bytes"] == content["bytes"]:
                what = f"{now['bytes']:,} bytes as before, but others"
            raise UserError(
                f"{path}: changed since stage {stage!r} wrote it ({what}); put it back, or delete "
                "it and run the stage again"
            )

    def _stages(self) -> list[str]:
        if not self._folder.exists():
            return []
        names = (path.name for path in self._folder.iterdir())
        return sorted(
            name.removesuffix(".json")
            for name in names
            if name.endswith(".json") and not name.startswith(".") and name != _SETTINGS
        )

    def _path(self, stage: str) -> epath.Path:
        return self._folder / f"{stage}.json"

    def _read(self, stage: str) -> dict[str, Any]:
        path = self._path(stage)
        mark = files.read_json(path)
        complete = isinstance(mark, dict) and all(
            isinstance(mark.get(kind), dict)
            and all(isinstance(digest, str) for digest in mark[kind].values())
            for kind in _KINDS
        )
        if not complete or not _lists_files(mark.get("files")):
            raise UserError(
                f"{path}: damaged, it does not say what stage {stage!r} left; delete it, then what "
                "is there is taken as it is"
            )
        return mark


def section_digest(value: object) -> str:
    """SHA-256 of a JSON value, independent of key order."""
    text = json.dumps(files.plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _untimed(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Metric lines without values that depend on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def _lists_files(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(content, dict) and isinstance(content.get("bytes"), int)
        for content in value.values()
    )


def _content(path: epath.Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, as a mark lists them."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _below(folder: epath.Path) -> list[epath.Path]:
    """Files below a folder, recursively, without hidden ones."""
    paths: list[epath.Path] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        paths += _below(path) if path.is_dir() else [path]
    return paths
