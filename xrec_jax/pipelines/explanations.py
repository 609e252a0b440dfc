"""Explanations of a run's own recommendations, by base and tuned model."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh

from xrec_jax.data.histories import Histories
from xrec_jax.parallel.mesh import use_mesh
from xrec_jax.pipelines import corpora, language
from xrec_jax.pipelines.datasets import RunData
from xrec_jax.pipelines.rundir import RunDir
from xrec_jax.pipelines.session import recommend_records


def explain_first(
    config: Any, data: RunData, rundir: RunDir, mesh: Mesh, *, users: np.ndarray
) -> list[dict[str, Any]]:
    """Explains the first recommendation of some users, by the best system of the run.

    Args:
      config: of the run.
      data: of the run.
      rundir: with finished stages `recommend` and `instruct`.
      mesh: devices.
      users: `[users]` rows.

    Returns:
      Records `user`, `item`, `title`, `prompt`, `base` and `tuned` (texts), and in a planted world
      `reasons`, what is true.
    """
    dataset, world = data.dataset, data.world
    records = list(recommend_records(config, data, rundir, mesh, users=users, top_k=1, system=""))
    row_of = {str(id_): row for row, id_ in enumerate(dataset.item_ids)}
    user_of = {str(dataset.user_ids[row]): int(row) for row in users}
    history = Histories.of([data.split.train, data.split.valid, data.split.test], dataset.num_users)
    with use_mesh(mesh):
        base = language.load_base(config, rundir, mesh)
        prompting = corpora.prompting(config.instruct, data, base.tokenizer)
        made = []
        for record in records:
            user, item = user_of[record["user"]], row_of[record["item"]]
            events = history.items[history.start[user] : history.start[user + 1]]
            found = {
                "user": record["user"], "item": record["item"],
                "title": prompting.template.render_item(prompting.items[item]).strip(),
                "prompt": prompting.prompt(user, item, events).text,
            }  # fmt: skip
            if world is not None:
                why = world.reasons(np.array([user]), np.array([item]), np.array([len(events)]))
                found["reasons"] = why[0].describe()
            made.append(found)
        adapter = language.tuned_adapter(rundir, base)
        lm = language.language_model(config, base, {"tuned": adapter})
        for name, which in (("base", None), ("tuned", "tuned")):
            answers = language.answer(config, lm, [found["prompt"] for found in made], which)
            for found, answer in zip(made, answers, strict=True):
                found[name] = answer["text"]
    return made
