"""File access: atomic writes, JSON, JSON lines, and checks of paths.

Paths go through `etils.epath`, so a run directory may be local or `gs://`.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import math
import os
import pathlib
import re
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, TypeAlias, cast

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import memory, process
from xrec_jax.core.storage import jsonl
from xrec_jax.core.storage.disk import write_error

# Parts of a temporary name: process id, start of the process, and a random suffix; the latter two
# are missing in names that earlier versions wrote.
_TEMPORARY = re.compile(r"\.(?P<final>.+)\.(?P<pid>\d+)(?:-(?P<start>\w*)-[0-9a-f]{8})?\.tmp")

_WATCHED = 1 << 24  # characters of a text file between two checks of the memory left
Bytes: TypeAlias = IO[bytes]


def is_local(path: epath.PathLike) -> bool:
    """True if `path` lies on a local file system (no `scheme://`)."""
    return "://" not in os.fspath(path)


# Package that reads each object store, and the command that installs it.
_STORES = {
    "gs": ("gcsfs", "pip install 'xrec_jax[gcs]'"),
    "s3": ("s3fs", "pip install s3fs"),
    "az": ("adlfs", "pip install adlfs"),
}


def check_scheme(path: epath.PathLike) -> None:
    """Refuses a remote path that cannot be read here, before any network access.

    Raises:
      UserError: for a scheme that is not supported, or whose package is not installed.
    """
    if is_local(path):
        return
    scheme = os.fspath(path).partition("://")[0]
    if scheme not in _STORES:
        raise UserError(
            f"{path}: {scheme}:// is not supported and nothing is downloaded; copy it to a local "
            f"disk (object stores: {', '.join(f'{known}://' for known in _STORES)})"
        )
    package, install = _STORES[scheme]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{path}: {scheme}:// needs the package {package}: {install}")


def check_no_pattern(path: epath.PathLike, flag: str) -> None:
    """Refuses a local folder from which checkpoints could not be read back.

    Orbax finds their parts by a pattern that begins with the folder's own path.

    Args:
      path: the folder.
      flag: flag that names the folder, such as "--workdir".

    Raises:
      UserError: if its absolute path holds a character of patterns.
    """
    if not is_local(path):
        return
    wrong = [sign for sign in "[]*?\\" if sign in os.path.abspath(path)]
    if wrong:
        raise UserError(
            f"{flag}={os.path.abspath(path)}: checkpoints cannot be read back from a path with "
            f"{' '.join(wrong)}; choose another, or rename the folder"
        )


def joined(spec: epath.PathLike) -> list[str]:
    """Splits the value of a key that takes several files, joined by "+".

    A path may contain a "+" itself: of all ways to cut the text into existing files, the one with
    the fewest files is taken. If there is none, or a path is remote, every "+" separates two files.
    """
    pieces = os.fspath(spec).split("+")
    if not is_local(spec):
        return pieces
    # Dynamic programming: best[k] is the shortest list of existing files for the first k pieces.
    best: list[list[str] | None] = [[]]
    for end in range(1, len(pieces) + 1):
        shortest: list[str] | None = None
        for start, before in enumerate(best):
            path = "+".join(pieces[start:end])
            if before is not None and path and epath.Path(path).exists():
                longer = [*before, path]
                shortest = longer if shortest is None or len(longer) < len(shortest) else shortest
        best.append(shortest)
    return best[-1] or pieces


def absolute(path: epath.PathLike) -> epath.Path:
    """Makes a local path absolute; remote ones are checked by `check_scheme`."""
    check_scheme(path)
    return epath.Path(os.path.abspath(path) if is_local(path) else path)


def write_atomic(path: epath.PathLike, write: Callable[[str], object]) -> None:
    """Lets `write` fill a temporary sibling file, then renames it onto `path`.

    A reader sees the old file or the whole new one, never a part. Object stores replace a whole
    object at once, so there the file is written in place.

    Raises:
      UserError: if the folder cannot be written.
    """
    if not is_local(path):
        write(os.fspath(path))
        return
    final = pathlib.Path(path)
    temporary = temporary_sibling(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        write(os.fspath(temporary))
        # A rename within one folder is atomic.
        os.replace(temporary, final)
    except OSError as error:
        raise write_error(final, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_sibling(path: pathlib.Path) -> pathlib.Path:
    """A hidden name beside `path` that no other process uses, in any container at any time.

    It names its process, so that `remove_leftovers` can recognise abandoned files.
    """
    me = process.this()
    return path.with_name(f".{path.name}.{me.pid}-{me.start}-{secrets.token_hex(4)}.tmp")


def remove_leftovers(path: epath.PathLike, *, below: bool = False) -> None:
    """Removes temporary files and folders of processes that ended before they were finished.

    Call it when nobody else writes there: files that this very process began count as abandoned.

    Args:
      path: file whose temporary siblings are removed.
      below: remove those of all files below the folder `path` instead.
    """
    if not is_local(path):
        return
    final = pathlib.Path(path)
    if not (final if below else final.parent).is_dir():
        return
    pattern = ".*.tmp"
    for leftover in list(final.rglob(pattern) if below else final.parent.glob(pattern)):
        name = _TEMPORARY.fullmatch(leftover.name)
        if name is None or not (below or name["final"] == final.name):
            continue
        pid, start = int(name["pid"]), name["start"]
        # Another live process may still rename its file; names of earlier versions cannot be
        # checked and go.
        if start is not None and pid != os.getpid() and process.runs(pid, start):
            continue
        with contextlib.suppress(OSError):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8 whatever the locale."""
    data = text.encode()
    write_atomic(path, lambda temporary: epath.Path(temporary).write_bytes(data))


