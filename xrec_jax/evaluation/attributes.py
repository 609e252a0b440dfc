"""Evaluation of attribute prediction: strict parsing, metrics, constant baselines, paired tests.

An answer that cannot be parsed is wrong. For a number it counts as the largest error that a value
of the training split could have, so refusing to answer never pays.
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
    """Parses an answer strictly.

    The whole text must be one JSON object. Further keys are ignored; a missing key or an invalid
    value fails for that key alone.

    Returns:
      The value of every attribute by its key; None if it failed.
    """
    values = strict_object(text) or {}
    return {
        attribute.key: attribute.read(values.get(attribute.key, None)) for attribute in attributes
    }


def check_disjoint(train: Iterable[str], held_out: Iterable[str]) -> None:
    """Checks that no user is on both sides of a split.

    Raises:
      UserError: names the number of such users and one of them.
    """
    both = sorted(set(train) & set(held_out))
    if both:
        raise UserError(f"{len(both)} users stand in training and held-out part, such as {both[0]}")


def best_constants(
    attribute: Attribute, known: Sequence[Value], *, within: float
) -> dict[str, Value]:
    """Best constant answer for each metric, from the values of the training split.

    Returns:
      For "accuracy" the most frequent value; for numbers also for "mae" the median (the lower of
      two) and for "within" the value with most others near it. Ties take the first in order.

    Raises:
      UserError: if there is no value.
    """
    if not known:
        raise UserError(f"attribute {attribute.key!r} does not occur in the training part")
    count = Counter(known)
    # Numbers before texts, so that ties are broken in the same order in every run.
    values = sorted(count, key=lambda value: (isinstance(value, str), value))
    best: dict[str, Value] = {"accuracy": max(values, key=lambda value: count[value])}
    if attribute.numeric:
        numbers = np.sort(np.array(known, np.float64))
        # The median minimises the mean absolute error; the lower of two is a value that occurs.
        best["mae"] = float(numbers[(len(numbers) - 1) // 2])
        near = [int(np.sum(np.abs(numbers - float(value)) <= within)) for value in values]
        best["within"] = values[int(np.argmax(near))]
    return best


def errors(
    attribute: Attribute, truth: Sequence[Value], answers: Sequence[Answer], known: Sequence[Value]
) -> np.ndarray:
    """Absolute errors of a number, `[n]`; a failed answer has the largest of any known value."""
    del attribute
    true = np.array(truth, np.float64)
    range_ = np.array([float(value) for value in known])
    # The farthest known value: a refusal is never better than any answer from the known range.
    worst = np.maximum(np.abs(true - range_.min()), np.abs(range_.max() - true))
    numbers = np.array([np.nan if value is None else float(value) for value in answers])
    return np.where(np.isnan(numbers), worst, np.abs(numbers - true))


def right(truth: Sequence[Value], answers: Sequence[Answer]) -> np.ndarray:
    """Correctness of answers, `[n]` float64: 1 for the true value, otherwise 0."""
    return np.array([float(a == b) for a, b in zip(truth, answers, strict=True)])


class Users:
    """Questions grouped by user, for bootstrap intervals over users.

    Args:
      names: `[n]` user of each question.
      resamples: bootstrap samples; 0 for no interval.
      seed: seed of the resamples, the same for every metric, so that they are paired.
    """

    def __init__(self, names: Sequence[str], *, resamples: int = 1000, seed: int = 0):
        self.index = np.unique(np.asarray(list(names)), return_inverse=True)[1]
        self.count = int(self.index.max()) + 1 if len(names) else 0
        self.cases, self._resamples, self._seed = len(names), resamples, seed

    def sums(self, columns: np.ndarray) -> np.ndarray:
        """Sums over each user's questions: `[n, columns]` -> `[users, columns]`."""
        sums = np.zeros((self.count, columns.shape[1]))
        np.add.at(sums, self.index, columns)
        return sums

    def _resample(self, sums: np.ndarray) -> np.ndarray:
        """Sums over resampled users, `[resamples, columns]`."""
        rng = np.random.default_rng(self._seed)
        # How often each of n users is drawn with replacement has a multinomial distribution.
        share = np.full(self.count, 1 / self.count)
        step = max(1, (1 << 22) // self.count)  # bounds the memory of the counts
        parts = [
            rng.multinomial(self.count, share, size=min(step, self._resamples - done)) @ sums
            for done in range(0, self._resamples, step)
        ]
        return np.concatenate(parts)

    def _estimate(self, value: float, resampled: np.ndarray) -> Estimate:
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        return {"value": value, "low": float(low), "high": float(high), "count": self.count}

    def mean(self, values: np.ndarray) -> Estimate:
        """Mean over questions of values `[n]`, with an interval over users."""
        sums = self.sums(np.stack([values, np.ones(len(values))], axis=1))
        value = float(values.mean())
        if not self._resamples or self.count < 2:
            return exact(value, self.count)
        resampled = self._resample(sums)
        return self._estimate(value, resampled[:, 0] / resampled[:, 1])

    def macro_f1(self, truth: Sequence[Value], answers: Sequence[Answer]) -> Estimate:
        """Mean F1 over the classes that occur among the true values.

        The classes are the same for every system, so that systems can be compared; a failed answer
        misses its true class. In a resample only the classes that occur in it count.
        """
        # Counts per class of each case: F1 of a resample then follows from sums over its users.
        classes = sorted(set(truth), key=str)
        true, predicted = (
            np.array([[value == label for label in classes] for value in side], np.float64)
            for side in (truth, answers)
        )
        # True positives, false positives and false negatives by class, as `_macro` splits them.
        columns = np.concatenate(
            [true * predicted, (1 - true) * predicted, true * (1 - predicted)], axis=1
        )
        sums = self.sums(columns)
        value = float(_macro(sums.sum(axis=0)[None])[0])
        if not self._resamples or self.count < 2:
            return exact(value, self.count)
        return self._estimate(value, _macro(self._resample(sums)))

    def difference_p(self, first: np.ndarray, second: np.ndarray) -> float:
        """Two-sided p-value of no difference, with users as units.

        McNemar's exact test if every user has one question and values are 0 or 1; otherwise a
        sign-flip test of the users' total differences.
        """
        # McNemar's test takes cases as independent, which several questions of one user are not.
        binary = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
        if self.count == self.cases and binary:
            return mcnemar(first, second)
        sums = self.sums(np.stack([first, second], axis=1))
        return sign_flip(sums[:, 0], sums[:, 1])


def _macro(counts: np.ndarray) -> np.ndarray:
    """Macro-F1 from `[..., 3 * classes]`: true positives, false positives, false negatives."""
    tp, fp, fn = np.split(counts, 3, axis=-1)
    # A class without a true case in a resample has no recall there, so the mean leaves it out.
    present = tp + fn > 0
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return np.sum(f1 * present, axis=-1) / np.maximum(present.sum(axis=-1), 1)


def figures(
    attribute: Attribute,
    truth: Sequence[Value],
    answers: Sequence[Answer],
    users: Users,
    *,
    known: Sequence[Value],
    within: float,
    prefix: str = "",
) -> dict[str, Estimate]:
    """Metrics of one attribute.

    Args:
      attribute: attribute of the questions.
      truth: `[n]` true values.
      answers: `[n]` answers, None if parsing failed.
      users: users of the questions.
      known: values of the training split.
      within: largest error of a number that counts as near.
      prefix: prefix of the metrics' names.

    Returns:
      accuracy; macro_f1 for a choice, mae for numbers, within_K for numbers that are no choice.
    """
    name = f"{attribute.name}/{prefix}"
    table = {f"{name}accuracy": users.mean(right(truth, answers))}
    if attribute.values:
        table[f"{name}macro_f1"] = users.macro_f1(truth, answers)
    if attribute.numeric:
        distance = errors(attribute, truth, answers, known)
        table[f"{name}mae"] = users.mean(distance)
        if not attribute.values:  # "near" means little in a choice among few numbers
            near = np.array([value is not None for value in answers]) & (distance <= within)
            table[f"{name}within_{within:g}"] = users.mean(near.astype(np.float64))
    return table


def parse_failures(
    attribute: Attribute, answers: Sequence[Answer], users: Users
) -> dict[str, Estimate]:
    """Share of the answers that could not be parsed."""
    failed = np.array([float(value is None) for value in answers])
    return {f"{attribute.name}/parse_failures": users.mean(failed)}


def constant_figures(
    attribute: Attribute,
    truth: Sequence[Value],
    users: Users,
    *,
    known: Sequence[Value],
    within: float,
) -> dict[str, Estimate]:
    """Metrics of constant answers, each with the constant that is best for it."""
    best = best_constants(attribute, known, within=within)
    table: dict[str, Estimate] = {}
    for metric, value in best.items():
        all_figures = figures(
            attribute, truth, [value] * len(truth), users, known=known, within=within
        )
        # Macro-F1 has no constant of its own: its baseline is the most frequent class, too.
        kept = {"accuracy": ("accuracy", "macro_f1")}.get(metric, (metric,))
        table |= {
            name: estimate
            for name, estimate in all_figures.items()
            if name.rpartition("/")[2].startswith(tuple(kept))
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
    """Paired comparison of two systems on the same questions.

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
    answers: Sequence[Answer],
    users: Users,
    *,
    known: Sequence[Value],
    prefix: str = "",
) -> dict[str, Estimate]:
    """Paired comparison with constant answers: for each metric with the best constant."""
    best = best_constants(attribute, known, within=0.0)
    table: dict[str, Estimate] = {}
    # The constant that is best for a metric is the one that is hardest to beat in it.
    for metric, names in (
        ("accuracy", ("accuracy_difference", "p")),
        ("mae", ("mae_difference", "mae_p")),
    ):
        if metric in best:
            constant = [best[metric]] * len(truth)
            differences = compare(
                attribute, truth, answers, constant, users, known=known, prefix=prefix
            )
            kept = [f"{attribute.name}/{prefix}{name}" for name in names]
            table |= {name: differences[name] for name in kept}
    return table
