"""What a report's page is made of: numbers, markup, charts."""

import html
import json
import re

import numpy as np
import pytest

from xrec_jax.report.charts import lines, rows
from xrec_jax.report.html import markup, numbers
from xrec_jax.report.sections.wins import cells_of


def e(value, low=None, high=None, count=40):
    return {"value": value, "low": low, "high": high, "count": count}


@pytest.mark.parametrize(
    ("value", "digits", "expected"),
    [
        (0.12345, 4, "0.1235"),
        (-0.0004, 3, "0.000"),
        (-0.25, 2, "\u22120.25"),
        (12.3456, 4, "12.35"),
        (123.456, 3, "123.5"),
        (1344.5, 3, "1,344"),
        (float("nan"), 3, "-"),
        (-1e-9, 2, "0.00"),
    ],
)
def test_decimals(value, digits, expected):
    assert numbers.decimal(value, digits) == expected


def test_a_figure_keeps_its_exact_value():
    made = numbers.figure(e(1 / 3, 0.25, 0.5), share=True, digits=1)
    assert made == (
        f'<data value="{1 / 3!r}">33.3\u202f%</data> <span class="interval">[25.0, 50.0]</span>'
    )
    assert numbers.p_value(0.0) == "p < 0.001"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.1, 0.31, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (3, 3, [3]),
        (-7, 12, [-5, 0, 5, 10]),
    ],
)
def test_ticks_are_round_numbers_within_the_bounds(low, high, expected):
    np.testing.assert_allclose(lines.ticks(low, high), expected, atol=1e-12)


def test_curves_lie_where_their_values_say():
    line = lines.Line("a", "k0", [0, 1, 2], [1.0, float("nan"), 3.0])
    chart = lines.line_chart([line], title="t", x_label="epoch")
    points = json.loads(html.unescape(re.search(r'data-lines="([^"]*)"', chart)[1]))[0]
    assert points["x"] == [0, 2] and points["y"] == ["1.0000", "3.0000"]
    (x0, y0), (x1, y1) = points["at"]
    assert x1 > x0 and y1 < y0  # upwards is a smaller y
    assert lines.line_chart([lines.Line("a", "k0", [], [])], title="t", x_label="x") is None


def test_bars_are_as_long_as_their_values():
    made = rows.interval_chart(
        [rows.Row("a", "k0", e(0.25, 0.2, 0.3)), rows.Row("b", "k1", e(0.5))],
        title="t",
        axis=(0.0, 1.0),
    )
    assert re.findall(r'<rect x="0.00%" width="([^"]*)"', made) == ["25.00%", "50.00%"]
    assert re.findall(r'cx="([^"]*)"', made) == ["25.00%", "50.00%"]
    assert '<line x1="20.00%" x2="30.00%"' in made


def test_both_halves_of_the_matrix():
    cells = cells_of({"a vs b": {"win/ratio": e(0.7, 0.6, 0.9), "win/ties": e(0.1)}})
    turned = cells["b", "a"]["ratio"]
    assert turned["value"] == pytest.approx(0.3)
    assert (turned["low"], turned["high"]) == pytest.approx((0.1, 0.4))
    made = rows.matrix(["a", "b"], cells, caption="c")
    assert made.index("70.0") < made.index("30.0")


def test_markup_escapes_all_but_markup():
    made = markup.tag("p", "<b>", markup.tag("i", "x"), None, class_='"', hidden=True, id=None)
    assert made == '<p class="&quot;" hidden>&lt;b&gt;<i>x</i></p>'
    assert json.loads(markup.embedded_json({"a": "</script>&\u2029"})) == {"a": "</script>&\u2029"}
