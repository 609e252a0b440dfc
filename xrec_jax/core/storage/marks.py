"""Marks of finished stages: `done/STAGE.json`, the one file that says a stage is done.

A mark is written atomically when all else that the stage leaves is there, and says what that is: of
every file its size and SHA-256, of every section of `evaluation.json` and of the stage's lines in
`metrics.jsonl` a SHA-256. A file that somebody changed since is refused by name before its content
becomes a figure; one that is gone means that the stage is not done. A directory without marks was
written by an earlier version; what it holds is taken as it is.
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
      UserError: if something else is where their folder is to be.
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
          stage: its name.
          left: files, and folders with all that is in them; what is not there is left out.
          evaluation: its sections of `evaluation.json`.
          metrics: its lines of `metrics.jsonl`.
        """
        found = {
            str(path.relative_to(self._root)): _content(path)
            for entry in left
            for path in (_below(entry) if entry.is_dir() else [entry])
            if path.exists()
        }
        sections = {name: section_digest(value) for name, value in evaluation.items()}
        files.write_json(
            self._path(stage),
            {
                "stage": stage,
                "files": dict(sorted(found.items())),
                "evaluation": sections,
                "metrics": {stage: section_digest(_untimed(metrics))},
            },
        )

    def remove(self, stage: str) -> None:
        """Says that a stage is not done any more, before anything of it changes."""
        self._path(stage).unlink(missing_ok=True)

    def settings(self) -> dict[str, Any] | None:
        """The settings that the run was started with; None where they were not kept.

        Raises:
          UserError: if the file is damaged.
        """
        path = self._folder / _SETTINGS
        if not path.exists():
            return None
        found = files.read_json(path)
        if not isinstance(found, dict):
            raise UserError(f"{path}: damaged, not a JSON object; delete it to go on without it")
        return found

    def write_settings(self, settings: Mapping[str, Any] | None) -> None:
        """Keeps the settings that a run is started with; None forgets them."""
        path = self._folder / _SETTINGS
        if settings is None:
            path.unlink(missing_ok=True)
        else:
            files.write_json(path, settings)

    def text(self, stage: str) -> str:
        """Content of a mark, "" if there is none."""
        path = self._path(stage)
        return path.read_text() if path.exists() else ""

    def put(self, stage: str, text: str) -> None:
        """Writes a mark back as it was."""
        files.write_text(self._path(stage), text)

    def missing(self, stage: str, sections: Iterable[str]) -> list[str] | None:
        """What a marked stage left and is not there any more; None if it has no mark.

        Args:
          stage: its name.
          sections: of `evaluation.json` that are there.

        Raises:
          UserError: if a file is another one than the stage left.
        """
        if not self._path(stage).exists():
            return None
        mark, there = self._read(stage), set(sections)
        gone = [name for name in mark["evaluation"] if name not in there]
        for name, content in mark["files"].items():
            if not (self._root / name).exists():
                gone.append(name)
            else:
                self._compare(stage, name, content)
        return gone

    def has_file(self, path: epath.Path) -> bool:
        """Whether a marked stage left a file."""
        name = str(path.relative_to(self._root))
        return any(name in self._read(stage)["files"] for stage in self._stages())

    def check_file(self, path: epath.Path) -> None:
        """Refuses a file that is another one than the stage left that made it.

        Raises:
          UserError: names the file, the stage and the way out.
        """
        name = str(path.relative_to(self._root))
        for stage in self._stages():
            content = self._read(stage)["files"].get(name)
            if content is not None and path.exists():
                self._compare(stage, name, content)

    def check_section(self, kind: str, name: str, value: Any) -> None:
        """The same of a section of `evaluation.json` or of the lines of a stage.

        Args:
          kind: "evaluation" or "metrics".
          name: of the section, or the stage.
          value: what is there now.
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
        whole = isinstance(mark, dict) and all(
            isinstance(mark.get(kind), dict)
            and all(isinstance(digest, str) for digest in mark[kind].values())
            for kind in _KINDS
        )
        if not whole or not _lists_files(mark.get("files")):
            raise UserError(
                f"{path}: damaged, it does not say what stage {stage!r} left; delete it, then what "
                "is there is taken as it is"
            )
        return mark


def section_digest(value: Any) -> str:
    """The SHA-256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(files.plain(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _untimed(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines without what depends on the clock."""
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in lines]


def _lists_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(content, dict) and isinstance(content.get("bytes"), int)
        for content in value.values()
    )


def _content(path: epath.Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _below(folder: epath.Path) -> list[epath.Path]:
    """All files of a folder and its folders but hidden ones."""
    found: list[epath.Path] = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith("."):
            continue
        found += _below(path) if path.is_dir() else [path]
    return found
