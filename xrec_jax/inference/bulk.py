"""Explanations of any number of pairs, written once each whatever happens on the way.

The pairs are planned once (all processes walk through the recommendations together, the first one
writes them down), cut into shards, and every shard is written atomically when all of its pairs are
explained. A shard is a function of its pairs alone, so it does not matter who makes it, when, or
after how many kills.

Several processes each load the base onto their own devices and take every n-th of the shards that
are missing: nothing is exchanged but the shards' files. Only a base that is split over the devices
of several processes (`mesh.fsdp` and `mesh.tensor` together more than a process has) is used by all
of them together, shard after shard, and the first one writes.
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
from xrec_jax.tasks.requests import Asked, CaseMaker
from xrec_jax.training.loop import Interrupted

STAGE = "explain"


class Workplace(NamedTuple):
    """The devices on which a process generates.

    Attributes:
      mesh: of the base.
      together: whether all processes generate every shard together.
    """

    mesh: Mesh
    together: bool


def workplace(mesh: Mesh) -> Workplace:
    """Where to generate: on this process's own devices if the base fits onto them as it is split.

    Args:
      mesh: over all devices of all processes.
    """
    if jax.process_count() == 1:
        return Workplace(mesh, True)
    local, split = jax.local_devices(), mesh.shape["fsdp"] * mesh.shape["tensor"]
    if len(local) % split:
        return Workplace(mesh, True)
    own = make_mesh(-1, mesh.shape["fsdp"], mesh.shape["tensor"], devices=local)
    return Workplace(own, False)


class Done(NamedTuple):
    """What a call of `produce` did.

    Attributes:
      pairs: in the output.
      made: explained by this call, on all processes.
      seconds: that it took them.
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
    pairs: Callable[[], Iterable[Asked]],
    maker: CaseMaker,
    place: Workplace,
    explainer: Callable[[], Explainer],
    label: str = STAGE,
) -> Done:
    """Writes an output of explanations, or what is missing of it.

    Args:
      parts: of the output.
      pairs: walks through what is to be explained; called if that is not planned yet, on every
        process, as a recommender's scores are computed by all of them.
      maker: of prompts.
      place: where to generate.
      explainer: makes the one who writes; called if a shard is missing.
      label: of the progress.

    Raises:
      UserError: if the parts belong to another command, there is no pair, or a shard is damaged.
      Interrupted: after SIGTERM, with every finished shard saved.
    """
    if parts.just_finished():
        barrier("explanations there")
        if is_primary():
            parts.remove()
        barrier("explanations done")
        return Done(parts.count, 0, 0.0)
    planned = parts.open()
    barrier("explanations looked for")  # before anybody writes
    if not planned:
        found = pairs()
        if is_primary():
            parts.plan(found)
        else:
            for _ in found:
                pass
        barrier("explanations planned")
        parts.open()
    todo = parts.missing()
    barrier("explanations counted")
    start = time.monotonic()
    if todo:
        with use_mesh(place.mesh):
            _shards(parts, todo, maker=maker, explainer=explainer(), place=place, label=label)
    barrier("explanations written")
    done = Done(parts.count, parts.size(todo), time.monotonic() - start)
    if is_primary():
        ids = maker.data.dataset
        parts.merge(lambda asked: (str(ids.user_ids[asked.user]), str(ids.item_ids[asked.item])))
    barrier("explanations joined")
    return done


def _shards(
    parts: Parts,
    todo: list[int],
    *,
    maker: CaseMaker,
    explainer: Explainer,
    place: Workplace,
    label: str,
) -> None:
    """Makes this process's share of the shards that are missing."""
    everybody, me = jax.process_count(), jax.process_index()
    mine = todo if place.together else todo[me::everybody]
    total = parts.count
    if not place.together and everybody > 1:
        label = f"{label}, process 1 of {everybody}"
        total = parts.size(mine) + (parts.count - parts.size(todo)) // everybody
    bar = Progress(
        label, total, initial=total - parts.size(mine), unit="pair", enabled=is_primary()
    )
    # Several processes do not agree on an end here: a signal ends one, which loses no shard.
    with sigterm() if everybody == 1 else contextlib.nullcontext(Stop()) as stop:

        def advance(count: int) -> None:
            if stop.is_set():
                raise Interrupted(label, parts.shards - len(parts.missing()), stop.number)
            bar.advance(count)

        for shard in mine:
            cases = maker.many(parts.pairs(shard))
            found = explainers.answers(explainer, cases, advance)
            if is_primary() or not place.together:
                parts.write(
                    shard,
                    (
                        explainers.record(explainer, maker, case, written)
                        for case, written in zip(cases, found, strict=True)
                    ),
                )
    bar.close()
