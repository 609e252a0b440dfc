"""Plots of a run, with matplotlib (extra `report`)."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

# A palette for colour-blind readers (Okabe and Ito, 2008).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY = "#666666"


def curves(
    records: Iterable[Mapping[str, Any]], metric: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Curves of a metric over epochs, for each system and seed.

    Args:
      records: lines of `metrics.jsonl`; those of stages `recommend/SYSTEM/SEED` are used.
      metric: name of the metric.

    Returns:
      `{system: (epochs [points], values [seeds, points])}`; seeds that stopped early end in NaN.
    """
    points_of: dict[str, dict[str, list[tuple[float, float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for record in records:
        stage = str(record["stage"]).split("/")
        if len(stage) == 3 and stage[0] == "recommend" and record.get(metric) is not None:
            points_of[stage[1]][stage[2]].append((record["train/epoch"], record[metric]))
    result = {}
    for system, seeds in points_of.items():
        epochs = np.array(sorted({epoch for points in seeds.values() for epoch, _ in points}))
        # One grid of epochs for all seeds makes a rectangular array.
        values = np.full((len(seeds), len(epochs)), np.nan)
        for row, points in zip(values, seeds.values(), strict=True):
            for epoch, value in points:
                row[np.searchsorted(epochs, epoch)] = value
        result[system] = epochs, values
    return result


def learning_curves(
    records: Iterable[Mapping[str, Any]],
    path: epath.PathLike,
    *,
    k: int = 10,
    bound: float | None = None,
) -> bool:
    """Plots training loss and validation NDCG@k of every system, with one line per seed.

    Args:
      records: lines of `metrics.jsonl`.
      path: path of the PNG file to write.
      k: cut-off.
      bound: best expected NDCG@k of any recommender, if known.

    Returns:
      False if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    records = list(records)
    # Not pyplot: it keeps figures open and may need a display.
    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2)
    # Losses of different models have different units, so each is relative to its first epoch.
    losses = {
        system: (epochs, values / values[:, :1])
        for system, (epochs, values) in curves(records, "train/loss").items()
    }
    scores = curves(records, f"valid/ndcg@{k}")
    for panel, system_curves in zip(panels, (losses, scores), strict=True):
        for colour, (system, (epochs, values)) in zip(
            _COLOURS, sorted(system_curves.items()), strict=False
        ):
            for number, line in enumerate(values):
                known = ~np.isnan(line)
                # One entry of the legend for a system, not one for each seed.
                label = system if number == 0 else None
                panel.plot(epochs[known], line[known], color=colour, lw=1.4, alpha=0.8, label=label)
        panel.set(xlabel="epoch")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    panels[0].set_title("Training loss, share of the first epoch's")
    panels[1].set_title(f"Validation NDCG@{k}, seen items masked")
    if bound is not None:
        panels[1].axhline(bound, color=_GREY, ls="--", lw=1, label="upper bound (test)")
    # From zero, since a cut axis makes small differences between systems look large.
    panels[1].set_ylim(bottom=0)
    panels[1].legend(frameon=False)
    # Through memory: `path` may be remote, where matplotlib cannot write.
    image = io.BytesIO()
    figure.savefig(image, format="png")
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(image.getvalue())
    return True
