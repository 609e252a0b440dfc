"""The contract of a stage, its context, and the registry that holds the stages in order.

A stage is a record of plain functions over a `Context`. Only `name`, `check` and `run` are needed;
the other fields state what the rest of the library must know of the stage, so no list elsewhere
names stages. A user's own stage is one file with a `register(Stage(...))`, named in
`config.imports`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import MetricWriter
from xrec_jax.core.rundir import Left, RunDir
from xrec_jax.data.run_data import RunData
from xrec_jax.llm.io.tokenizer import Tokenizer
from xrec_jax.llm.model.config import LlamaConfig
from xrec_jax.report.run_files import RunFiles, Section

_STEPS_BITS = 28  # a stage makes fewer than 2**28 updates


@dataclasses.dataclass(frozen=True)
class Context:
    """Arguments of every function of a stage.

    Attributes:
      config: the resolved configuration.
      data: events, split and tables of the run.
      mesh: devices; the runner is inside `use_mesh(mesh)`.
      rundir: the run directory.
    """

    config: Any
    data: RunData
    mesh: Mesh
    rundir: RunDir


def _nothing(*unused: Any) -> None:
    """The default of whatever a stage may leave out."""
    del unused


def _left_nothing(ctx: Context) -> Left:
    del ctx
    return Left([])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: in `config.stages`, of its section, and of its part of `evaluation.json`.
      check: refuses what could not run to its end, before anything is written.
      run: does what is not done yet; a rerun resumes.
      evaluate: measures the finished stage again, from what it left.
      left: what the finished stage leaves in the run directory.
      section: its keys of the config, with their defaults; None: it has none.
      shrink: makes the whole config a smoke test of seconds, as far as the stage is concerned.
      check_tokenized: refuses what does not fit a row or the base, counted in tokens. `pretrain`
        calls it for the stages behind it once there is a tokenizer, before the base is trained.
      paths: keys of its section that hold paths: text, or a list of texts that may be joined by
        "+". They are stored absolute, and may change between a run and its resume.
      not_paths: values of these keys that are keywords instead of paths.
      trains: whether it makes updates, which take their place in the run's count; see
        `steps_before`.
      needs_base: whether it tunes or asks the base of `config.llm`, for which `pretrain` goes
        before it in a smoke test.
      shapes_explanations: whether its section decides what an explanation says; else outputs of
        `xrec explain` that are begun go on whatever changes there.
      report_section: builds a section of the report from what the run directory holds, None where
        there is nothing to show; it comes behind those of the library, most of which show several
        stages together and so belong to none.
      always_runs: runs at every start and is never marked as done, as it takes seconds.
    """

    name: str
    check: Callable[[Context], None]
    run: Callable[[Context, MetricWriter], None]
    evaluate: Callable[[Context], None] = _nothing
    left: Callable[[Context], Left] = _left_nothing
    section: Callable[[], ConfigDict] | None = None
    shrink: Callable[[ConfigDict], None] = _nothing
    check_tokenized: Callable[[Context, Tokenizer, LlamaConfig], object] = _nothing
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()
    trains: bool = False
    needs_base: bool = False
    shapes_explanations: bool = False
    report_section: Callable[[RunFiles], Section | None] | None = None
    always_runs: bool = False

    @property
    def full_paths(self) -> tuple[str, ...]:
        """`paths` as keys of the whole config."""
        return tuple(f"{self.name}.{key}" for key in self.paths)


_REGISTRY: dict[str, Stage] = {}


def register(stage: Stage) -> Stage:
    """Makes a stage available in `config.stages`, behind those that are registered already.

    A stage of the same name is replaced, and its place kept.
    """
    _REGISTRY[stage.name] = stage
    return stage


def registered() -> tuple[Stage, ...]:
    """All stages, in the order in which they run."""
    # What runs at every start shows the results of the others, so it stays behind all of them; the
    # sort is stable.
    return tuple(sorted(_REGISTRY.values(), key=lambda stage: stage.always_runs))


def names() -> tuple[str, ...]:
    """Names of all stages, in the order in which they run."""
    return tuple(stage.name for stage in registered())


def get(name: str) -> Stage:
    """The stage of a name.

    Raises:
      UserError: if there is none of that name; says which is nearest.
    """
    if name not in _REGISTRY:
        raise UserError(f"no stage {name!r}{did_you_mean(name, names())}")
    return _REGISTRY[name]


def of_config(config: Any) -> tuple[Stage, ...]:
    """The stages that a config names, in the order in which they run."""
    return tuple(stage for stage in registered() if stage.name in config.stages)


def later(config: Any, name: str) -> tuple[Stage, ...]:
    """The stages of a config that run behind the one of a name."""
    behind = names()[names().index(name) + 1 :]
    return tuple(stage for stage in of_config(config) if stage.name in behind)


def steps_before(name: str) -> int:
    """First update of a stage that trains, in the count of a run's updates.

    Processes that agree on where to stop need a count that grows over the stages of a run. The
    first stage that trains begins at 0, and each takes 2**28.
    """
    trained = [stage.name for stage in registered() if stage.trains]
    return trained.index(name) << _STEPS_BITS


def report_sections() -> list[Callable[[RunFiles], Section | None]]:
    """Builders of the report's sections that stages bring themselves."""
    return [stage.report_section for stage in registered() if stage.report_section is not None]


def keys_apart() -> tuple[str, ...]:
    """Prefixes of the keys, in all stages' sections, that change no explanation."""
    # Of a stage that shapes explanations the paths may change; the content of the files counts.
    keys: list[str] = []
    for stage in registered():
        keys += stage.full_paths if stage.shapes_explanations else [f"{stage.name}."]
    return tuple(keys)
