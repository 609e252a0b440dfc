"""Figures of `evaluation.json` as they stand on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from xrec_jax.report.html.markup import Html, join, tag

Estimate = Mapping[str, Any]
MINUS = "\u2212"
NARROW = "\u202f"  # a thin space that does not break


def decimal(value: float, digits: int = 3) -> str:
    """Such as `0.094`, `1,204` and a true minus sign; fewer digits for larger numbers."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    if size >= 1000:
        digits = 0
    elif size >= 100:
        digits = min(digits, 1)
    elif size >= 10:
        digits = min(digits, 2)
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """Such as `63.2 %`."""
    return f"{decimal(100 * value, digits)}{NARROW}%" if math.isfinite(value) else "-"


def whole(value: float) -> str:
    """Such as `5,000`."""
    return f"{round(value):,}".replace("-", MINUS)


def p_value(value: float) -> str:
    """Such as `p = 0.013`; never zero."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def known(estimate: Estimate | None) -> bool:
    """Whether there is a finite value."""
    return (
        estimate is not None
        and isinstance(estimate.get("value"), (int, float))
        and math.isfinite(estimate["value"])
    )


def bounds(estimate: Estimate) -> tuple[float, float] | None:
    """The 95 % interval, or None."""
    low, high = estimate.get("low"), estimate.get("high")
    return None if low is None or high is None else (float(low), float(high))


def figure(
    estimate: Estimate | None, *, digits: int = 3, share: bool = False, interval: bool = True
) -> Html:
    """A figure with its interval; the exact value stands in the element's `value`.

    Args:
      estimate: of `evaluation.json`; None for a dash.
      digits: after the point.
      share: written in per cent.
      interval: whether the interval follows.
    """
    if estimate is None or not known(estimate):
        return tag("span", "-", class_="none")
    write = percent if share else decimal
    value, found = estimate["value"], bounds(estimate)
    parts: list[object] = [tag("data", write(value, digits), value=repr(value))]
    if interval and found is not None:
        low, high = (decimal(100 * x if share else x, digits) for x in found)
        parts += [" ", tag("span", f"[{low}, {high}]", class_="interval")]
    return join(parts)


def metric(systems: Mapping[str, Mapping[str, Any]], system: str, name: str) -> Any:
    """A figure of a system, or None where there is none."""
    return systems.get(system, {}).get(name)


def plain_figure(estimate: Estimate, *, digits: int = 3, share: bool = False) -> str:
    """A figure with its interval as text, for labels that are read aloud."""
    write = percent if share else decimal
    text, found = write(estimate["value"], digits), bounds(estimate)
    if found is not None:
        text += f", interval {write(found[0], digits)} to {write(found[1], digits)}"
    return text
