"""Summary of the run: stages, data, settings and commands to repeat it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from typing import Any

from xrec_jax.report.html.markup import Html, table, tag
from xrec_jax.report.html.numbers import decimal, whole
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "run", "What ran"
HOW = ""
_PACKAGES = ("xrec_jax", "jax", "flax", "optax", "numpy")


def build(run_files: RunFiles) -> Section:
    """Builds the section, which every page has."""
    config = run_files.config
    stages = tuple(config.get("stages", ()))
    lead = (
        f"Configuration {config.get('name') or 'without a name'}, stages "
        f"{', '.join(stages) or 'none'}, {len(config.get('seeds', ()))} seed"
        f"{'' if len(config.get('seeds', ())) == 1 else 's'}."
    )
    body = tag(
        "div",
        tag("div", _facts(run_files), class_="facts"),
        _stages(run_files),
        _again(run_files),
        tag(
            "details",
            tag("summary", "The whole configuration"),
            tag(
                "pre",
                json.dumps(config, indent=2, ensure_ascii=False),
                tabindex="0",
                role="region",
                aria_label="configuration",
            ),
        ),
    )
    return Section(ID, TITLE, lead, body)


def _facts(run_files: RunFiles) -> Html:
    """Table of data, models and devices."""
    config = run_files.config
    data, llm = config.get("data", {}), config.get("llm", {})
    facts: list[tuple[str, object]] = []
    sizes = run_files.sizes or {}
    # Sizes are known only where the data were read for the page.
    name = sizes.get("name") or data.get("name") or data.get("format", "")
    facts.append(("Data", "planted world" if data.get("format") == "world" else name))
    for key in ("users", "items", "events"):
        if sizes.get(key) is not None:
            facts.append((key.capitalize(), whole(sizes[key])))
    parts = sizes.get("parts") or {}
    if parts:
        facts.append(("Train, validation, test", ", ".join(whole(n) for n in parts.values())))
    # Configs of older runs may lack keys, so every one is optional.
    split = data.get("split", {})
    if split and data.get("format") != "none":
        kind = str(split.get("kind", "")).replace("_", "-")
        how = f"at {split.get('at')}" if kind == "time" else f"by {split.get('order', 'time')}"
        facts.append(("Split", f"{kind} {how}"))
    if config.get("recommend"):
        facts.append(("Recommenders", ", ".join(config["recommend"])))
    # A base is either read from a directory or made by the stage `pretrain`.
    if llm.get("path"):
        facts.append(("Base model", str(llm["path"]).rstrip("/").rsplit("/", 1)[-1]))
    elif "pretrain" in config.get("stages", ()):
        facts.append(
            (
                "Base model",
                f"LLaMA, {llm.get('num_layers')} layers of {llm.get('hidden_size')}, "
                "pre-trained here",
            )
        )
    lora = config.get("instruct", {}).get("lora", {})
    if "instruct" in config.get("stages", ()) and lora:
        facts.append(("Adapter", f"LoRA, rank {lora.get('rank')}, alpha {lora.get('alpha'):g}"))
    mesh = config.get("mesh", {})
    if mesh:
        shape = ", ".join(f"{k} {'all' if v == -1 else v}" for k, v in mesh.items())
        facts.append(("Mesh of devices", shape))
    facts.append(("Page made with", _versions()))
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts))


def _versions() -> str:
    versions = [f"Python {platform.python_version()}"]
    # A package that runs from its source tree has no installed version.
    for name in _PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(versions)


def _stages(run_files: RunFiles) -> Html | None:
    """Table of steps, time and speed of all trainings, from the metric log."""
    # Counters are cumulative, so the last record of each stage has the totals.
    last: dict[str, Mapping[str, Any]] = {}
    for record in run_files.metrics:
        last[str(record["stage"])] = record
    if not last:
        return None
    rows = []
    for stage, record in last.items():
        number = lambda name, digits=0, r=record: (  # noqa: E731
            "-" if r.get(name) is None else decimal(float(r[name]), digits)
        )
        rows.append(
            [
                stage,
                whole(record.get("step", 0)),
                number("train/epoch"),
                number("time/elapsed_seconds", 1),
                number("time/examples_per_second"),
                number("time/tokens_per_second"),
            ]
        )
    header = ("Trained", "Steps", "Epochs", "Seconds", "Examples/s", "Tokens/s")
    return tag(
        "div",
        table(header, rows, caption="Training: steps, time and speed", class_="numbers"),
        tag(
            "p",
            "Seconds since the start of each; speed of the last stretch that was logged.",
            class_="note",
        ),
    )


def _again(run_files: RunFiles) -> Html:
    """Commands that repeat or refresh the run."""
    # The path of the config file is not stored; by custom the file has the config's name.
    name = run_files.config.get("name") or "NAME"
    option = f"--workdir=runs/{run_files.name}"
    commands = (
        (f"xrec run --config=configs/{name}.py {option}", "the whole run; a rerun resumes"),
        (f"xrec evaluate {option}", "all figures again, from the checkpoints"),
        (f"xrec report {option}", "this page again"),
    )
    lines = []
    for command, purpose in commands:
        lines += [tag("span", f"# {purpose}\n", class_="remark"), f"{command}\n"]
    return tag(
        "div",
        tag("h3", "Run it again"),
        tag("pre", *lines, tabindex="0", role="region", aria_label="commands"),
        tag(
            "p",
            "Values that were overridden on the command line stand in the configuration below.",
            class_="note",
        ),
    )
