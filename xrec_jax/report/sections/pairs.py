"""The browsable table: every recommendation with what each explainer wrote about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from xrec_jax.core.storage import files
from xrec_jax.inference.explainers import appearance, find, names
from xrec_jax.report import wording
from xrec_jax.report.charts.spans import KINDS, Marker
from xrec_jax.report.html.markup import Html, embedded_json, join, tag
from xrec_jax.report.run_files import MOST_PAIRS, RunFiles, Section
from xrec_jax.report.sections.wins import pair_verdicts

ID, TITLE = "pairs", "Every explanation"
HOW = "Add the stage explain to config.stages."
# Columns that hold a text about the whole item, and the name that stands above the row anyway.
_HIDDEN = ("item_text", "user_text", "title", "name", "movie_title", "description")
_LONGEST = 60  # characters of an attribute's value
_LEGEND = (
    ("item", "the item's name"),
    ("history", "a title of the history"),
    ("attribute", "true of the item"),
    ("past", "true of the history alone"),
    ("unsupported", "borne out by neither"),
)


def build(run_files: RunFiles) -> Section | None:
    """None while nothing was explained."""
    if not run_files.pairs or not run_files.answers:
        return None
    data = pairs_data(run_files)
    # Dots tell which explainers give a true reason, which only a planted world knows.
    dots = None
    if data["planted"]:
        dots = tag(
            "span",
            "Dots on a true reason: ",
            *(
                join(
                    [
                        tag(
                            "span",
                            tag("i", class_=f"given {one['colour']}", aria_hidden="true"),
                            "\u00a0",
                            one["name"],
                            class_="whole",
                        ),
                        " ",
                    ]
                )
                for one in data["explainers"]
            ),
            "give it.",
        )
    legend = tag(
        "p",
        "Marked: ",
        *(join([tag("mark", text, class_=kind), " "]) for kind, text in _LEGEND),
        dots,
        class_="marks",
    )
    count = f"{len(run_files.pairs):,}"
    if run_files.more_pairs:
        count = f"The first {MOST_PAIRS:,}"
    lead = (
        f"{count} recommendation{'' if len(run_files.pairs) == 1 else 's'}: the user's history, "
        "what was recommended, and the explanation before and after tuning."
    )
    # The lists are empty here: the script fills them from the embedded data.
    search = tag(
        "input",
        id="pairs-search",
        type="search",
        autocomplete="off",
        spellcheck="false",
        placeholder="title, user, words of a text",
    )
    tools = tag(
        "form",
        _field("pairs-search", "Search", search),
        _field("pairs-filter", "Show", tag("select", id="pairs-filter")),
        _field("pairs-sort", "Sort by", tag("select", id="pairs-sort")),
        class_="tools",
        id="pairs-tools",
        role="search",
        aria_label="Search the recommendations",
    )
    pages = tag(
        "nav",
        tag("button", "\u2190 Back", type="button", id="pairs-back"),
        tag("span", id="pairs-place", aria_live="polite"),
        tag("button", "Next \u2192", type="button", id="pairs-next"),
        class_="pages",
        aria_label="Pages of recommendations",
    )
    body = tag(
        "div",
        tools,
        legend,
        tag(
            "p",
            "Keys: ",
            tag("kbd", "/"),
            " search, ",
            tag("kbd", "j"),
            " and ",
            tag("kbd", "k"),
            " next and previous card, ",
            tag("kbd", "n"),
            " and ",
            tag("kbd", "p"),
            " next and previous page.",
            class_="note keys",
        ),
        tag("div", id="pairs-list"),
        tag("noscript", tag("p", "The table needs JavaScript; the rest of the page does not.")),
        pages,
        tag("script", embedded_json(data), type="application/json", id="pairs-data"),
    )
    return Section(ID, TITLE, lead, body)


def _field(target: str, label: str, control: Html) -> Html:
    return tag("div", tag("label", label, for_=target), control, class_="field")


def explainers(run_files: RunFiles) -> list[str]:
    """Base first and tuned second, as they are read; then the template, then others."""
    registered = [one for one in map(find, names()) if one is not None]
    # Those without a language model are read after those with one; the sort is stable.
    order = [one.name for one in sorted(registered, key=lambda one: one.needs == "nothing")]
    known = [name for name in order if name in run_files.answers]
    return known + sorted(set(run_files.answers) - set(order))


def _title(name: str) -> str:
    """Above an explainer's texts."""
    known = appearance(name)
    return wording.humanised(name) if known is None else known.title


