"""Charts made of rows and cells: values with intervals, and a matrix of win ratios.

They are lists and tables with small drawings inside. The drawings use relative widths, so that they
fit any screen and all text stays text.
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
      colour: class of the colour.
      estimate: value and bounds.
      mark: content after the figure, such as a star.
    """

    label: object
    colour: str
    estimate: Estimate
    mark: object = None


def key(colour: str, label: object) -> Html:
    """Entry of a legend."""
    return tag("span", tag("i", class_=colour, aria_hidden="true"), label)


def domain(
    estimates: Sequence[Estimate], *, include: Sequence[float] = (), zero: bool = True
) -> tuple[float, float]:
    """Bounds of an axis that covers all values and intervals, with a margin."""
    every = [float(x) for x in include] + ([0.0] if zero else [])
    for estimate in estimates:
        every += [float(estimate["value"]), *(bounds(estimate) or ())]
    # No margin beyond an exact 0 or 1, such as the bounds of a share.
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
    """Chart of values with 95 % intervals on a common axis, one row each.

    Args:
      rows: rows from top to bottom, those without a value are skipped; a text is a heading.
      title: title of the figure.
      note: a short sentence under the title.
      digits: decimals of the figures.
      share: whether to write figures in per cent.
      reference: position of a vertical reference line.
      reference_label: name of that line.
      bars: whether to draw bars from zero behind the dots.
      axis: bounds of the axis; by default those of all values.
      more: content below the chart.

    Returns:
      The figure; None if no row has a value.
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
    # The line is named below the chart, since a label inside would cover values.
    legend = None
    if reference is not None and reference_label:
        legend = tag("div", key("bound", reference_label), class_="legend")
    return card(title, note, drawn, legend, more)


def card(title: str, note: object, *content: object) -> Html:
    """Frame of a chart with title and note."""
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
    """Rows of an interval chart, all of which must have a value."""
    low, high = axis
    # Clipped: with an axis that is given, an interval may reach beyond it.
    place = lambda x: f"{100 * min(1, max(0, (x - low) / (high - low))):.2f}%"  # noqa: E731
    items = []
    for row in rows:
        if isinstance(row, str):
            items.append(tag("li", row, class_="heading"))
            continue
        # From back to front: bar, reference line, whiskers, dot.
        value, interval = row.estimate["value"], bounds(row.estimate)
        marks: list[Html] = []
        if bars:
            # A bar begins at zero, or at the edge of an axis without zero.
            start, end = sorted((0.0 if low <= 0 <= high else low, value))
            width = f"{float(place(end)[:-1]) - float(place(start)[:-1]):.2f}%"
            marks.append(tag("rect", x=place(start), width=width, y=7, height=10, class_="bar"))
        if reference is not None:
            at = place(reference)
            marks.append(tag("line", x1=at, x2=at, y1=0, y2=24, class_="reference"))
        if interval is not None:
            ends = [place(x) for x in interval]
            marks.append(tag("line", x1=ends[0], x2=ends[1], y1=12, y2=12, class_="whisker"))
            marks += [tag("line", x1=x, x2=x, y1=8, y2=16, class_="whisker") for x in ends]
        marks.append(tag("circle", cx=place(value), cy=12, r=4, class_="dot"))
        # Hidden from screen readers, which read the figure beside it.
        drawing = tag("svg", *marks, height=24, class_="track", aria_hidden="true")
        items.append(
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
    return tag("ul", *items, class_="intervals", role="list")


def matrix(
    names: Sequence[str], cells: Mapping[tuple[str, str], Mapping[str, Any]], *, caption: str
) -> Html:
    """Square matrix of win ratios: the row's system against the column's.

    Args:
      names: names of the systems in the order of rows and columns.
      cells: `ratio` (an estimate) and `notes` (lines under it) of each `(row, column)`.
      caption: caption of the table.
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
            # The further from a draw, the stronger the cell's colour.
            side = "more" if value >= 0.5 else "less"
            strength = min(1.0, abs(value - 0.5) * 2)
            # The figure and its interval are on lines of their own: the cells are narrow.
            inside = [tag("strong", figure(cell["ratio"], share=True, digits=1, interval=False))]
            interval = bounds(cell["ratio"])
            if interval is not None:
                text = f"[{decimal(100 * interval[0], 1)}, {decimal(100 * interval[1], 1)}]"
                inside.append(tag("span", text, class_="interval"))
            inside += [tag("small", note) for note in cell.get("notes", ())]
            description = (
                f"{row} against {column}: {plain_figure(cell['ratio'], share=True, digits=1)}"
            )
            line.append(
                tag(
                    "td",
                    *inside,
                    class_=side,
                    style=f"--strength:{strength:.3f}",
                    title=description,
                )
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
