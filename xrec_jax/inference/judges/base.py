"""What a judge of a run declares, and the registry that finds one by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from etils import epath
from jax.sharding import Mesh

from xrec_jax.core.errors import UserError
from xrec_jax.core.registering import replaces_library
from xrec_jax.core.rundir import RunDir
from xrec_jax.data.run_data import RunData
from xrec_jax.evaluation.judging import Judge
from xrec_jax.inference import comparisons, run_records
from xrec_jax.llm.run_base import LoadedBase

STAGE = "judge"
_DEFAULT = "world"  # `judge.source` of a run that was stored without one
_NO_DIFFERENCE = "A ratio of 50\u00a0% is no difference; ties count half."


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a judge is built from.

    Attributes:
      config: of the run.
      rundir: of the run.
      mesh: current while the judge is asked.
      pairs: recommendations that were explained, with all that their prompts were made of; see
        `text.records.Pair`.
      base: the language model, where it is loaded already.
      label: of a progress bar; "" for none.
    """

    config: Any
    rundir: RunDir
    mesh: Mesh
    pairs: Sequence[Mapping[str, Any]] = ()
    base: LoadedBase | None = None
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Registration:
    """A judge as its module declares it.

    Attributes:
      name: its value of `judge.source`.
      build: gives the judge: called with prompts, first texts and second texts of n pairs, it says
        with which probability the first one is better, `[n]`, NaN where it cannot tell. Every pair
        is asked about in both orders.
      label: in the report, at the beginning of a sentence.
      description: a sentence or two of the report: how it compares.
      needs: keys that every pair must have, such as "planted"; a run without explanations has none.
      trained: whether stage `judge` trains it first, as an adapter of the run's base.
      check: refuses config and data that it could not work with, before anything is written.
    """

    name: str
    build: Callable[[Setup], Judge]
    label: str
    description: str
    needs: tuple[str, ...] = ()
    trained: bool = False
    check: Callable[[Any, RunData], object] | None = None

    def known_pairs(self, pairs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The pairs that have all that the judge needs."""
        return [pair for pair in pairs if all(pair.get(key) for key in self.needs)]


_REGISTRY: dict[str, Registration] = {}
B = TypeVar("B", bound=Callable[[Setup], Judge])


def register(
    name: str,
    *,
    label: str = "",
    description: str = "",
    needs: Sequence[str] = (),
    trained: bool = False,
    check: Callable[[Any, RunData], object] | None = None,
) -> Callable[[B], B]:
    """Decorator: makes a judge available as `judge.source = name`.

    Args:
      name: letters, digits, "_" and the like.
      label: see `Registration`, as the following; default the name.
      description: default says that it compares two explanations in both orders.
      needs: keys of the pairs.
      trained: see `Registration`.
      check: of config and data.

    Raises:
      UserError: on a name that another judge has.
    """
    label = label or name
    description = description or _in_both_orders(label)

    def add(build: B) -> B:
        known = _REGISTRY.get(name)
        # A user's module may be loaded again and register anew; the library's own names stay.
        if known is not None and replaces_library(known.build, build):
            raise UserError(f"judge {name!r} is registered already")
        _REGISTRY[name] = Registration(
            name, build, label, description, tuple(needs), trained, check
        )
        return build

    return add


def names() -> list[str]:
    """Names of all registered judges, in the order in which they were registered."""
    return list(_REGISTRY)


def find(name: str) -> Registration | None:
    """The judge registered as `name`, None for another name."""
    return _REGISTRY.get(name)


def of(config: Any) -> Registration:
    """The judge that `judge.source` names.

    Raises:
      UserError: if there is none of that name.
    """
    source = config.judge.source
    registration = find(source)
    if registration is None:
        raise UserError(f"judge.source={source!r} is not valid; valid: {', '.join(names())}")
    return registration


def lead(name: str) -> str:
    """How a judge compares and how its win ratios are read, for the report.

    Args:
      name: as it stands in a run's config; "" where that has none. One that is not registered here
        is called by its name.
    """
    registration = find(name or _DEFAULT)
    known = _in_both_orders(name) if registration is None else registration.description
    return f"{known} {_NO_DIFFERENCE}"


def _in_both_orders(label: str) -> str:
    return (
        f"{label} compares two explanations of one recommendation, in both orders. A verdict that "
        "turns with the order is a tie."
    )


def judge_path(rundir: RunDir) -> epath.Path:
    """Where the judge's adapter, its split and its verdicts lie."""
    return rundir.path / STAGE


def explanations_of(rundir: RunDir) -> list[Any]:
    """The pairs of a run's `explain` stage; empty before it is done."""
    return run_records.pairs(rundir)


def check_untrained(config: Any, data: RunData, rundir: RunDir) -> None:
    """Validates a judge that is not trained, before anything is written.

    Raises:
      UserError: if it refuses config or data, or there is nothing that it could compare.
    """
    registration = of(config)
    # The judge's own conditions come first: they say more than what is missing for anybody.
    if registration.check is not None:
        registration.check(config, data)
    comparisons.check(config)
    # Files of explanations can be compared as well, but hold no pairs to know anything about.
    given = config.judge.explanations and not registration.needs
    if not given and "explain" not in config.stages and not explanations_of(rundir):
        raise UserError(f"judge.source={registration.name!r} needs stage 'explain' before it")
