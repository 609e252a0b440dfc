"""Schemas of JSON records: keys and kinds of values, checked with messages that name the fault."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from xrec_jax.core.errors import UserError


class Kind(NamedTuple):
    """A kind of JSON value.

    Attributes:
      name: name for messages, such as "a text".
      holds: predicate of valid values.
      needed: false if the key may be missing.
    """

    name: str
    holds: Callable[[Any], bool]
    needed: bool = True


Schema = Mapping[str, Kind]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


TEXT = Kind("a text", lambda value: isinstance(value, str))
NUMBER = Kind("a number", _is_number)
WHOLE = Kind("a whole number", _is_whole)
ID = Kind("a text or a whole number", lambda value: isinstance(value, str) or _is_whole(value))
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))


def of_list(kind: Kind) -> Kind:
    """Kind of a list whose entries are all of one kind."""
    return Kind(
        f"a list, each entry {kind.name}",
        lambda value: isinstance(value, list) and all(map(kind.holds, value)),
    )


def of_object(kind: Kind) -> Kind:
    """Kind of an object whose values are all of one kind."""
    return Kind(
        f"an object, each value {kind.name}",
        lambda value: isinstance(value, dict) and all(map(kind.holds, value.values())),
    )


def record_of(schema: Schema, name: str = "a record") -> Kind:
    """Kind of an object that fits a schema."""
    return Kind(
        f"{name} with {', '.join(key for key, kind in schema.items() if kind.needed)}",
        lambda value: isinstance(value, dict) and fault(value, schema) is None,
    )


def or_null(kind: Kind) -> Kind:
    """Kind that also admits null."""
    return Kind(f"{kind.name} or null", lambda value: value is None or kind.holds(value))


def perhaps(kind: Kind) -> Kind:
    """Kind that also admits null and a missing key."""
    return or_null(kind)._replace(needed=False)


def fault(record: Mapping[str, Any], schema: Schema) -> str | None:
    """First violation of the schema by a record; None if it fits."""
    for key, kind in schema.items():
        if key not in record:
            if kind.needed:
                return f"there is no {key!r}"
        elif not kind.holds(record[key]):
            shown = repr(record[key])
            shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
            return f"{key!r} is {shown}, not {kind.name}"
    return None


def check(record: Any, schema: Schema, where: object, way_out: str = "") -> None:
    """Refuses a record that does not fit.

    Args:
      record: any JSON value.
      schema: key to the kind of its value; other keys may hold anything.
      where: file and line, for the message.
      way_out: advice to the user.

    Raises:
      UserError: names the place, the key and the expected kind.
    """
    violation = "it is no object" if not isinstance(record, dict) else fault(record, schema)
    if violation is not None:
        raise UserError(f"{where} is damaged: {violation}{f'; {way_out}' if way_out else ''}")


_ESTIMATE: Schema = {
    "value": or_null(NUMBER),
    "low": perhaps(NUMBER),
    "high": perhaps(NUMBER),
    "count": perhaps(NUMBER),
}


def check_figures(content: Mapping[str, Any], path: object, way_out: str) -> None:
    """Checks figures of the form `STAGE: SYSTEM: METRIC: {value, low, high, count}`.

    Args:
      content: content of `evaluation.json` or `ratings.json`.
      path: path of the file.
      way_out: advice to the user.

    Raises:
      UserError: names the file and the place in it.
    """
    for stage, systems in content.items():
        if not isinstance(systems, dict):
            raise UserError(f"{path}: {stage!r} does not hold figures of systems; {way_out}")
        for system, figures in systems.items():
            if not isinstance(figures, dict):
                raise UserError(f"{path}: {stage!r} does not hold figures of {system!r}; {way_out}")
            for metric, estimate in figures.items():
                check(estimate, _ESTIMATE, f"{path}: {stage}, {system}, {metric}", way_out)
