"""Attributes told from prompts that lack them, beside always giving the commonest value."""

from __future__ import annotations

from xrec_jax.pipelines.report import wording
from xrec_jax.pipelines.report.markup import Html, tag
from xrec_jax.pipelines.report.material import Material, Section
from xrec_jax.pipelines.report.sections.panels import comparisons, is_pair, panels

ID, TITLE = "attributes", "Attribute prediction"
HOW = "Add the stage attributes to config.stages."
_MAJORITY = "majority"
_MAIN = ("accuracy", "macro_f1", "mae")


def build(material: Material) -> Section | None:
    """None before the stage `attributes` is done."""
    systems = material.stage("attributes")
    names: list[str] = list(
        dict.fromkeys(
            key.split("/", 1)[0]
            for system, metrics in systems.items()
            if not is_pair(system)
            for key in metrics
            if not key.startswith("data/")
        )
    )
    blocks = [_attribute(material, systems, name) for name in names]
    if not any(blocks):
        return None
    lead = (
        "The model is asked for an attribute that its prompt does not hold. It has learnt "
        "something only where it beats the majority: always answering the commonest value."
    )
    return Section(ID, TITLE, lead, tag("div", *blocks))


def _attribute(material: Material, systems: dict, name: str) -> Html | None:
    others = material.explainers(s for s in systems if s != _MAJORITY and not is_pair(s))
    body = panels(
        material, systems, name, main=_MAIN,
        order=[s for s in [*others, _MAJORITY] if any(k.startswith(f"{name}/") for k in
                                                     systems.get(s, {}))],
    )  # fmt: skip
    if body is None:
        return None
    return tag("div", tag("h3", wording.humanised(name)), body, comparisons(systems, name))
