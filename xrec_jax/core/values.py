"""Checks of single values passed by a script or notebook."""

from __future__ import annotations

import math
import numbers
from typing import Any

from xrec_jax.core.errors import UserError


def whole_number(value: Any, name: str, *, least: int | None = None) -> int:
    """Checks an integer; booleans, floats and texts are refused.

    Args:
      value: a Python or NumPy integer.
      name: name of the argument, for the message.
      least: smallest valid value.

    Raises:
      UserError: names the value.
    """
    fine = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not fine or (least is not None and value < least):
        bound = "" if least is None else f" from {least}"
        raise UserError(f"{name}={_shown(value)} must be a whole number{bound}")
    return int(value)


def finite_number(value: Any, name: str, *, least: float = -math.inf) -> float:
    """Checks a finite number.

    Raises:
      UserError: names the value; also if it is below `least`.
    """
    fine = isinstance(value, numbers.Real) and not isinstance(value, bool)
    try:
        number = float(value) if fine else math.nan
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < least:
        bound = "" if least == -math.inf else f" from {least:g}"
        raise UserError(f"{name}={_shown(value)} must be a finite number{bound}")
    return number


def _shown(value: object) -> str:
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a value's own code; the message should still come
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."
