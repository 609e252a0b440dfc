"""Formatting of the figures of `evaluation.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xrec_jax.report.html.markup import Html, join, tag

Estimate = Mapping[str, Any]
MINUS = "\u2212"
NARROW = "\u202f"  # a thin space that does not break


def decimal(value: float, digits: int = 3) -> str:
    """Formats as `0.094` or `1,204`, with a true minus sign; fewer digits for larger numbers."""
    if not math.isfinite(value):
        return "-"
    # About four significant digits are enough at any size, and keep the columns narrow.
    size = abs(value)
    if size >= 1000:
        digits = 0
    elif size >= 100:
        digits = min(digits, 1)
    elif size >= 10:
        digits = min(digits, 2)
    text = f"{value:,.{digits}f}"
    # No "-0.000": a sign in front of nothing would claim a direction.
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """Formats a share as `63.2 %`."""
    return f"{decimal(100 * value, digits)}{NARROW}%" if math.isfinite(value) else "-"


def whole(value: float) -> str:
    """Formats a whole number as `5,000`."""
    return f"{round(value):,}".replace("-", MINUS)


def p_value(value: float) -> str:
    """Formats a p-value as `p = 0.013`; never as zero."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def known(estimate: Estimate | None) -> bool:
    """True if an estimate has a finite value."""
    return (
        estimate is not None
        and isinstance(estimate.get("value"), (int, float))
        and math.isfinite(estimate["value"])
    )


def bounds(estimate: Estimate) -> tuple[float, float] | None:
    """95 % interval of an estimate, or None."""
    low, high = estimate.get("low"), estimate.get("high")
    return None if low is None or high is None else (float(low), float(high))


def figure(
    estimate: Estimate | None, *, digits: int = 3, share: bool = False, interval: bool = True
) -> Html:
    """Formats an estimate with its interval; the exact value is in the element's `value`.

    Args:
      estimate: entry of `evaluation.json`; None for a dash.
      digits: number of decimals.
      share: whether to write it in per cent.
      interval: whether to append the interval.
    """
    if estimate is None or not known(estimate):
        return tag("span", "-", class_="none")
    write = percent if share else decimal
    value, interval_bounds = estimate["value"], bounds(estimate)
    parts: list[object] = [tag("data", write(value, digits), value=repr(value))]
    if interval and interval_bounds is not None:
        # The bounds are in the unit of the value, so the per cent sign is not repeated.
        low, high = (decimal(100 * x if share else x, digits) for x in interval_bounds)
        parts += [" ", tag("span", f"[{low}, {high}]", class_="interval")]
    return join(parts)


def metric(systems: Mapping[str, Mapping[str, Any]], system: str, name: str) -> Any:
    """Estimate of a system's metric, or None."""
    return systems.get(system, {}).get(name)


def plain_figure(estimate: Estimate, *, digits: int = 3, share: bool = False) -> str:
    """Formats an estimate with its interval as plain text, for labels of screen readers."""
    write = percent if share else decimal
    text, interval_bounds = write(estimate["value"], digits), bounds(estimate)
    if interval_bounds is not None:
        text += (
            f", interval {write(interval_bounds[0], digits)} to {write(interval_bounds[1], digits)}"
        )
    return text
