"""A saturation curve of a loss over the number of examples, with intervals over cases and seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

_SCALES = np.geomspace(0.5, 1e5, 400)  # what the fit tries
_POWERS = np.geomspace(0.1, 4.0, 100)


class Curve(NamedTuple):
    """floor + drop / (1 + n / scale)^power, a loss over n examples."""

    floor: float
    drop: float
    scale: float
    power: float

    @property
    def half(self) -> float:
        """Examples after which half of the drop is gained."""
        return self.scale * (2.0 ** (1.0 / self.power) - 1.0)

    def gained(self, counts: np.ndarray) -> np.ndarray:
        """Share of the drop that is gained by `counts` examples."""
        return 1.0 - (1.0 + counts / self.scale) ** -self.power

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return self.floor + self.drop * (1.0 - self.gained(counts))

    @property
    def open_parts(self) -> set[str]:
        """Which of its numbers stand at an end of what is tried, or a step from it."""
        parts = {"floor"} if self.floor == 0.0 else set()
        for name, tried in (("scale", _SCALES), ("power", _POWERS)):
            if not tried[1] * 1.001 < getattr(self, name) < tried[-2] * 0.999:
                parts.add(name)
        return parts

    @property
    def endless(self) -> bool:
        """Whether the fall has no end that the data shows.

        It has none with a floor of 0, with the least power, with the largest scale, or with the
        least scale and a power below 1. A fall that is over early has the largest power, or the
        least scale and a power of 1 or more.
        """
        least_power = self.power < 1.0 and "power" in self.open_parts
        scale = "scale" in self.open_parts and (self.scale > 1.0e3 or self.power < 1.0)
        return self.floor == 0.0 or least_power or scale


def fit(counts: np.ndarray, losses: np.ndarray, powers: np.ndarray = _POWERS) -> Curve:
    """Least squares, with a floor that is no loss below 0.

    For a given scale and power the other two are linear, so those are tried on a grid.

    Args:
      counts: `[counts]`, numbers of instructions.
      losses: `[counts]`.
      powers: powers to try; `np.ones(1)` for a hyperbola.
    """
    scale, power = (x.reshape(-1) for x in np.meshgrid(_SCALES, powers, indexing="ij"))
    falling = (1.0 + counts / scale[:, None]) ** -power[:, None]
    centred = falling - falling.mean(axis=1, keepdims=True)
    drop = centred @ (losses - losses.mean()) / np.sum(centred**2, axis=1)
    floor = losses.mean() - drop * falling.mean(axis=1)
    # Where the best floor would be negative, the best of those at 0.
    below = floor < 0
    floor = np.where(below, 0.0, floor)
    drop = np.where(below, falling @ losses / np.sum(falling**2, axis=1), drop)
    error = np.sum((floor[:, None] + drop[:, None] * falling - losses) ** 2, axis=1)
    best = int(error.argmin())
    return Curve(float(floor[best]), float(drop[best]), float(scale[best]), float(power[best]))


def saturation(
    results: Mapping[tuple[int, int], dict[str, Any]], *, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The fitted curve of the loss, with intervals over prompts and seeds.

    Args:
      results: by (count, seed) the summed `loss` of each prompt's answer and its `tokens`.
      resamples: bootstrap samples, each of which draws prompts, and the seeds of every count.
      seed: of the draws.

    Returns:
      `floor_perplexity`, `drop` (nats), `power`, `half` (instructions) and `gained` (by count, the
      share of the drop that it gains), each with value, low and high; `curve`: perplexity on a
      grid; `open`: which of floor, scale and power stand at an end of what is tried in the best fit
      or in more than 2.5 % of the samples, so that an end of their interval is not the data's;
      `endless`: the same of `Curve.endless`; `rms` of the residuals in nats, and `rms_hyperbola`,
      those of the best curve with power 1.
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
        return np.array(means)

    numbers = np.array(counts, np.float64)

    def described(curve: Curve) -> np.ndarray:
        named = [np.exp(curve.floor), curve.drop, curve.power, curve.half]
        return np.concatenate([named, curve.gained(numbers), np.exp(curve(grid))])

    number = len(next(iter(results.values()))["loss"])
    means = draw(np.arange(number), None)
    best = fit(numbers, means)
    whole = described(best)
    random = np.random.default_rng(seed)
    curves = [
        fit(numbers, draw(random.integers(number, size=number), random)) for _ in range(resamples)
    ]
    samples = [described(curve) for curve in curves]
    low, high = np.quantile(samples, [0.025, 0.975], axis=0) if samples else (whole, whole)

    def entries(first: int, behind: int) -> Iterator[dict[str, float]]:
        for place in range(first, behind):
            yield {
                "value": float(whole[place]),
                "low": float(low[place]),
                "high": float(high[place]),
            }

    names = ("floor_perplexity", "drop", "power", "half")
    named = dict(zip(names, entries(0, 4), strict=True))
    behind = 4 + len(counts)
    gained = dict(zip(map(str, counts), entries(4, behind), strict=True))
    curve = [
        {"instructions": float(n)} | entry
        for n, entry in zip(grid, entries(behind, behind + len(grid)), strict=True)
    ]

    def rms(curve: Curve) -> float:
        return float(np.sqrt(np.mean((curve(numbers) - means) ** 2)))

    def often(flags: list[bool]) -> bool:
        return bool(flags) and float(np.mean(flags)) > 0.025

    open_ = [
        name
        for name in ("floor", "scale", "power")
        if name in best.open_parts or often([name in curve.open_parts for curve in curves])
    ]
    return {
        **named,
        "rms": rms(best),
        "rms_hyperbola": rms(fit(numbers, means, np.ones(1))),
        "open": open_,
        "endless": best.endless or often([curve.endless for curve in curves]),
        "gained": gained,
        "curve": curve,
    }
