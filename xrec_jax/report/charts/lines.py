"""SVG charts with two axes: curves over epochs and distributions.

Colours are classes (`k0`, `k1`, ...), each with a light and a dark tone in the style sheet. Charts
are drawn at about their displayed size, on phones and desktops alike, so that text stays readable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from xrec_jax.report.charts.rows import key
from xrec_jax.report.html.markup import Html, join, tag
from xrec_jax.report.html.numbers import decimal

WIDTH, HEIGHT = 400, 245
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 12, 34
_MOST_POINTS = 240  # of a line; more cannot be distinguished


class Line(NamedTuple):
    """A curve.

    Attributes:
      label: name in the legend; lines with one label (seeds of a system) share its colour.
      colour: class, such as `k0`.
      x: `[points]`.
      y: `[points]`; NaN is skipped.
    """

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers between two bounds: multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    # The smallest round step that gives at most `most` intervals; the tolerances absorb the
    # rounding errors of floats.
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float, step: float) -> str:
    # As many decimals as the step has, or labels of neighbouring ticks would be equal.
    digits = max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0
    if round(step, digits) != round(step, 12):  # steps of 2.5
        digits += 1
    return decimal(value, digits)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    from_zero: bool = False,
    bound: float | None = None,
    bound_label: str = "",
    digits: int = 4,
    logarithmic: bool = False,
    whole_x: bool = False,
) -> Html | None:
    """Line chart with axes, grid and legend; values can be read with pointer, touch or arrow keys.

    Args:
      lines: curves to draw.
      title: title of the figure.
      x_label: label of the horizontal axis.
      from_zero: whether the vertical axis starts at zero.
      bound: value of a horizontal reference line.
      bound_label: name of that line.
      digits: decimals of the values that are read.
      logarithmic: whether the vertical axis is logarithmic.
      whole_x: whether ticks of the horizontal axis are whole numbers only.

    Returns:
      The figure; None if there is no point.
    """
    clean = _drawable(lines, logarithmic=logarithmic)
    if not clean:
        return None
    # The axes cover all points and the reference line, with a margin except at zero.
    every = np.concatenate([points for _, points in clean], axis=1)
    low, high = float(every[1].min()), float(every[1].max())
    if bound is not None:
        low, high = min(low, bound), max(high, bound)
    if from_zero and not logarithmic:
        low = min(low, 0.0)
    view = math.log10 if logarithmic else float
    bottom, top = view(low), view(high)
    # A constant curve has no range, so its margin is a share of its value.
    spare = 0.06 * ((top - bottom) or abs(top) or 1.0)
    bottom, top = bottom - (0 if from_zero and low == 0 else spare), top + spare
    left, right = float(every[0].min()), float(every[0].max())
    # A single epoch gets an axis of width one around it.
    if left == right:
        left, right = left - 0.5, right + 0.5
    at_x = lambda x: _LEFT + (x - left) / (right - left) * (WIDTH - _LEFT - _RIGHT)  # noqa: E731
    at_y = lambda y: (  # noqa: E731
        HEIGHT - _BOTTOM - (view(y) - bottom) / (top - bottom) * (HEIGHT - _TOP - _BOTTOM)
    )
    marks: list[Html] = [
        _grid(
            left, right, bottom, top, at_x=at_x, at_y=at_y, logarithmic=logarithmic, whole_x=whole_x
        ),
        tag("text", x_label, x=(WIDTH + _LEFT - _RIGHT) / 2, y=HEIGHT - 3, class_="axis middle"),
    ]
    if bound is not None:
        y = f"{at_y(bound):.1f}"
        marks.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=y, y2=y, class_="bound"))
    # Each line is drawn, and its values are embedded for the script that reads them off.
    data, legend = [], dict[str, Html]()
    for line, points in clean:
        places = [(f"{at_x(x):.1f}", f"{at_y(y):.1f}") for x, y in points.T.tolist()]
        if len(places) == 1:
            marks.append(tag("circle", cx=places[0][0], cy=places[0][1], r=3, class_=line.colour))
        else:
            path = "M" + "L".join(f"{x} {y}" for x, y in places)
            marks.append(tag("path", d=path, class_=f"curve {line.colour}"))
        data.append(
            {
                "label": line.label,
                "colour": line.colour,
                "x": [float(f"{x:.6g}") for x in points[0]],
                "y": [decimal(y, digits) for y in points[1]],
                "at": [[float(x), float(y)] for x, y in places],
            }
        )
        legend.setdefault(line.label, key(line.colour, line.label))
    if bound is not None and bound_label:
        legend[bound_label] = key("bound", f"{bound_label} {decimal(bound, digits)}")
    # Screen readers get the first and last value of each line.
    described = "; ".join(
        f"{line.label} from {decimal(points[1, 0], digits)} to {decimal(points[1, -1], digits)}"
        for line, points in clean
    )
    # The cursor is invisible until the script moves it to a point.
    marks.append(tag("line", x1=0, x2=0, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="cursor"))
    drawing = tag(
        "svg",
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex="0",
        class_="lines",
        aria_label=f"{title}. {x_label} {decimal(left, 0)} to {decimal(right, 0)}: {described}",
    )
    return tag(
        "figure",
        tag("figcaption", title),
        tag("div", drawing, class_="plot", data_x=x_label, data_lines=json.dumps(data)),
        tag("div", *legend.values(), class_="legend"),
        class_="chart",
    )


def _drawable(lines: Sequence[Line], *, logarithmic: bool) -> list[tuple[Line, np.ndarray]]:
    """Lines with their points `[2, n]` that can be drawn; those without any are left out."""
    # Only finite points can be drawn, and only so many can be told apart.
    clean = []
    for line in lines:
        points = np.array([line.x, line.y], float)
        points = points[:, np.isfinite(points).all(axis=0)]
        if logarithmic:
            points = points[:, points[1] > 0]
        if points.shape[1] > _MOST_POINTS:
            # Evenly spaced, with both ends: the first and the last value are those that are
            # compared.
            kept = np.linspace(0, points.shape[1] - 1, _MOST_POINTS).round().astype(int)
            points = points[:, kept]
        if points.shape[1]:
            clean.append((line, points))
    return clean


def _grid(
    left: float,
    right: float,
    bottom: float,
    top: float,
    *,
    at_x: Any,
    at_y: Any,
    logarithmic: bool,
    whole_x: bool = False,
) -> Html:
    """Grid lines and tick labels of both axes."""
    marks = []
    positions = ticks(left, right, 6)
    if whole_x:
        positions = [x for x in positions if abs(x - round(x)) < 1e-9]
    step = positions[1] - positions[0] if len(positions) > 1 else 1.0
    for x in positions:
        place = f"{at_x(x):.1f}"
        marks.append(tag("text", _tick_text(x, step), x=place, y=HEIGHT - 19, class_="middle"))
    positions = ticks(bottom, top, 5)
    if logarithmic:
        # The ticks were spaced by exponents; places and labels take values.
        positions = [10.0**y for y in positions]
    step = positions[1] - positions[0] if len(positions) > 1 else 1.0
    for y in positions:
        place = f"{at_y(y):.1f}"
        text = decimal(y, 2) if logarithmic else _tick_text(y, step)
        marks.append(tag("line", x1=_LEFT, x2=WIDTH - _RIGHT, y1=place, y2=place, class_="grid"))
        marks.append(tag("text", text, x=_LEFT - 6, y=float(place) + 4, class_="end"))
    return join(marks)


def histogram(
    samples: Mapping[str, tuple[str, Sequence[float]]],
    *,
    title: str,
    x_label: str,
    bins: int = 16,
    mark: float | None = None,
    mark_label: str = "",
) -> Html | None:
    """Histograms of several samples over common bins, as shares of each sample.

    Args:
      samples: colour class and values of each sample, by label.
      title: title of the figure.
      x_label: label of the horizontal axis.
      bins: approximate number of bins.
      mark: position of a vertical reference line.
      mark_label: name of that line.

    Returns:
      The figure; None if there is no value.
    """
    kept = {name: (c, np.asarray(v, float)) for name, (c, v) in samples.items() if len(v)}
    if not kept:
        return None
    # The reference line must be inside the axis, too.
    highest = max(float(values.max()) for _, values in kept.values())
    highest = max(highest, mark or 0.0, 1.0)
    # Values are counts, so bins are whole numbers wide.
    step = max(1.0, math.ceil(highest / bins))
    edges = np.arange(0, highest + 2 * step, step)
    shares = {name: np.histogram(v, edges)[0] / len(v) for name, (_, v) in kept.items()}
    top = max(float(share.max()) for share in shares.values()) * 1.08
    at_x = lambda x: _LEFT + x / edges[-1] * (WIDTH - _LEFT - _RIGHT)  # noqa: E731
    at_y = lambda y: HEIGHT - _BOTTOM - y / top * (HEIGHT - _TOP - _BOTTOM)  # noqa: E731
    marks: list[Html] = [
        _grid(0.0, float(edges[-1]), 0.0, top, at_x=at_x, at_y=at_y, logarithmic=False),
        tag("text", x_label, x=(WIDTH + _LEFT - _RIGHT) / 2, y=HEIGHT - 3, class_="axis middle"),
    ]
    for name, (colour, _) in kept.items():
        path = f"M{at_x(0):.1f} {at_y(0):.1f}"
        for start, end, share in zip(edges[:-1], edges[1:], shares[name], strict=True):
            path += f"L{at_x(start):.1f} {at_y(share):.1f}L{at_x(end):.1f} {at_y(share):.1f}"
        path += f"L{at_x(edges[-1]):.1f} {at_y(0):.1f}"
        marks.append(tag("path", d=path, class_=f"curve area {colour}"))
    keys = [key(colour, name) for name, (colour, _) in kept.items()]
    if mark is not None:
        at = f"{at_x(mark):.1f}"
        marks.append(tag("line", x1=at, x2=at, y1=_TOP, y2=HEIGHT - _BOTTOM, class_="bound"))
        keys.append(key("bound", mark_label))
    described = "; ".join(
        f"{name}: median {decimal(float(np.median(values)), 0)}"
        for name, (_, values) in kept.items()
    )
    return tag(
        "figure",
        tag("figcaption", title),
        tag(
            "svg",
            *marks,
            viewBox=f"0 0 {WIDTH} {HEIGHT}",
            role="img",
            aria_label=f"{title}. {described}",
        ),
        tag("div", *keys, class_="legend"),
        class_="chart",
    )
