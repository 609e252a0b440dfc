"""Level 6: the stages of a run, one a file, in the order in which they run."""

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
)
from xrec_jax.stages.base import Context, Stage, get, names, of_config, register, registered

for _stage in (
    recommend.STAGE,
    pretrain.STAGE,
    instruct.STAGE,
    explain.STAGE,
    judge.STAGE,
    attributes.STAGE,
    joint.STAGE,
    assess.STAGE,
    showcase.STAGE,
    report.STAGE,
):
    register(_stage)

__all__ = ["Context", "Stage", "get", "names", "of_config", "register", "registered"]
