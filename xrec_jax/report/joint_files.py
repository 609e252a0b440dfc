"""Files of the stage `joint` in a run directory, as the report reads them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from xrec_jax.core.rundir import RunDir
from xrec_jax.inference import run_records
from xrec_jax.report.html.markup import Html, tag
from xrec_jax.report.html.numbers import bounds, figure, known, p_value
from xrec_jax.report.run_files import RunFiles

STAGE = "joint"
ALONE, JOINT, SFT = "alone", "joint", "sft"
MOST_USERS = 12  # whose texts the page shows, of every seed
LEVEL = 0.05
_GAIN = re.compile(r"ndcg@(\d+)/(?:difference|relative)")
# Words of verdicts, for run directories whose records have no `best_round` and `stop_cause`.
_BEST = re.compile(r"best round (\d+) is kept")
_BRACKETS = re.compile(r"\([^()]*\)")
_PATIENCE = "no better held-out gain"


class Verdict(NamedTuple):
    """Verdict of the guards on a round.

    Attributes:
      round: its number.
      text: in words.
      cause: "guard" where it broke a limit, "patience" where the gain did not grow any more, None
        where neither.
      ends: whether the run may have ended with it; false where it is known to have gone on.
    """

    round: int
    text: str
    cause: str | None
    ends: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Verdict:
        """The verdict of a record of `rounds.jsonl`."""
        text = str(record["verdict"])
        # A record with `best_round` states the cause, None included; only older ones need their
        # sentence read.
        cause = record.get("stop_cause") if "best_round" in record else _cause(text)
        return cls(int(record["round"]), text, cause, record.get("stopped") != 0)


def _cause(text: str) -> str | None:
    """The cause as the sentence of a verdict says it, for runs that did not record it."""
    if not text.startswith("stopped"):
        return None
    plain = _BRACKETS.sub("", text)  # they may hold what parts the reasons
    reasons = plain.partition(": ")[2].split("; ")[:-1]
    return "patience" if reasons and all(r.startswith(_PATIENCE) for r in reasons) else "guard"


@dataclasses.dataclass(frozen=True)
class Seed:
    """One seed's way through the rounds.

    Attributes:
      name: of its folder.
      rounds: one record a round, by `round`; a round that was done again counts once.
      samples: records of `samples.jsonl`, of the first `MOST_USERS` users, by `round`.
      done: whether its test figures are written.
    """

    name: str
    rounds: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    done: bool

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Rounds and values of a metric, where it was measured."""
        points = [(float(r["round"]), number(r.get(name))) for r in self.rounds]
        kept = [(x, y) for x, y in points if y is not None]
        return [x for x, _ in kept], [y for _, y in kept]

    def verdicts(self) -> list[Verdict]:
        """Verdicts of the guards, one a round."""
        return [Verdict.of(record) for record in self.rounds if record.get("verdict")]

    def best(self) -> int | None:
        """The round that was kept: as recorded, or as guards name it, or best on validation."""
        recorded = [r["best_round"] for r in self.rounds if "best_round" in r]
        if recorded:
            return None if recorded[-1] is None else int(recorded[-1])
        # Older runs: the last sentence that names the round, else the best gain.
        for verdict in reversed(self.verdicts()):
            if match := _BEST.search(verdict.text):
                return int(match[1])
        x, y = self.curve("valid/gain")
        if y:
            return int(x[y.index(max(y))])
        return None


@dataclasses.dataclass(frozen=True)
class Joint:
    """All of the stage.

    Attributes:
      systems: of `evaluation.json`; empty before the stage is done.
      seeds: those that have begun, in order.
    """

    systems: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[Seed]

    def tested(self) -> int:
        """Seeds behind the test figures; 0 where that is not known."""
        return sum(seed.done for seed in self.seeds)

    def names(self, start: str) -> list[str]:
        """Metrics of rounds that start so, in the order in which they are met."""
        metrics = (k for s in self.seeds for r in s.rounds for k in r if k.startswith(start))
        return list(dict.fromkeys(metrics))


