"""The report: one HTML page that needs nothing else, no network, no other file."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import string
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from etils import epath

from xrec_jax.core.logging import log
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.runtime.distributed import barrier, is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.run_data import RunData
from xrec_jax.report import run_files as materials
from xrec_jax.report.headline import band, headlines
from xrec_jax.report.html.markup import Html, escape, join, tag
from xrec_jax.report.run_files import Material, Section
from xrec_jax.report.sections import PAGE, SECTIONS

NAME = "report.html"
_SUBTITLE = "Explainable recommendation with language models: what this run did and what it found."


BuildSection = Callable[[Material], Section | None]


def write_report(
    rundir: RunDir,
    config: Any = None,
    *,
    data: RunData | None = None,
    more: Sequence[BuildSection] = (),
) -> epath.Path:
    """Writes `report.html` from what the run directory holds.

    Args:
      rundir: a run, finished or not; sections without data are left out, and the page says how to
        get them.
      config: of the run, with today's defaults; default: as it was stored.
      data: of the run. Without it the page does not say how large the data is, and knows only the
        titles that stand in the explained pairs.
      more: builds the sections of stages of one's own, which come last; None: nothing to show.

    Returns:
      The page.

    Raises:
      UserError: if this is not a run directory, or one of its files is damaged.
    """
    path = rundir.path / NAME
    files.write_text(path, render(materials.load(rundir, config, data=data), more))
    return path


def render(material: Material, more: Sequence[BuildSection] = ()) -> str:
    """The page as text."""
    found: list[Section] = []
    missing: list[ModuleType] = []
    for module in PAGE:
        section = module.build(material)
        if section is not None:
            found.append(section)
        elif module in SECTIONS:
            missing.append(module)
    found += [section for build in more if (section := build(material)) is not None]
    style, script = _resource("page.css"), _resource("page.js")
    name = str(material.config.get("name") or material.name)
    text = string.Template(_resource("page.html")).substitute(
        policy=escape(_policy(script)),
        title=escape(f"{name}: report"),
        name=escape(name),
        subtitle=escape(_SUBTITLE),
        style=style,
        script=script,
        nav=_nav(found, missing),
        band=band(headlines(material)) or "",
        sections=join(_section(section) for section in found),
        missing=_missing(missing) or "",
    )
    return text.encode("utf-8", "replace").decode()  # half a character pair cannot be written


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Lets the browser run the page's own script and nothing else, and load nothing at all."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _nav(found: Sequence[Section], missing: Sequence[ModuleType]) -> Html:
    links = [tag("li", tag("a", section.title, href=f"#{section.id}")) for section in found]
    if missing:
        links.append(tag("li", tag("a", "Not in this report", href="#missing")))
    return tag("ul", *links, role="list")


def _section(section: Section) -> Html:
    heading = f"{section.id}-title"
    return tag(
        "section",
        tag("h2", section.title, id=heading),
        tag("p", section.lead, class_="lead"),
        section.body,
        id=section.id,
        aria_labelledby=heading,
    )


def _missing(modules: Sequence[ModuleType]) -> Html | None:
    if not modules:
        return None
    entries = [tag("div", tag("dt", module.TITLE), tag("dd", module.HOW)) for module in modules]
    return tag(
        "section",
        tag("h2", "Not in this report", id="missing-title"),
        tag("p", "What the run directory does not hold, and how to get it.", class_="lead"),
        tag("dl", *entries, class_="missing"),
        id="missing",
        aria_labelledby="missing-title",
    )


def publish(
    rundir: RunDir, data: RunData | None, config: Any = None, *, more: Sequence[BuildSection] = ()
) -> None:
    """Writes the page on the first process; the others wait for it."""
    if is_primary():
        log(f"report: {write_report(rundir, config, data=data, more=more)}")
    barrier("report written")
