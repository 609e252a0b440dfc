"""A saturation curve of a loss over the number of examples, with intervals over cases and seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_HALVES = np.geomspace(0.5, 1e5, 400)  # values of `half` that the fit tries


def fit(counts: np.ndarray, losses: np.ndarray) -> tuple[float, float, float]:
    """Least squares of floor + drop / (1 + n / half): (floor, drop, half).

    For a given `half` the other two are linear, so `half` is tried on a grid.

    Args:
      counts: `[counts]`, numbers of instructions.
      losses: `[counts]`.
    """
    best = (math.inf, 0.0, 0.0, 1.0)
    for half in _HALVES:
        design = np.stack([np.ones(len(counts)), 1.0 / (1.0 + counts / half)], axis=1)
        solution = np.linalg.lstsq(design, losses, rcond=None)[0]
        error = float(np.sum((design @ solution - losses) ** 2))
        best = min(best, (error, float(solution[0]), float(solution[1]), float(half)))
    return best[1:]


def saturation(
    results: Mapping[tuple[int, int], dict[str, Any]], *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The fitted curve of the loss, with intervals over prompts and seeds.

    Args:
      results: by (count, seed) the summed `loss` of each prompt's answer and its `tokens`.
      resamples: bootstrap samples, each of which draws prompts, and the seeds of every count.
      seed: of the draws.

    Returns:
      `floor_perplexity`, `drop` (nats), `half` (instructions) and `gained` (by count, the share of
      the drop that it gains), each with value, low and high; `curve`: perplexity on a grid;
      `half_unbounded`: which of value, low and high of `half` stand at an end of the grid that the
      fit tries, so that the data does not bound them.
    """
    counts = sorted({count for count, _ in results})
    grid = np.concatenate([[0.0], np.geomspace(1, max(counts), 60)])

    # Of each run the loss of every prompt and its tokens: `[seeds, prompts]` by count.
    table = {
        count: np.array(
            [(result["loss"], result["tokens"]) for (c, _), result in results.items() if c == count]
        ).swapaxes(0, 1)
        for count in counts
    }

    def draw(prompts: np.ndarray, random: np.random.Generator | None) -> np.ndarray:
        means = []
        for loss, tokens in table.values():
            per_seed = loss[:, prompts].sum(axis=1) / tokens[:, prompts].sum(axis=1)
            mean, size = per_seed.mean(), len(per_seed)
            if random is not None and size > 1:
                # Means of n values drawn again from n vary too little, by (n - 1) / n.
                drawn = per_seed[random.integers(size, size=size)].mean()
                mean += np.sqrt(size / (size - 1)) * (drawn - mean)
            means.append(mean)
        return np.array(fit(np.array(counts, np.float64), np.array(means)))

    def described(values: np.ndarray) -> np.ndarray:
        floor, drop, half = values
        gained = 1.0 - 1.0 / (1.0 + np.array(counts) / half)
        return np.concatenate(
            [[np.exp(floor), drop, half], gained, np.exp(floor + drop / (1.0 + grid / half))]
        )

    number = len(next(iter(results.values()))["loss"])
    whole = described(draw(np.arange(number), None))
    random = np.random.default_rng(seed)
    samples = [
        described(draw(random.integers(number, size=number), random)) for _ in range(resamples)
    ]
    low, high = np.quantile(samples, [0.025, 0.975], axis=0) if samples else (whole, whole)

    def entries(first: int, behind: int) -> Iterator[dict[str, float]]:
        for place in range(first, behind):
            yield {
                "value": float(whole[place]),
                "low": float(low[place]),
                "high": float(high[place]),
            }

    ends = np.log(_HALVES[[0, -1]])
    unbounded = [
        name
        for name, values in (("value", whole), ("low", low), ("high", high))
        if np.abs(np.log(values[2]) - ends).min() < 1e-3
    ]
    named = dict(zip(("floor_perplexity", "drop", "half"), entries(0, 3), strict=True))
    behind = 3 + len(counts)
    gained = dict(zip(map(str, counts), entries(3, behind), strict=True))
    curve = [
        {"instructions": float(n)} | entry
        for n, entry in zip(grid, entries(behind, behind + len(grid)), strict=True)
    ]
    return {**named, "half_unbounded": unbounded, "gained": gained, "curve": curve}
