"""Declaration and registry of judges."""

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
    """Inputs for building a judge.

    Attributes:
      config: configuration of the run.
      rundir: directory of the run.
      mesh: devices, current while the judge is called.
      pairs: explained recommendations with the contents of their prompts; see
        `text.records.explanations.Pair`.
      base: the language model, if it is loaded already.
      label: label of a progress bar; "" for none.
    """

    config: Any
    rundir: RunDir
    mesh: Mesh
    pairs: Sequence[Mapping[str, Any]] = ()
    base: LoadedBase | None = None
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Registration:
    """Declaration of a judge.

    Attributes:
      name: value of `judge.source`.
      build: builds the judge, a callable that takes prompts, first texts and second texts of n
        pairs and returns the probabilities `[n]` that the first one is better, NaN if undecidable.
        Every pair is compared in both orders.
      label: name in the report, at the beginning of a sentence.
      description: one or two sentences of the report on how it compares.
      needs: keys that every pair must have, such as "planted".
      trained: whether stage `judge` trains it first, as an adapter of the run's base.
      check: validates config and data before anything is written.
    """

    name: str
    build: Callable[[Setup], Judge]
    label: str
    description: str
    needs: tuple[str, ...] = ()
    trained: bool = False
    check: Callable[[Any, RunData], object] | None = None

    def known_pairs(self, pairs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Selects the pairs that have all keys that the judge needs."""
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
    """Decorator that registers a judge as `name` for `judge.source`.

    Args:
      name: letters, digits, "_" and the like.
      label: see `Registration`, as the following; by default the name.
      description: by default, that it compares two explanations in both orders.
      needs: keys that every pair must have.
      trained: whether stage `judge` trains it.
      check: validates config and data.

    Raises:
      UserError: on the name of another judge.
    """
    label = label or name
    description = description or _in_both_orders(label)

    def add(build: B) -> B:
        known = _REGISTRY.get(name)
        # A user's module may be loaded again, but the library's own names cannot be replaced.
        if known is not None and replaces_library(known.build, build):
            raise UserError(f"judge {name!r} is registered already")
        _REGISTRY[name] = Registration(
            name, build, label, description, tuple(needs), trained, check
        )
        return build

    return add


def names() -> list[str]:
    """Names of all registered judges in the order of registration."""
    return list(_REGISTRY)


def find(name: str) -> Registration | None:
    """Finds the judge registered as `name`; None for other names."""
    return _REGISTRY.get(name)


def of(config: Any) -> Registration:
    """Finds the judge of `judge.source`.

    Raises:
      UserError: if there is none of that name.
    """
    source = config.judge.source
    registration = find(source)
    if registration is None:
        raise UserError(f"judge.source={source!r} is not valid; valid: {', '.join(names())}")
    return registration


def lead(name: str) -> str:
    """Introduction of a judge's win ratios in the report.

    Args:
      name: value of `judge.source` in a run's config; "" if it has none. An unregistered judge is
        called by its name.
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
    """Folder of the judge's adapter, split and verdicts."""
    return rundir.path / STAGE


def explanations_of(rundir: RunDir) -> list[Any]:
    """Reads the pairs of a run's `explain` stage; empty before it is done."""
    return run_records.pairs(rundir)


def check_untrained(config: Any, data: RunData, rundir: RunDir) -> None:
    """Validates a judge that is not trained, before anything is written.

    Raises:
      UserError: if it rejects config or data, or there is nothing to compare.
    """
    registration = of(config)
    # The judge's own check comes first: its messages are more specific than the general ones.
    if registration.check is not None:
        registration.check(config, data)
    comparisons.check(config)
    # Files of explanations can be compared as well, unless the judge needs the run's pairs.
    has_files = config.judge.explanations and not registration.needs
    if not has_files and "explain" not in config.stages and not explanations_of(rundir):
        raise UserError(f"judge.source={registration.name!r} needs stage 'explain' before it")
