"""Files of a run directory that a report is made of, as far as they exist."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import RunData
from xrec_jax.inference import explainers, run_records
from xrec_jax.tasks.titles import titles

MOST_PAIRS = 5000  # that a page holds
_FREE = (0, 1, 2, 3, 4, 6, 7)  # of `explainers.COLOURS`, for systems without a colour of their own
# Of systems that stand beside explainers and recommenders.
_KNOWN_COLOURS = {
    "upper_bound": "k5",
    "majority": "k5",
    "reference": "k5",
    "tuned shuffled": "k0 faint",
}


class Section(NamedTuple):
    """A section of the page.

    Attributes:
      id: of the element, and of the link to it.
      title: its heading.
      lead: a sentence or two: what is shown and how to read it.
      body: markup.
    """

    id: str
    title: str
    lead: object
    body: object


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """Content of a run directory.

    Attributes:
      name: of the folder.
      config: as in `config.json`.
      evaluation: as in `evaluation.json`; empty without one.
      metrics: lines of `metrics.jsonl`.
      pairs: the first `MOST_PAIRS` recommendations.
      more_pairs: whether there are more.
      answers: explainer to its records, for the pairs that are there.
      verdicts: lines of `judge/verdicts.jsonl`.
      audit: `audit.json`, or None.
      ratings: `ratings.json`, or None.
      sizes: of the data: users, items, events, and parts of the split; None where unknown.
      titles: of all items; empty where the data is not at hand.
      items: rows of the item table; likewise.
      rundir: for what is read on demand.
    """

    name: str
    config: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    pairs: Sequence[Mapping[str, Any]]
    more_pairs: bool
    answers: Mapping[str, Sequence[Mapping[str, Any]]]
    verdicts: Sequence[Mapping[str, Any]]
    audit: Mapping[str, Any] | None
    ratings: Mapping[str, Any] | None
    sizes: Mapping[str, Any] | None
    titles: Sequence[str]
    items: Sequence[Mapping[str, Any]]
    rundir: RunDir

    def stage(self, name: str) -> dict[str, Any]:
        """Systems of a stage in `evaluation.json`; empty where it is not done."""
        return dict(self.evaluation.get(name) or {})

    def explainers(self, found: Iterable[str] | None = None) -> list[str]:
        """Explainers in the order of the page: as registered, then others by name."""
        names = set(self.answers if found is None else found)
        known = [name for name in explainers.names() if name in names]
        return known + sorted(names.difference(known))

    def colour(self, name: str) -> str:
        """The class that gives a system its colour, the same everywhere on the page."""
        known = _known_colour(name)
        if known:
            return known
        others = [*self.config.get("recommend", {}), *self.explainers()]
        others += sorted({s for stage in self.evaluation.values() for s in stage})
        # The place is one of the whole run, not of one chart: a system keeps its colour everywhere.
        order = list(dict.fromkeys(n for n in others if not _known_colour(n)))
        place = order.index(name) if name in order else 0
        return f"k{_FREE[place % len(_FREE)]}"


def _known_colour(name: str) -> str:
    """The class of a system that has a colour of its own; "" for another."""
    known = explainers.appearance(name)
    if known is not None and known.colour:
        return f"k{explainers.COLOURS.index(known.colour)}"
    return _KNOWN_COLOURS.get(name, "")


def load(rundir: RunDir, config: Any = None, *, data: RunData | None = None) -> RunFiles:
    """Reads a run directory; every file but `config.json` may be missing.

    Args:
      rundir: finished or not.
      config: of the run, with today's defaults; default: as it was stored.
      data: of the run, where it is at hand: its sizes, and the titles that texts may name.

    Raises:
      UserError: if this is not a run directory, or a file in it is damaged.
    """
    settings = rundir.stored() if config is None else files.plain(config.to_dict())
    path = rundir.path
    audit = run_records.audit(rundir)
    # The audit recorded the sizes too, for runs whose data cannot be read any more.
    sizes = (audit or {}).get("data")
    named: list[str] = []
    items: list[dict[str, Any]] = []
    if data is not None and data.dataset.num_items:
        sizes = _sizes(data)
        named = [str(title) for title in titles(data.dataset)]
        items = [] if data.dataset.items is None else data.dataset.items.to_dicts()
    pairs, answers, more = _explained(rundir)
    return RunFiles(
        name=path.name,
        config=settings,
        evaluation=rundir.evaluation(),
        metrics=run_records.metrics(rundir),
        pairs=pairs,
        more_pairs=more,
        answers=answers,
        verdicts=run_records.verdicts(rundir),
        audit=audit,
        ratings=run_records.ratings(rundir),
        sizes=sizes,
        titles=named,
        items=items,
        rundir=rundir,
    )


def _sizes(data: RunData) -> dict[str, Any]:
    dataset, split = data.dataset, data.split
    return {
        "name": dataset.name,
        "users": dataset.num_users,
        "items": dataset.num_items,
        "events": len(dataset.interactions),
        "parts": {part: len(getattr(split, part)) for part in ("train", "valid", "test")},
    }


def _explained(
    rundir: RunDir,
) -> tuple[list[dict[str, Any]], dict[str, list[dict[str, Any]]], bool]:
    """Pairs, answers of every explainer, and whether there are more than the page holds."""
    # One more than the page holds tells whether there are more, without reading all of them.
    pairs = run_records.pairs(rundir, "title", most=MOST_PAIRS + 1)
    answers = {}
    if pairs:
        for path in run_records.explainer_files(rundir):
            records = run_records.explanations(rundir, path, "explainer", most=MOST_PAIRS)
            if records:
                answers[path.stem] = records
        return pairs[:MOST_PAIRS], answers, len(pairs) > MOST_PAIRS
    # Without stage `explain` there may be the few that stage `showcase` explains.
    shown = run_records.recommended(rundir, MOST_PAIRS + 1)
    more, shown = len(shown) > MOST_PAIRS, shown[:MOST_PAIRS]
    for explainer in (explainers.BASE, explainers.TUNED):
        # An explainer that answered only some of them would leave gaps in the table.
        if shown and all(record.get(explainer) is not None for record in shown):
            answers[explainer] = [
                {"user": r["user"], "item": r["item"], "text": r[explainer]} for r in shown
            ]
    return shown if answers else [], answers, more