def pairs_data(run_files: RunFiles) -> dict[str, Any]:
    """Data from which the page's script draws rows, with every item's attributes once.

    Returns:
      `explainers`: name, title and colour; `planted`: whether true reasons are known; `kinds`: of
      marked phrases; `items`: title and attributes; `pairs`: user `u`, item `i` (a place in
      `items`), id `d`, rank `r`, score `s`, system `y`, profile `p`, profile attributes `a`,
      history `h` (places in `items`), reasons `w` (phrase and 1 for, 0 against), judge's verdicts
      `v`, prompt `m` where there is no history, `n` where nothing could be marked, and texts `x`,
      one an explainer: text, marked phrases (start, end, kind), whether it was cut off, and the
      true reasons it gives (places in `w`); null where an explainer wrote nothing.
    """
    shown_names = explainers(run_files)
    answers = {
        name: {(r["user"], r["item"]): r for r in run_files.answers[name]} for name in shown_names
    }
    verdicts = pair_verdicts(run_files)
    marker = Marker(run_files.pairs, titles=run_files.titles, rows=run_files.items)
    items: list[dict[str, Any]] = []
    place: dict[tuple[str, str], int] = {}

    # Items are stored once and referred to by place, as many histories share them.
    def item(id_: str, title: str, attributes: Mapping[str, Any]) -> int:
        key = (id_, title)
        if key not in place:
            place[key] = len(items)
            items.append({"t": title, "a": shown(attributes)})
        return place[key]

    rows = []
    for pair in run_files.pairs:
        key = (pair["user"], pair["item"])
        title = pair.get("title") or pair["item"]
        row: dict[str, Any] = {
            "u": pair["user"],
            "i": item(pair["item"], title, pair.get("attributes") or {}),
            "d": pair["item"],
            "r": pair.get("rank"),
            "s": pair.get("score"),
            "y": pair.get("system"),
            "p": pair.get("profile"),
            "a": shown(pair.get("profile_attributes") or {}),
            "h": [
                item(e["item"], e["title"], e.get("attributes") or {})
                for e in pair.get("history") or ()
            ],
            "w": _reasons(pair),
            "v": verdicts.get(key, []),
            "x": [_text(answers[name].get(key), pair, marker) for name in shown_names],
        }
        # Without entries to list, the prompt shows what the model knew.
        if not row["h"] and pair.get("prompt"):
            row["m"] = pair["prompt"]
        # Not the same as an empty history: the record does not say what the prompt showed, so
        # nothing in its texts is marked.
        if pair.get("history") is None:
            row["n"] = 1
        # Empty values are left out, since the page holds thousands of rows.
        rows.append({key: value for key, value in row.items() if value not in (None, [], {})})
    made = {
        "explainers": [
            {"name": wording.label(n), "title": _title(n), "colour": run_files.colour(n)}
            for n in shown_names
        ],
        "planted": any(pair.get("planted") for pair in run_files.pairs),
        "kinds": list(KINDS),
        "items": items,
        "pairs": rows,
    }
    return files.plain(made)  # a score may be no number, which JSON does not know


def shown(attributes: Mapping[str, Any]) -> dict[str, str]:
    """Attributes as short texts: no long descriptions, no empty cells."""
    out = {}
    for name, value in attributes.items():
        if isinstance(value, (list, tuple)):
            value = ", ".join(map(str, value))
        if isinstance(value, float):
            value = f"{value:.6g}"
        text = "" if value is None else str(value)
        if text and name not in _HIDDEN and len(text) <= _LONGEST:
            out[wording.humanised(name)] = text
    return out


def _reasons(pair: Mapping[str, Any]) -> list[list[Any]]:
    planted = pair.get("planted")
    if planted:
        sides: Iterable[tuple[str, int]] = (("for", 1), ("against", 0))
        reasons = [(r, side) for name, side in sides for r in planted.get(name) or ()]
        return [[r.get("phrase") or f"{r['attribute']} {r['value']}", side] for r, side in reasons]
    if pair.get("reasons"):
        # The sentence is `Reasons.describe` of the world: "likes A; likes B; against: C, D".
        before, _, after = str(pair["reasons"]).partition("against: ")
        return [[r, 1] for r in before.split("; ") if r] + [[r, 0] for r in after.split(", ") if r]
    return []


def _text(
    record: Mapping[str, Any] | None, pair: Mapping[str, Any], marker: Marker
) -> list[Any] | None:
    if record is None:
        return None
    text = str(record["text"])
    # The script counts in UTF-16 units, in which a character such as an emoji is two.
    unit = _units(text)
    marked = [
        [unit(start), unit(end), KINDS.index(kind)] for start, end, kind in marker.spans(text, pair)
    ]
    return [text, marked, int(record.get("stop") == "length"), marker.named(text, pair)]


def _units(text: str) -> Callable[[int], int]:
    """From places in a text to places in UTF-16 units."""
    if text.isascii() or max(text) < "\U00010000":
        return lambda place: place
    return lambda place: place + sum(character >= "\U00010000" for character in text[:place])
