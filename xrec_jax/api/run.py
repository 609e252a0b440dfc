"""`xrec run` and `xrec evaluate`: the stages of a config, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from etils import epath
from ml_collections import ConfigDict

from xrec_jax import defaults, stages
from xrec_jax.core.errors import UserError
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data import run_identity
from xrec_jax.data.run_data import describe, prepare
from xrec_jax.parallel import agreement
from xrec_jax.parallel.exclusive import exclusive, of_directory, refuse_second
from xrec_jax.parallel.mesh import open_mesh, saved_mesh, use_mesh
from xrec_jax.run_config import (
    check_config,
    compared,
    import_extensions,
    read_config,
    settle_dtype,
    start_run,
)
from xrec_jax.stages import Context, Stage, sizes


def _stages(config: ConfigDict) -> tuple[Stage, ...]:
    """The stages of a config; checks what does not need the data.

    Raises:
      UserError: on stages that do not exist or stand in another order, or on values that all stages
        share and that cannot work.
    """
    order = ", ".join(stages.names())
    if not config.stages:
        raise UserError(f"config.stages is empty; valid: {order}")
    # A flag gives one text with commas, a config file a tuple.
    names = [name for entry in config.stages for name in entry.split(",") if name]
    for name in names:
        stages.get(name)
    # A stage reads what earlier ones wrote, so there is one order.
    if names != [name for name in stages.names() if name in names]:
        raise UserError(
            f"config.stages={','.join(names)}: stages run once each, in the order {order}"
        )
    config.stages = tuple(names)
    seeds, ks = config.seeds, config.ranking.ks
    if not seeds or not all(isinstance(s, int) and 0 <= s < 2**31 for s in seeds):
        raise UserError(
            f"seeds={seeds!r} must be whole numbers from 0, for example --config.seeds=0,"
        )
    if not ks or not all(isinstance(k, int) and k > 0 for k in ks):
        raise UserError(f"ranking.ks={ks!r} must be positive whole numbers")
    if config.ranking.resamples < 0:
        raise UserError(f"ranking.resamples={config.ranking.resamples} must not be negative")
    return stages.of_config(config)


def run(config: ConfigDict, workdir: epath.PathLike) -> RunDir:
    """Runs every stage of a config; what is done already is skipped, what was cut off resumes.

    Args:
      config: see `defaults.base`.
      workdir: the run directory.

    Raises:
      UserError: on a config that cannot run, or another process that runs there, before anything
        is written.
    """
    # Extensions first: they may register stages, which add sections to the config and have checks.
    import_extensions(config)
    defaults.add_sections(config)
    chosen = _stages(config)
    rundir = RunDir(workdir)
    rundir.check_is_directory()
    settle_dtype(rundir, config)
    # Processes with different configs would wait for each other at different barriers.
    agreement.same_config(compared(config))
    agreement.same_directory(rundir.path)
    # Refused before the data is read; the lock itself is taken when every check has passed.
    lock = of_directory(rundir.path)
    refuse_second(lock)
    with open_mesh(config) as mesh:
        data = prepare(config.data)
        config.data.split.kind = data.split.kind  # what "" stands for is kept with the run
        # A resumed run must be of the same config and data, or its figures would mix two runs.
        check_config(rundir, config)
        rundir.check_records()
        identity = run_identity.identify(config, data)
        agreement.same("data", identity["digest"], way_out="copy it to every host")
        run_identity.compare(rundir, identity)
        # Of all stages, before the first one writes anything.
        sizes.check(config, data=data, mesh=mesh)
        ctx = Context(config, data, mesh, rundir)
        for stage in chosen:
            stage.check(ctx)
        with exclusive(lock):
            run_identity.record(rundir, identity)
            _run_stages(chosen, ctx)
    return rundir


def _run_stages(chosen: tuple[Stage, ...], ctx: Context) -> None:
    """Runs what is not marked as done, each stage up to its mark."""
    rundir = ctx.rundir
    start_run(rundir, ctx.config)
    if is_primary():
        # Temporary files of a killed run: the lock excludes that another one still writes them.
        files.remove_leftovers(rundir.path, below=True)
        log(describe(ctx.data, ctx.config.data))
        log(f"mesh {dict(ctx.mesh.shape)} on {jax.device_count()} {jax.default_backend()} devices")
    writer = MetricWriter(rundir.path, enabled=is_primary())
    try:
        for stage in chosen:
            # None: never done; a list: what a finished stage left and is not there any more.
            gone = None if stage.always_runs else rundir.gone(stage.name)
            if gone != []:
                with _remade(stage.name, gone or [], rundir):
                    stage.run(ctx, writer)
                _mark(stage, ctx)
    finally:
        writer.close()


@contextlib.contextmanager
def _remade(name: str, gone: list[str], rundir: RunDir) -> Iterator[None]:
    """Around the run of a stage that is not done, or whose files are not all there any more.

    Raises:
      UserError: if the stage did not make again what was gone; its mark stays then.
    """
    with _mark_kept(name, rundir):
        # The mark goes before the first output changes, so that a kill leaves the stage as not
        # done.
        rundir.reopen(name)
        yield
        for file in gone:
            if "/" not in file or (rundir.path / file).exists():
                continue
            raise UserError(
                f"{rundir.path / file} is gone, and stage {name!r}, which left it, does not make "
                "it alone again; put it back, or use another --workdir"
            )


@contextlib.contextmanager
def _mark_kept(name: str, rundir: RunDir) -> Iterator[None]:
    """Puts the mark of a stage back where a mistake ends it before it changed what it had left."""
    mark = rundir.marks.text(name) if is_primary() else ""
    try:
        yield
    except UserError:
        if mark and is_primary():
            rundir.marks.put(name, mark)
            try:
                rundir.gone(name)
            except UserError:  # something is written anew already, so the mark is of the past
                rundir.marks.remove(name)
        raise


def _mark(stage: Stage, ctx: Context) -> None:
    """Marks a stage as done; what runs at every start never is."""
    if not stage.always_runs:
        ctx.rundir.mark_done(stage.name, stage.left(ctx))


def evaluate(workdir: epath.PathLike, *, allow_imports: bool = False) -> RunDir:
    """Evaluates a finished run again, from its checkpoints.

    Args:
      workdir: the run directory.
      allow_imports: import the modules that its config names.
    """
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = read_config(rundir)
    agreement.same_config(compared(config))
    chosen = _stages(config)
    with exclusive(of_directory(rundir.path)), use_mesh(saved_mesh(config)) as mesh:
        data = run_identity.open_data(config, rundir, texts=True)
        rundir.check_records()
        if is_primary():
            files.remove_leftovers(rundir.path, below=True)
        ctx = Context(config, data, mesh, rundir)
        for stage in chosen:
            with _mark_kept(stage.name, rundir):
                stage.evaluate(ctx)
            _mark(stage, ctx)
    return rundir
