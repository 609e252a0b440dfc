"""Human ratings: means, preferences, agreement and checks of the raters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from xrec_jax.report import wording
from xrec_jax.report.charts.panels import comparisons, grid, is_pair
from xrec_jax.report.charts.rows import Row, interval_chart, matrix
from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import figure, known
from xrec_jax.report.run_files import RunFiles, Section
from xrec_jax.report.sections.wins import cells_of

ID, TITLE = "ratings", "Human ratings"
HOW = "Make a sheet with xrec rate make, have people fill it in, then xrec rate collect."
_RATERS = {
    "answers/ratings": "Ratings",
    "answers/preferences": "Comparisons",
    "gold/passed": "Gold checks passed",
    "others/correlation": "Correlation with others",
    "time/median": "Median seconds",
}
_ALPHAS = ("ordinal", "interval", "nominal")


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None without `ratings.json`."""
    if not run_files.ratings:
        return None
    raters = dict(named_estimates(run_files.ratings.get("raters")))
    # Several data sets have a key `rate/NAME` each, a single one has `rate`.
    groups = {k: v for k, v in run_files.ratings.items() if k.split("/")[0] == "rate"}
    parts: list[Html | None] = []
    for key, value in groups.items():
        if "/" in key:
            parts.append(tag("h3", key.split("/", 1)[1]))
        parts += _group(run_files, dict(named_estimates(value)))
    parts.append(_raters(raters))
    if not any(parts):
        return None
    people = f"{len(raters)} people" if len(raters) > 1 else "People"
    lead = (
        f"{people} rated explanations without knowing who wrote which. Intervals are 95\u00a0%, "
        "drawn over the rated recommendations."
    )
    return Section(ID, TITLE, lead, tag("div", *parts))


def _group(run_files: RunFiles, systems: Mapping[str, Any]) -> list[Html | None]:
    """Charts and tables of one data set."""
    questions = dict.fromkeys(
        key.removesuffix("/mean")
        for metrics in systems.values()
        for key in metrics
        if key.endswith("/mean")
    )
    means = [_means(run_files, systems, question) for question in questions]
    return [
        grid([*means, _strengths(run_files, systems)]),
        comparisons(systems, *questions),
        _preferences(systems),
        _agreement(systems),
    ]


def named_estimates(value: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every mapping of metrics to estimates at any depth of a value, with its key."""
    if not isinstance(value, Mapping):
        return
    # A mapping with a value is an estimate; its neighbours may be further levels.
    own = {k: v for k, v in value.items() if isinstance(v, Mapping) and "value" in v}
    if own:
        yield name, own
    for key, inner in value.items():
        if key not in own:
            yield from named_estimates(inner, str(key))


def _means(run_files: RunFiles, systems: Mapping[str, Any], question: str) -> Html | None:
    key = f"{question}/mean"
    names = run_files.explainers(n for n in systems if known(systems[n].get(key)))
    rows = [Row(wording.label(n), run_files.colour(n), systems[n][key]) for n in names]
    return interval_chart(rows, title=wording.humanised(question), digits=2, note="Mean rating.")


def _strengths(run_files: RunFiles, systems: Mapping[str, Any]) -> Html | None:
    key = "bradley_terry/strength"
    names = run_files.explainers(n for n in systems if known(systems[n].get(key)))
    rows = [Row(wording.label(n), run_files.colour(n), systems[n][key]) for n in names]
    return interval_chart(
        rows,
        title="Bradley-Terry strength",
        bars=False,
        reference=0.0,
        note="From the comparisons: the gap of two is the log-odds that one is preferred.",
    )


def _preferences(systems: Mapping[str, Any]) -> Html | None:
    cells = cells_of(systems)
    if not cells:
        return None
    names = list(dict.fromkeys(name for pair in cells for name in pair))
    caption = "How often people preferred the row's explainer to the column's"
    return tag("div", tag("h3", "Row preferred to column"), matrix(names, cells, caption=caption))


def _agreement(systems: Mapping[str, Any]) -> Html | None:
    alphas: dict[str, dict[str, Any]] = {}
    for name, metrics in systems.items():
        for key, estimate in metrics.items():
            # Keys are QUESTION/alpha_LEVEL, one for each level of measurement.
            question, _, level = key.rpartition("/alpha_")
            if level in _ALPHAS and not is_pair(name):
                alphas.setdefault(question, {})[level] = estimate
    if not alphas:
        return None
    # Columns only for the levels of measurement that some question has.
    levels = [x for x in _ALPHAS if any(x in values for values in alphas.values())]
    rows = [
        [wording.humanised(question), *(figure(values.get(level)) for level in levels)]
        for question, values in alphas.items()
    ]
    return tag(
        "div",
        tag("h3", "Do the raters agree?"),
        table(
            ("Krippendorff's alpha", *map(wording.humanised, levels)),
            rows,
            class_="numbers",
            caption="Agreement of the raters",
        ),
        tag(
            "p",
            "1 is perfect agreement, 0 what chance gives, below 0 is contradiction.",
            class_="note",
        ),
    )


def _raters(raters: Mapping[str, Any]) -> Html | None:
    if not raters:
        return None
    # A table of published ratings has neither gold checks nor times.
    keys = [k for k in _RATERS if any(k in metrics for metrics in raters.values())]
    rows = [
        [n or "unnamed", *(figure(m.get(k), digits=2) for k in keys)] for n, m in raters.items()
    ]
    return tag(
        "details",
        tag("summary", "Every rater"),
        table(
            ("Rater", *(_RATERS[k] for k in keys)),
            rows,
            caption="Figures on every rater",
            class_="numbers",
        ),
    )
