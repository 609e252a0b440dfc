"""How well attributes are told: strict reading of answers, figures, baselines, paired tests.

An answer that cannot be read is wrong. For a number it counts as the largest error that a value of
the training part could have, so refusing to answer never pays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from xrec_jax.core.errors import UserError
from xrec_jax.evaluation.statistics.intervals import Estimate, exact
from xrec_jax.evaluation.statistics.significance import mcnemar, sign_flip
from xrec_jax.text.records.attributes import Attribute, Value, strict_object

Answer = Value | None


def parse_answer(text: str, attributes: Sequence[Attribute]) -> dict[str, Answer]:
    """Reads an answer strictly.

    The whole text must be one JSON object. Further keys do no harm; a missing key or a value that
    is not allowed fails for that key alone.

    Returns:
      A value for every attribute's key, None where it failed.
    """
    found = strict_object(text) or {}
    return {
        attribute.key: attribute.read(found.get(attribute.key, None)) for attribute in attributes
    }


def check_disjoint(train: Iterable[str], held_out: Iterable[str]) -> None:
    """Makes sure that no user stands on both sides of a split.

    Raises:
      UserError: names their number and one of them.
    """
    both = sorted(set(train) & set(held_out))
    if both:
        raise UserError(f"{len(both)} users stand in training and held-out part, such as {both[0]}")


def best_constants(
    attribute: Attribute, known: Sequence[Value], *, within: float
) -> dict[str, Value]:
    """What to answer always, for each metric, by the values of the training part.

    Returns:
      For "accuracy" the most frequent value; for numbers also for "mae" the median (the lower of
      two) and for "within" the value with most others near it. Ties take the first in order.

    Raises:
      UserError: if there is no value.
    """
    if not known:
        raise UserError(f"attribute {attribute.key!r} does not occur in the training part")
    count = Counter(known)
    values = sorted(count, key=lambda value: (isinstance(value, str), value))
    found: dict[str, Value] = {"accuracy": max(values, key=lambda value: count[value])}
    if attribute.numeric:
        numbers = np.sort(np.array(known, np.float64))
        found["mae"] = float(numbers[(len(numbers) - 1) // 2])
        near = [int(np.sum(np.abs(numbers - float(value)) <= within)) for value in values]
        found["within"] = values[int(np.argmax(near))]
    return found


def errors(
    attribute: Attribute, truth: Sequence[Value], told: Sequence[Answer], known: Sequence[Value]
) -> np.ndarray:
    """Absolute errors of a number, `[n]`; of a failed answer the largest among known values."""
    del attribute
    true = np.array(truth, np.float64)
    range_ = np.array([float(value) for value in known])
    worst = np.maximum(np.abs(true - range_.min()), np.abs(range_.max() - true))
    given = np.array([np.nan if value is None else float(value) for value in told])
    return np.where(np.isnan(given), worst, np.abs(given - true))


def right(truth: Sequence[Value], told: Sequence[Answer]) -> np.ndarray:
    """`[n]` float64, 1 where an answer is the true value."""
    return np.array([float(a == b) for a, b in zip(truth, told, strict=True)])


class Users:
    """Cases grouped by user, for intervals that draw whole users.

    Args:
      names: `[n]` the user of each case.
      resamples: bootstrap samples; 0 for no interval.
      seed: of the draws; the same for every figure, so that they are paired.
    """

    def __init__(self, names: Sequence[str], *, resamples: int = 1000, seed: int = 0):
        self.index = np.unique(np.asarray(list(names)), return_inverse=True)[1]
        self.count = int(self.index.max()) + 1 if len(names) else 0
        self.cases, self._resamples, self._seed = len(names), resamples, seed

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Sums of each user: `[n, columns]` -> `[users, columns]`."""
        out = np.zeros((self.count, columns.shape[1]))
        np.add.at(out, self.index, columns)
        return out

    def _draws(self, sums: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(self._seed)
        share = np.full(self.count, 1 / self.count)
        step = max(1, (1 << 22) // self.count)
        parts = [
            rng.multinomial(self.count, share, size=min(step, self._resamples - done)) @ sums
            for done in range(0, self._resamples, step)
        ]
        return np.concatenate(parts)

    def _estimate(self, value: float, drawn: np.ndarray) -> Estimate:
        low, high = np.nanquantile(drawn, [0.025, 0.975])
        return {"value": value, "low": float(low), "high": float(high), "count": self.count}

    def mean(self, values: np.ndarray) -> Estimate:
        """Mean over cases, `[n]`."""
        sums = self.sums(np.stack([values, np.ones(len(values))], axis=1))
        value = float(values.mean())
        if not self._resamples or self.count < 2:
            return exact(value, self.count)
        drawn = self._draws(sums)
        return self._estimate(value, drawn[:, 0] / drawn[:, 1])

    def macro_f1(self, truth: Sequence[Value], told: Sequence[Answer]) -> Estimate:
        """Mean F1 of the classes that are true of some case.

        The classes are the same for every system, so systems compare; a failed answer is a miss of
        its true class. In a resample only classes that it holds count.
        """
        classes = sorted(set(truth), key=str)
        true, given = (
            np.array([[value == one for one in classes] for value in part], np.float64)
            for part in (truth, told)
        )
        columns = np.concatenate([true * given, (1 - true) * given, true * (1 - given)], axis=1)
        sums = self.sums(columns)
        value = float(_macro(sums.sum(axis=0)[None])[0])
        if not self._resamples or self.count < 2:
            return exact(value, self.count)
        return self._estimate(value, _macro(self._draws(sums)))

    def difference_p(self, first: np.ndarray, second: np.ndarray) -> float:
        """Two-sided p-value of no difference; the unit is the user.

        McNemar's exact test where every user has one case and values are 0 or 1, else signs of the
        users' total differences are flipped.
        """
        binary = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
        if self.count == self.cases and binary:
            return mcnemar(first, second)
        sums = self.sums(np.stack([first, second], axis=1))
        return sign_flip(sums[:, 0], sums[:, 1])


def _macro(counts: np.ndarray) -> np.ndarray:
    """Macro-F1 from `[..., 3 * classes]`: true positives, false positives, false negatives."""
    tp, fp, fn = np.split(counts, 3, axis=-1)
    present = tp + fn > 0
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return np.sum(f1 * present, axis=-1) / np.maximum(present.sum(axis=-1), 1)


def figures(
    attribute: Attribute,
    truth: Sequence[Value],
    told: Sequence[Answer],
    users: Users,
    *,
    known: Sequence[Value],
    within: float,
    prefix: str = "",
) -> dict[str, Estimate]:
    """Figures of one attribute.

    Args:
      attribute: what was asked.
      truth: `[n]`.
      told: `[n]`, None where the answer failed.
      users: of the cases.
      known: values of the training part.
      within: a number this near counts as near.
      prefix: before the metric's name.

    Returns:
      accuracy; macro_f1 where the values are a choice, mae where they are numbers, within_K for
      numbers that are no choice.
    """
    name = f"{attribute.name}/{prefix}"
    table = {f"{name}accuracy": users.mean(right(truth, told))}
    if attribute.values:
        table[f"{name}macro_f1"] = users.macro_f1(truth, told)
    if attribute.numeric:
        away = errors(attribute, truth, told, known)
        table[f"{name}mae"] = users.mean(away)
        if not attribute.values:  # a choice among few numbers has no need of "near"
            near = np.array([value is not None for value in told]) & (away <= within)
            table[f"{name}within_{within:g}"] = users.mean(near.astype(np.float64))
    return table


def parse_failures(
    attribute: Attribute, told: Sequence[Answer], users: Users
) -> dict[str, Estimate]:
    """Share of the answers that could not be read."""
    failed = np.array([float(value is None) for value in told])
    return {f"{attribute.name}/parse_failures": users.mean(failed)}


def constant_figures(
    attribute: Attribute,
    truth: Sequence[Value],
    users: Users,
    *,
    known: Sequence[Value],
    within: float,
) -> dict[str, Estimate]:
    """Figures of answering always the same, each with the constant that is best for it."""
    best = best_constants(attribute, known, within=within)
    table: dict[str, Estimate] = {}
    for metric, value in best.items():
        made = figures(attribute, truth, [value] * len(truth), users, known=known, within=within)
        wanted = {"accuracy": ("accuracy", "macro_f1")}.get(metric, (metric,))
        table |= {
            name: one
            for name, one in made.items()
            if name.rpartition("/")[2].startswith(tuple(wanted))
        }
    return table


def compare(
    attribute: Attribute,
    truth: Sequence[Value],
    first: Sequence[Answer],
    second: Sequence[Answer],
    users: Users,
    *,
    known: Sequence[Value],
    prefix: str = "",
) -> dict[str, Estimate]:
    """Paired comparison of two systems on the same cases: differences, and p of none.

    Returns:
      accuracy_difference (first minus second) and p; for numbers mae_difference and mae_p.
    """
    name = f"{attribute.name}/{prefix}"
    pairs = {"accuracy_difference": ("p", right(truth, first), right(truth, second))}
    if attribute.numeric:
        pairs["mae_difference"] = (
            "mae_p",
            errors(attribute, truth, first, known),
            errors(attribute, truth, second, known),
        )
    table: dict[str, Estimate] = {}
    for metric, (p_name, a, b) in pairs.items():
        table[name + metric] = users.mean(a - b)
        table[name + p_name] = exact(users.difference_p(a, b), users.count)
    return table


def compare_constant(
    attribute: Attribute,
    truth: Sequence[Value],
    told: Sequence[Answer],
    users: Users,
    *,
    known: Sequence[Value],
    prefix: str = "",
) -> dict[str, Estimate]:
    """`compare` with answering always the same: the constant that is best for each difference."""
    best = best_constants(attribute, known, within=0.0)
    table: dict[str, Estimate] = {}
    for metric, names in (
        ("accuracy", ("accuracy_difference", "p")),
        ("mae", ("mae_difference", "mae_p")),
    ):
        if metric in best:
            same = [best[metric]] * len(truth)
            made = compare(attribute, truth, told, same, users, known=known, prefix=prefix)
            wanted = [f"{attribute.name}/{prefix}{name}" for name in names]
            table |= {name: made[name] for name in wanted}
    return table
