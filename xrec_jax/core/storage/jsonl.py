"""Strict JSON reader and writer, for whole files and for lines of files.

A line ends at a line feed and nowhere else: JSON texts may hold U+2028, U+2029 and U+0085 as they
are, which `str.splitlines` takes for line ends. Input that Python's parser accepts, or rejects
without naming the place, is refused here: NaN and infinities, numbers that exceed a float, half a
surrogate pair, NUL, a repeated key, and nesting too deep for later steps.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NoReturn

from xrec_jax.core.errors import UserError

MOST_LEVELS = 100  # of nesting; far below what Python can follow
MOST_DIGITS = 308  # of a whole number; a float holds no more
MOST_BYTES = 1 << 26  # of a line; a longer one is no record

# An escape with what it stands for: a surrogate pair, half of one, NUL, or anything else.
_ESCAPE = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|(?P<half>\\u[dD][89a-fA-F][0-9a-fA-F]{2})|(?P<nul>\\u0000)|\\."
)
_ESCAPED_ENDS = {end: f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}


class _FaultError(ValueError):
    """A fault in a JSON text, with the token that locates it."""

    def __init__(self, what: str, token: str):
        super().__init__(what)
        self.token = token


def parse(text: str, path: object, line: int | None = None) -> Any:
    """Parses a JSON text.

    Args:
      text: one value: a line, or a whole file.
      path: its file, for messages.
      line: line number, from 1; None for a whole file.

    Raises:
      UserError: names file, line and fault.
    """
    decoder = _LINE if line is not None else _FILE
    try:
        value = decoder.decode(text)
        _check_escapes(text)
        # Brackets bound the depth from above, and counting them is much cheaper than walking the
        # value.
        if text.count("[") + text.count("{") > MOST_LEVELS and _levels(value) > MOST_LEVELS:
            raise RecursionError
    except RecursionError as error:
        where = path if line is None else f"{path}, line {line}"
        what = f"nested more than {MOST_LEVELS} levels deep"
        raise UserError(f"{where}: not valid JSON ({what})") from error
    except json.JSONDecodeError as error:
        where = _where(text, error.pos, path, line)
        raise UserError(f"{where}: not valid JSON ({error.msg})") from error
    except _FaultError as error:
        where = _where(text, max(text.find(error.token), 0), path, line)
        raise UserError(f"{where}: not valid JSON ({error})") from error
    return value


def parse_record(text: str, path: object, line: int) -> dict[str, Any]:
    """Parses a line that must be an object.

    Raises:
      UserError: see `parse`; or if it is another value.
    """
    record = parse(text, path, line)
    if not isinstance(record, dict):
        raise UserError(f"{path}, line {line}: not a JSON object")
    return record


def decode(data: bytes, path: object, line: int | None = None) -> str:
    """Decodes UTF-8; a byte order mark at the start of a file is dropped.

    Raises:
      UserError: names file and line of bytes that are not UTF-8.
    """
    try:
        return data.decode("utf-8-sig" if line in (None, 1) else "utf-8")
    except UnicodeDecodeError as error:
        number = (line or 1) + data.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {number}: not UTF-8 text ({error.reason})") from error


def bounded_lines(file: IO[bytes], path: object) -> Iterator[tuple[int, bytes]]:
    """Yields number (from 1) and bytes of every line, with its line feed.

    Raises:
      UserError: names file and number of a line longer than `MOST_BYTES`.
    """
    number = 0
    while data := file.readline(MOST_BYTES + 1):
        number += 1
        if len(data) > MOST_BYTES:
            raise UserError(
                f"{path}, line {number}: longer than {MOST_BYTES >> 20} MiB; is this a file with "
                "one record a line?"
            )
        yield number, data


def numbered_lines(file: IO[bytes], path: object) -> Iterator[tuple[int, str]]:
    """Yields number (from 1) and text, without its line feed, of every line that is not blank.

    Memory is that of the longest line, which is bounded.

    Raises:
      UserError: names file and number of a line that is not UTF-8 or longer than `MOST_BYTES`.
    """
    for number, data in bounded_lines(file, path):
        text = decode(data, path, number).removesuffix("\n")
        if text.strip():
            yield number, text


def log_records(file: IO[bytes], path: object) -> Iterator[dict[str, Any]]:
    """Yields the records of a file that a run appends to; a torn last line is dropped.

    A line is torn if a kill in mid-write left it without a line feed.

    Raises:
      UserError: names the line that is no JSON object.
    """
    for number, data in enumerate(file, start=1):
        if data == b"\n":
            continue
        complete = data.removesuffix(b"\n")
        try:
            record = parse_record(decode(complete, path, number), path, number)
        except UserError:
            if complete == data:
                return
            raise
        yield record


def dump(value: object, *, indent: int | None = None) -> str:
    """Serialises a value without characters that some reader takes for a line end.

    Raises:
      UserError: if a text holds half a surrogate pair, which no file of text can hold.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    for end, escaped in _ESCAPED_ENDS.items():
        text = text.replace(end, escaped)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = ascii(text[max(error.start - 30, 0) : error.start + 1])
        raise UserError(f"half a surrogate pair cannot be written: ...{around}") from error
    return text


def dump_lines(records: Iterable[Mapping[str, Any]]) -> str:
    """JSON lines, each with its line feed."""
    return "".join(dump(record) + "\n" for record in records)


def _where(text: str, position: int, path: object, line: int | None) -> str:
    number = (line or 1) + text.count("\n", 0, position)
    return f"{path}, line {number}"


def _check_escapes(text: str) -> None:
    if "\\ud" not in text and "\\uD" not in text and "\\u0000" not in text:
        return
    for match in _ESCAPE.finditer(text):
        if match["half"]:
            what = f"{match[0]} is half a surrogate pair, a cut character"
            raise json.JSONDecodeError(what, text, match.start())
        if match["nul"]:
            raise json.JSONDecodeError("\\u0000 is no character of a text", text, match.start())


def _levels(value: object) -> int:
    """Depth of nesting, counted no further than needed, without recursion."""
    levels, nodes = 0, [value]
    while nodes and levels <= MOST_LEVELS:
        containers = [node for node in nodes if isinstance(node, (dict, list))]
        levels += bool(containers)
        nodes = [
            child
            for node in containers
            for child in (node.values() if isinstance(node, dict) else node)
        ]
    return levels


def _parse_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise _FaultError(f"a number of {len(digits):,} digits", digits)
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise _FaultError(f"{digits[:20]} is larger than any number", digits)
    return number


def _parse_constant(name: str) -> NoReturn:
    raise _FaultError(f"{name} is no number; null stands for a missing one", name)


def _unique_keys(members: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(members)
    if len(record) < len(members):
        names = [name for name, _ in members]
        twice = next(name for name in names if names.count(name) > 1)
        raise _FaultError(f"key {twice!r} stands twice", json.dumps(twice))
    return record


_FILE = json.JSONDecoder(
    parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_constant
)
_LINE = json.JSONDecoder(
    parse_int=_parse_int,
    parse_float=_parse_float,
    parse_constant=_parse_constant,
    object_pairs_hook=_unique_keys,
)
