"""Seeded damage to the bytes of a file, and the check that a reader survives it.

A reader may accept a damaged file or refuse it with a `UserError` of one line. Anything else, and
a reader that takes too long or too much memory, is a fault; the report names the seed and index
that build the same bytes again (`mutant(data, seed, index)`).
"""

import contextlib
import copy
import faulthandler
import json
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from xrec_jax.core.errors import UserError

# What readers of text, tables, numbers and JSON have stumbled over.
_MARKS = (b'"', b'""', b'"""', b"'", b",", b"\t", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"\\")
_BYTES = (b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x1f\x8b")
_SIGNS = tuple(sign.encode() for sign in ("\u2028", "\u2029", "\u0085", "\u202e", "é", "\x1b[2J"))
_ESCAPES = (b"\\ud800", b"\\udc00", b"\\u0000", b"\\u2028")
_JSON = (b"null", b"true", b"[]", b"{}", b"{", b"}", b"[", b"]", b":", b"NaN", b"Infinity")
_NUMBERS = (b"-", b"-1", b"0", b"1e999", b"-1e-999", b"1e38", b"9223372036854775808", b"9" * 400)
_LONG = (b"1" * 5_000, b"[" * 3_000, b'{"a":' * 3_000, b"x" * 70_000)
SPECIAL: tuple[bytes, ...] = _MARKS + _BYTES + _SIGNS + _ESCAPES + _JSON + _NUMBERS + _LONG


def mutant(data: bytes, seed: int, index: int) -> tuple[str, bytes]:
    """Returns what was done to `data` and the damaged bytes; the same for the same arguments."""
    generator = np.random.default_rng([seed, index])
    done = []
    for _ in range(1 + int(generator.integers(3))):
        change = _CHANGES[int(generator.integers(len(_CHANGES)))]
        what, data = change(data, generator)
        done.append(what)
    return ", ".join(done), data


ODD: tuple[object, ...] = (
    None,
    True,
    False,
    0,
    -1,
    7,
    1.5,
    -0.0,
    1e308,
    10**30,
    "",
    "x",
    "\u00e9\u2028",
    "9" * 400,
    "../x",
    [],
    {},
    [None],
    [[1], 2],
    {"a": None},
    ["x", 3],
    {"type": "x"},
)


def odd_value(data: bytes, seed: int, index: int) -> tuple[str, bytes]:
    """As `mutant`, of JSON that stays valid: up to three of its values are others, or are gone."""
    generator = np.random.default_rng([seed, index, 1])
    content, done = json.loads(data), []
    for _ in range(1 + int(generator.integers(3))):
        node, key = content, None
        while isinstance(node, (dict, list)) and node:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            parent, key = node, keys[int(generator.integers(len(keys)))]
            node = parent[key]
            if generator.random() < 0.3:
                break
        if key is None:
            break
        if generator.random() < 0.2:
            del parent[key]
            done.append(f"without {key!r}")
        else:
            parent[key] = copy.deepcopy(ODD[int(generator.integers(len(ODD)))])
            done.append(f"{key!r} as {parent[key]!r:.40}")
    return ", ".join(done), json.dumps(content).encode()


def survives(
    read: Callable[[Path], object],
    data: bytes,
    path: Path,
    *,
    count: int = 300,
    seed: int = 0,
    seconds: float = 5.0,
    megabytes: int = 1024,
    check: Callable[[object], object] = lambda result: None,
    damage: Callable[[bytes, int, int], tuple[str, bytes]] = mutant,
) -> int:
    """Runs `read(path)` over `count` damaged forms of `data`.

    Args:
      read: the reader; it is handed `path`.
      data: a whole file that it accepts, which is tried first.
      path: where the damaged files are written, one after the other.
      count: number of mutants.
      seed: of the mutants.
      seconds: the most that one mutant may take.
      megabytes: the most by which the memory of this process may grow in all.
      check: asserts what must hold of everything that was read.
      damage: from the data, the seed and an index to what was done and the damaged data.

    Returns:
      How many mutants were refused.

    Raises:
      AssertionError: names seed, index and mutation of every fault (the first ten).
    """
    __tracebackhide__ = True  # the report alone
    path.write_bytes(data)
    check(read(path))
    faults, refused = [], 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(count):
        what, damaged = damage(data, seed, index)
        path.write_bytes(damaged)
        fault = None
        try:
            with _limit(seconds):
                check(read(path))
        except UserError as error:
            refused += 1
            if "\n" in str(error) or not str(error):
                fault = f"its message is not one line: {str(error)!r}"
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of Rust code is no Exception
            fault = f"{type(error).__name__}: {str(error)[:300]}"
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
        if fault is None and grown > megabytes:
            fault = f"memory grew by {grown} MiB"
            before += grown << 10
        if fault:
            faults.append(f"{damage.__name__}(data, {seed}, {index}), {what}: {fault}")
        if len(faults) == 10:
            break
    assert not faults, f"{path.name}:\n" + "\n".join(faults)
    return refused


class TooLong(BaseException):
    """Not an Exception, so that no reader takes it for a fault of the file."""


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Raises TooLong after `seconds`; native code that hangs ends the process, with its stack."""

    def stop(*_: object) -> None:
        raise TooLong(f"no end within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(20 * seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


Change = Callable[[bytes, np.random.Generator], tuple[str, bytes]]


def _place(data: bytes, generator: np.random.Generator) -> int:
    """A position; a third of them at either end, where headers and footers stand."""
    reach = len(data) if generator.random() < 0.67 else min(len(data), 64)
    at = int(generator.integers(reach + 1))
    return at if generator.random() < 0.5 else len(data) - at


def _flip(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    at, bit = min(_place(data, generator), max(len(data) - 1, 0)), int(generator.integers(8))
    flipped = bytes(byte ^ (1 << bit) for byte in data[at : at + 1])
    return f"flip bit {bit} at {at}", data[:at] + flipped + data[at + 1 :]


def _delete(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    at, size = _place(data, generator), 1 + int(generator.geometric(0.1))
    return f"delete {size} at {at}", data[:at] + data[at + size :]


def _insert(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    at, size = _place(data, generator), 1 + int(generator.geometric(0.2))
    return f"insert {size} random at {at}", data[:at] + generator.bytes(size) + data[at:]


def _repeat(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    start, stop = sorted((_place(data, generator), _place(data, generator)))
    at = _place(data, generator)
    return f"repeat {start}:{stop} at {at}", data[:at] + data[start:stop] + data[at:]


def _truncate(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    at = _place(data, generator)
    return f"cut at {at}", data[:at]


def _swap(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    lines = data.split(b"\n")
    one, other = (int(generator.integers(len(lines))) for _ in range(2))
    lines[one], lines[other] = lines[other], lines[one]
    return f"swap lines {one} and {other}", b"\n".join(lines)


def _splice(data: bytes, generator: np.random.Generator) -> tuple[str, bytes]:
    text = SPECIAL[int(generator.integers(len(SPECIAL)))]
    at = _place(data, generator)
    over = at + (len(text) if generator.random() < 0.3 else 0)
    return f"splice {text[:20]!r} ({len(text)}) at {at}:{over}", data[:at] + text + data[over:]


# Spliced bytes find the most, so they come three times as often.
_CHANGES: tuple[Change, ...] = (_flip, _delete, _insert, _repeat, _truncate, _swap) + 3 * (_splice,)