def load(run_files: RunFiles) -> Joint | None:
    """Reads the stage's files; None where there is nothing of it.

    Raises:
      UserError: if one of them is damaged.
    """
    folder = run_files.rundir.path / STAGE
    # Any seed that has begun, since the page is made of unfinished runs too.
    seeds = []
    if folder.exists() and folder.is_dir():
        for path in sorted(folder.iterdir(), key=_place):
            if path.is_dir() and not path.name.startswith("."):
                seed = _seed(path, run_files.rundir)
                if seed.rounds or seed.samples:
                    seeds.append(seed)
    systems = run_files.stage(STAGE)
    return Joint(systems, seeds) if systems or seeds else None


def _place(path: epath.Path) -> tuple[bool, int, str]:
    """Seeds by number, other names after them."""
    number_of = int(path.name) if path.name.isdecimal() else 0
    return not path.name.isdecimal(), number_of, path.name


def _seed(folder: epath.Path, rundir: RunDir) -> Seed:
    rounds = _by_round(run_records.rounds(rundir, folder.name), ())
    samples = _by_round(run_records.samples(rundir, folder.name), ("user",))
    # The same users in every round, so that their texts can be followed.
    users = list(dict.fromkeys(str(record["user"]) for record in samples))[:MOST_USERS]
    return Seed(
        folder.name,
        rounds,
        [r for r in samples if str(r["user"]) in users],
        rundir.per_user(f"{STAGE}/{folder.name}").exists(),
    )


def _by_round(records: Sequence[Mapping[str, Any]], keys: tuple[str, ...]) -> list[Any]:
    """Records by round; of those that say the same thing again, after a resume, the last."""
    latest = {(r["round"], *(r[key] for key in keys)): r for r in records}
    return [latest[key] for key in sorted(latest, key=lambda key: key[0])]


def number(value: Any) -> float | None:
    """A finite number, or None."""
    # In Python `bool` is an `int`.
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


# Comparisons -----------------------------------------------------------------------------------


def cutoff(systems: Mapping[str, Mapping[str, Any]]) -> int:
    """Cut-off at which the run compares its systems; 10 where it compared none."""
    # It is part of the names of the paired figures, so a changed config cannot contradict it.
    for metrics in systems.values():
        for key in metrics:
            if match := _GAIN.fullmatch(key):
                return int(match[1])
    return 10


def main_metric(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """Such as `test/ndcg@10`."""
    return f"test/ndcg@{cutoff(systems)}"


def comparison(
    systems: Mapping[str, Mapping[str, Any]], first: str, second: str
) -> Mapping[str, Any] | None:
    """Metrics of `FIRST vs SECOND` by short names (`difference`, `relative`, `p`), or None."""
    metrics = systems.get(f"{first} vs {second}", {})
    start = f"ndcg@{cutoff(systems)}/"
    short = {key.removeprefix(start): value for key, value in metrics.items()}
    result = {key: short[key] for key in ("difference", "relative", "p") if known(short.get(key))}
    return result if "difference" in result or "relative" in result else None


def sign(result: Mapping[str, Any]) -> int:
    """1 for a gain, -1 for a loss, 0 where it cannot be told from chance.

    Every interval must lie on one side of 0, and p, where there is one, below `LEVEL`.
    """
    if "p" in result and result["p"]["value"] >= LEVEL:
        return 0
    # Without an interval the side is unknown, as if it held 0.
    sides = set()
    for name in ("difference", "relative"):
        if name in result:
            low, high = bounds(result[name]) or (-math.inf, math.inf)
            sides.add(1 if low > 0 else -1 if high < 0 else 0)
    return sides.pop() if len(sides) == 1 else 0


def covers_zero(result: Mapping[str, Any]) -> bool:
    """True if an interval of a comparison holds 0."""
    intervals = [bounds(result[name]) for name in ("difference", "relative") if name in result]
    return any(interval is not None and interval[0] <= 0 <= interval[1] for interval in intervals)


def gain(result: Mapping[str, Any] | None) -> Html:
    """A gain as a cell: relative where it is known, with its interval, and p below."""
    if result is None:
        return tag("span", "-", class_="none")
    if "relative" in result:
        value = figure(result["relative"], share=True, digits=1)
    else:
        value = figure(result["difference"], digits=4)
    p = tag("span", p_value(result["p"]["value"]), class_="interval") if "p" in result else None
    return tag("span", value, " " if p else None, p)