def plain(value: object) -> Any:
    """Returns `value` with array scalars as Python numbers and non-finite floats as None (JSON)."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: epath.PathLike, value: object) -> None:
    """Writes `value` as indented JSON, atomically; array scalars become numbers."""
    write_text(path, jsonl.dump(plain(value), indent=2) + "\n")


def read_json(path: epath.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if the file is missing or is not JSON; names the file and the line.
    """
    check_scheme(path)
    try:
        data = epath.Path(path).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except OSError as error:
        raise UserError(f"{path}: not a readable file ({error.strerror or error})") from error
    return jsonl.parse(jsonl.decode(data, path), path)


def iter_json_lines(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """Yields the records of a JSON-lines file of a run; see `read_json_lines`."""
    check_scheme(path)
    file = epath.Path(path)
    if file.exists():
        with opened(file) as lines:
            yield from jsonl.log_records(lines, path)


def read_json_lines(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads a JSON-lines file of a run; a torn last line, left by a kill in mid-write, is dropped.

    Returns:
      Its records; none where there is no file.

    Raises:
      UserError: names the line that is no JSON object.
    """
    return list(iter_json_lines(path))


def text_lines(path: epath.PathLike) -> Iterator[tuple[int, str]]:
    """Yields number (from 1) and text of every line that is not blank; decompresses ".gz" files.

    Raises:
      UserError: if the file is missing, unreadable, or its content exceeds the memory left.
    """
    with opened(path) as file:
        read = 0
        for number, line in jsonl.numbered_lines(file, path):
            read += len(line)
            if read > _WATCHED:  # most readers keep every line
                memory.require(16 * read, f"{path}, line {number}: the lines that follow")
                read = 0
            yield number, line


def numbered_records(path: epath.PathLike) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line number (from 1) and record of a user's JSON-lines file, perhaps gzipped.

    Raises:
      UserError: names the file and line of the first fault; unlike in a run's own files, the last
        line must be complete, too.
    """
    for number, line in text_lines(path):
        yield number, jsonl.parse_record(line, path, number)


def read_records(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads all records of `numbered_records`; an empty file is an error.

    Raises:
      UserError: names the file and line of the first fault.
    """
    records = [record for _, record in numbered_records(path)]
    if not records:
        raise UserError(f"{path}: no record in it")
    return records


@contextlib.contextmanager
def opened(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """Opens a file for reading bytes, decompressed if named ".gz"; errors are `UserError`s."""
    check_scheme(path)
    try:
        with epath.Path(path).open("rb") as file:
            zipped = str(path).endswith(".gz")
            yield cast(IO[bytes], gzip.GzipFile(fileobj=file)) if zipped else file
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from error


def check_file(path: epath.PathLike, flag: str) -> None:
    """Refuses a path that cannot become a file, before hours are spent on its content.

    Args:
      path: path of the file to be written.
      flag: flag that names the file, such as "--output".

    Raises:
      UserError: if the path is a directory, or one of its parents is a file or not writable.
    """
    check_scheme(path)
    if not is_local(path):
        return
    target = pathlib.Path(os.path.abspath(path))
    if target.is_dir():
        raise UserError(f"{flag}={path} is a directory; give the name of a file")
    nearest = next(parent for parent in target.parents if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"{flag}={path}: {nearest} is a file, not a directory")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{flag}={path}: {nearest} cannot be written to")


def json_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """Returns `records` as JSON-lines text."""
    return jsonl.dump_lines(plain(record) for record in records)
