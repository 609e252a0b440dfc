"""`xrec run` and `xrec evaluate`: the stages of a config, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import MetricWriter, log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data import run_identity
from xrec_jax.data.run_data import RunData, describe, prepare
from xrec_jax.parallel import agreement
from xrec_jax.parallel.exclusive import exclusive, of_directory, refuse_second
from xrec_jax.parallel.mesh import open_mesh, saved_mesh, use_mesh
from xrec_jax.run_config import check_config, compared, import_extensions, read_config, start_run
from xrec_jax.stages import (
    assess,
    attributes,
    explain,
    instruct,
    joint,
    judge,
    pretrain,
    recommend,
    report,
    showcase,
    sizes,
)

STAGES = {
    "recommend": recommend,
    "pretrain": pretrain,
    "instruct": instruct,
    "explain": explain,
    "judge": judge,
    "attributes": attributes,
    "joint": joint,
    "assess": assess,
    "showcase": showcase,
    "report": report,
}
_ALWAYS = ("showcase", "report")  # they run again at every start


def _stages(config: Any) -> list[Any]:
    """The stages of a config; checks what does not need the data."""
    if not config.stages:
        raise UserError(f"config.stages is empty; valid: {', '.join(STAGES)}")
    names = [name for entry in config.stages for name in entry.split(",") if name]
    for name in names:
        if name not in STAGES:
            raise UserError(f"no stage {name!r}{did_you_mean(name, STAGES)}")
    if names != [name for name in STAGES if name in names]:
        raise UserError(
            f"config.stages={','.join(names)}: stages run once each, in the order "
            f"{', '.join(STAGES)}"
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
    return [STAGES[name] for name in names]


def run(config: ConfigDict, workdir: epath.PathLike) -> RunDir:
    """Runs every stage of a config; what is done already is skipped, what was cut off resumes.

    Args:
      config: see `defaults.base`.
      workdir: the run directory.

    Raises:
      UserError: on a config that cannot run, or another process that runs there, before anything
        is written.
    """
    import_extensions(config)
    stages = _stages(config)
    rundir = RunDir(workdir)
    rundir.check_is_directory()
    agreement.same_config(compared(config))
    agreement.same_directory(rundir.path)
    lock = of_directory(rundir.path)
    refuse_second(lock)
    with open_mesh(config) as mesh:
        data = prepare(config.data)
        config.data.split.kind = data.split.kind  # what "" stands for is kept with the run
        check_config(rundir, config)
        rundir.check_records()
        identity = run_identity.identify(config, data)
        agreement.same("data", identity["digest"], way_out="copy it to every host")
        run_identity.compare(rundir, identity)
        sizes.check(config, data=data, mesh=mesh)
        for stage in stages:
            stage.check(config, data=data, mesh=mesh, rundir=rundir)
        with exclusive(lock):
            run_identity.record(rundir, identity)
            _run_stages(config, stages, data=data, mesh=mesh, rundir=rundir)
    return rundir


def _run_stages(
    config: ConfigDict, stages: list[Any], *, data: RunData, mesh: Mesh, rundir: RunDir
) -> None:
    start_run(rundir, config)
    if is_primary():
        files.remove_leftovers(rundir.path, below=True)
        log(describe(data, config.data))
        log(f"mesh {dict(mesh.shape)} on {jax.device_count()} {jax.default_backend()} devices")
    writer = MetricWriter(rundir.path, enabled=is_primary())
    try:
        for name, stage in zip(config.stages, stages, strict=True):
            gone = None if name in _ALWAYS else rundir.gone(name)
            if gone != []:
                with _remade(name, gone or [], rundir):
                    stage.run(config, data=data, mesh=mesh, rundir=rundir, writer=writer)
                _mark(name, config, rundir)
    finally:
        writer.close()


@contextlib.contextmanager
def _remade(name: str, gone: list[str], rundir: RunDir) -> Iterator[None]:
    """Around the run of a stage that is not done, or whose files are not all there any more.

    Raises:
      UserError: if the stage did not make again what was gone; its mark stays then.
    """
    with _mark_kept(name, rundir):
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


def _mark(name: str, config: Any, rundir: RunDir) -> None:
    """Marks a stage as done; what runs at every start never is."""
    if name not in _ALWAYS:
        rundir.mark_done(name, STAGES[name].left(config, rundir))


def evaluate(workdir: epath.PathLike, *, allow_imports: bool = False) -> RunDir:
    """Evaluates a finished run again, from its checkpoints.

    Args:
      workdir: the run directory.
      allow_imports: import the modules that its config names.
    """
    rundir = RunDir(workdir, allow_imports=allow_imports)
    config = read_config(rundir)
    agreement.same_config(compared(config))
    stages = _stages(config)
    with exclusive(of_directory(rundir.path)), use_mesh(saved_mesh(config)) as mesh:
        data = run_identity.open_data(config, rundir, texts=True)
        rundir.check_records()
        if is_primary():
            files.remove_leftovers(rundir.path, below=True)
        for name, stage in zip(config.stages, stages, strict=True):
            with _mark_kept(name, rundir):
                stage.evaluate(config, data=data, mesh=mesh, rundir=rundir)
            _mark(name, config, rundir)
    return rundir
