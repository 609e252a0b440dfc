"""Charts made of rows and cells: values with intervals, and a matrix of win ratios.

They are lists and tables with small drawings inside. The drawings use shares of the width, so they
fit any screen, and all text stays text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from xrec_jax.report.html.markup import Html, tag
from xrec_jax.report.html.numbers import Estimate, bounds, decimal, figure, known, plain_figure


class Row(NamedTuple):
    """A row of an interval chart.

    Attributes:
      label: text or markup.
      colour: class.
      estimate: value and bounds.
      mark: what follows the figure, such as a star.
    """

    label: object
    colour: str
    estimate: Estimate
    mark: object = None


def key(colour: str, label: object) -> Html:
    """An entry of a legend."""
    return tag("span", tag("i", class_=colour, aria_hidden="true"), label)


def domain(
    estimates: Sequence[Estimate], *, include: Sequence[float] = (), zero: bool = True
) -> tuple[float, float]:
    """Bounds of an axis on which all values and intervals lie, with a little room."""
    every = [float(x) for x in include] + ([0.0] if zero else [])
    for estimate in estimates:
        every += [float(estimate["value"]), *(bounds(estimate) or ())]
    low, high = min(every), max(every)
    if low == high:
        return low - 0.5, high + 0.5
    room = 0.04 * (high - low)
    return (low if low == 0.0 else low - room), (high if high in (0.0, 1.0) else high + room)


def interval_chart(
    rows: Sequence[Row | str],
    *,
    title: str,
    note: object = None,
    digits: int = 3,
    share: bool = False,
    reference: float | None = None,
    reference_label: str = "",
    bars: bool = True,
    axis: tuple[float, float] | None = None,
    more: object = None,
) -> Html | None:
    """Values with 95 % intervals, one under the other on a common axis.

    Args:
      rows: top to bottom; what has no value is left out; a text is a heading of those below it.
      title: of the figure.
      note: a short sentence under it.
      digits: of the figures.
      share: figures in per cent.
      reference: a vertical line.
      reference_label: its name.
      bars: whether a bar from zero stands behind the dot.
      axis: bounds of the axis; default: all that is drawn.
      more: what stands below.
    """
    rows = [row for row in rows if isinstance(row, str) or known(row.estimate)]
    estimates = [row.estimate for row in rows if not isinstance(row, str)]
    if not estimates:
        return None
    include = [] if reference is None else [reference]
    drawn = interval_list(
        rows,
        axis=axis or domain(estimates, include=include, zero=bars),
        digits=digits,
        share=share,
        reference=reference,
        bars=bars,
    )
    legend = None
    if reference is not None and reference_label:
        legend = tag("div", key("bound", reference_label), class_="legend")
    return card(title, note, drawn, legend, more)


def card(title: str, note: object, *content: object) -> Html:
    """The frame of a chart."""
    return tag(
        "figure",
        tag("figcaption", title),
        tag("p", note, class_="note") if note else None,
        *content,
        class_="chart",
    )


def interval_list(
    rows: Sequence[Row | str],
    *,
    axis: tuple[float, float],
    digits: int = 3,
    share: bool = False,
    reference: float | None = None,
    bars: bool = True,
) -> Html:
    """The rows of an interval chart, each of which has a value."""
    low, high = axis
    place = lambda x: f"{100 * min(1, max(0, (x - low) / (high - low))):.2f}%"  # noqa: E731
    out = []
    for row in rows:
        if isinstance(row, str):
            out.append(tag("li", row, class_="heading"))
            continue
        value, found = row.estimate["value"], bounds(row.estimate)
        marks: list[Html] = []
        if bars:
            start, end = sorted((0.0 if low <= 0 <= high else low, value))
            width = f"{float(place(end)[:-1]) - float(place(start)[:-1]):.2f}%"
            marks.append(tag("rect", x=place(start), width=width, y=7, height=10, class_="bar"))
        if reference is not None:
            at = place(reference)
            marks.append(tag("line", x1=at, x2=at, y1=0, y2=24, class_="reference"))
        if found is not None:
            ends = [place(x) for x in found]
            marks.append(tag("line", x1=ends[0], x2=ends[1], y1=12, y2=12, class_="whisker"))
            marks += [tag("line", x1=x, x2=x, y1=8, y2=16, class_="whisker") for x in ends]
        marks.append(tag("circle", cx=place(value), cy=12, r=4, class_="dot"))
        drawing = tag("svg", *marks, height=24, class_="track", aria_hidden="true")
        out.append(
            tag(
                "li",
                tag("span", row.label, class_="label"),
                drawing,
                tag(
                    "span",
                    figure(row.estimate, digits=digits, share=share),
                    row.mark,
                    class_="value",
                ),
                class_=row.colour,
            )
        )
    return tag("ul", *out, class_="intervals", role="list")


def matrix(
    names: Sequence[str], cells: Mapping[tuple[str, str], Mapping[str, Any]], *, caption: str
) -> Html:
    """A square of win ratios: the row's system against the column's.

    Args:
      names: of the systems, in the order of rows and columns.
      cells: `(row, column)` to `ratio` (an estimate) and `notes` (a line under it).
      caption: what the table shows.
    """
    head = tag("tr", tag("td", class_="corner"), *(tag("th", name, scope="col") for name in names))
    body = []
    for row in names:
        line = [tag("th", row, scope="row")]
        for column in names:
            cell = cells.get((row, column))
            if row == column or cell is None or not known(cell["ratio"]):
                line.append(tag("td", tag("span", "\u00b7", aria_hidden="true"), class_="self"))
                continue
            value = cell["ratio"]["value"]
            side = "more" if value >= 0.5 else "less"
            strength = min(1.0, abs(value - 0.5) * 2)
            inside = [tag("strong", figure(cell["ratio"], share=True, digits=1, interval=False))]
            found = bounds(cell["ratio"])
            if found is not None:
                text = f"[{decimal(100 * found[0], 1)}, {decimal(100 * found[1], 1)}]"
                inside.append(tag("span", text, class_="interval"))
            inside += [tag("small", note) for note in cell.get("notes", ())]
            told = f"{row} against {column}: {plain_figure(cell['ratio'], share=True, digits=1)}"
            line.append(
                tag("td", *inside, class_=side, style=f"--strength:{strength:.3f}", title=told)
            )
        body.append(tag("tr", *line))
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption, class_="hidden"),
            tag("thead", head),
            tag("tbody", *body),
            class_="matrix",
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )
