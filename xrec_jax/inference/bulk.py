"""Bulk generation of explanations: resumable, and each pair explained exactly once.

The pairs are planned once (all processes iterate over the recommendations together, the primary one
writes the plan) and divided into shards; every shard is written atomically when all of its pairs
are explained. A shard is a function of its pairs alone, so it may be produced by any process, at
any time, after any number of kills.

Several processes each load the base onto their own devices and take every n-th of the missing
shards, without communication. Only a base that is split over the devices of several processes
(`mesh.fsdp` times `mesh.tensor` exceeds the devices of a process) is used by all of them together,
shard after shard, and the primary one writes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from xrec_jax.core.logging import Progress
from xrec_jax.core.runtime.distributed import barrier, is_primary, sigterm
from xrec_jax.core.runtime.stopping import Stop
from xrec_jax.inference import explainers
from xrec_jax.inference.explainers import Explainer
from xrec_jax.inference.shards import Parts
from xrec_jax.parallel.mesh import make_mesh, use_mesh
from xrec_jax.tasks.requests import RequestBuilder, UserItem
from xrec_jax.training.loop import Interrupted

STAGE = "explain"


class Workplace(NamedTuple):
    """Devices on which a process generates.

    Attributes:
      mesh: mesh of the base.
      together: whether all processes generate every shard together.
    """

    mesh: Mesh
    together: bool


def workplace(mesh: Mesh) -> Workplace:
    """Chooses the process's own devices if the base can be split over them, otherwise all devices.

    Args:
      mesh: mesh over all devices of all processes.
    """
    if jax.process_count() == 1:
        return Workplace(mesh, True)
    local, split = jax.local_devices(), mesh.shape["fsdp"] * mesh.shape["tensor"]
    # True also if the base needs more devices than this process has.
    if len(local) % split:
        return Workplace(mesh, True)
    own = make_mesh(-1, mesh.shape["fsdp"], mesh.shape["tensor"], devices=local)
    return Workplace(own, False)


class Done(NamedTuple):
    """Result of `produce`.

    Attributes:
      pairs: number of pairs in the output.
      made: number of pairs explained by this call, on all processes.
      seconds: duration of the generation.
    """

    pairs: int
    made: int
    seconds: float

    def __str__(self) -> str:
        rate = f", {self.made / self.seconds:,.1f} a second" if self.made else ""
        before = self.pairs - self.made
        kept = f" ({before:,} of them by an earlier call)" if before else ""
        return f"{self.pairs:,} explanations{kept}{rate}"


def produce(
    parts: Parts,
    *,
    pairs: Callable[[], Iterable[UserItem]],
    builder: RequestBuilder,
    place: Workplace,
    explainer: Callable[[], Explainer],
    label: str = STAGE,
) -> Done:
    """Writes an output of explanations, or the missing shards of an unfinished one.

    Args:
      parts: parts of the output.
      pairs: iterates over the pairs to explain; called on every process unless they are planned
        already, as a recommender's scores are computed by all processes.
      builder: builds the requests.
      place: devices to generate on.
      explainer: builds the explainer; called if a shard is missing.
      label: label of the progress bar.

    Raises:
      UserError: if the parts belong to another command, there is no pair, or a shard is damaged.
      Interrupted: after SIGTERM, with every finished shard saved.
    """
    # An earlier call may have been killed between writing the output and removing its parts.
    if parts.just_finished():
        barrier("explanations there")
        if is_primary():
            parts.remove()
        barrier("explanations done")
        return Done(parts.count, 0, 0.0)
    planned = parts.open()
    barrier("explanations looked for")  # before anybody writes
    if not planned:
        walked = pairs()
        if is_primary():
            parts.plan(walked)
        else:  # the scores behind the pairs are a collective computation
            for _ in walked:
                pass
        barrier("explanations planned")
        parts.open()
    # All processes list the missing shards before any of them writes, or the shares would overlap.
    todo = parts.missing()
    barrier("explanations counted")
    start = time.monotonic()
    if todo:
        with use_mesh(place.mesh):
            _shards(parts, todo, builder=builder, explainer=explainer(), place=place, label=label)
    barrier("explanations written")
    done = Done(parts.count, parts.size(todo), time.monotonic() - start)
    if is_primary():
        ids = builder.data.dataset
        parts.merge(
            lambda user_item: (str(ids.user_ids[user_item.user]), str(ids.item_ids[user_item.item]))
        )
    barrier("explanations joined")
    return done


def _shards(
    parts: Parts,
    todo: list[int],
    *,
    builder: RequestBuilder,
    explainer: Explainer,
    place: Workplace,
    label: str,
) -> None:
    """Produces this process's share of the missing shards."""
    processes, process = jax.process_count(), jax.process_index()
    own_shards = todo if place.together else todo[process::processes]
    total = parts.count
    if not place.together and processes > 1:
        label = f"{label}, process 1 of {processes}"
        # The bar of one process: its own shards, and its share of those that an earlier call
        # finished.
        total = parts.size(own_shards) + (parts.count - parts.size(todo)) // processes
    bar = Progress(
        label, total, initial=total - parts.size(own_shards), unit="pair", enabled=is_primary()
    )
    # Several processes do not stop together here: a signal ends one, and no shard is lost.
    with sigterm() if processes == 1 else contextlib.nullcontext(Stop()) as stop:

        def advance(count: int) -> None:
            if stop.is_set():
                raise Interrupted(label, parts.shards - len(parts.missing()), stop.number)
            bar.advance(count)

        for shard in own_shards:
            requests = builder.many(parts.pairs(shard))
            texts = explainers.answers(explainer, requests, advance)
            # Working together, all processes hold the same texts, and one of them writes.
            if is_primary() or not place.together:
                parts.write(
                    shard,
                    (
                        explainers.record(explainer, builder, request, written)
                        for request, written in zip(requests, texts, strict=True)
                    ),
                )
    bar.close()
