"""The report: one self-contained HTML page, without network access or other files."""

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
from xrec_jax.report.headline import band, headlines
from xrec_jax.report.html.markup import Html, escape, join, tag
from xrec_jax.report.run_files import RunFiles, Section, load
from xrec_jax.report.sections import PAGE, SECTIONS

NAME = "report.html"
_SUBTITLE = "Explainable recommendation with language models: what this run did and what it found."


BuildSection = Callable[[RunFiles], Section | None]


def write_report(
    rundir: RunDir,
    config: Any = None,
    *,
    data: RunData | None = None,
    more: Sequence[BuildSection] = (),
) -> epath.Path:
    """Writes `report.html` from the files of a run directory.

    Args:
      rundir: directory of a run, finished or not; the page names sections without data and how to
        get them.
      config: configuration of the run with current defaults; None for the stored one.
      data: data of the run. Without it the page lacks sizes, and knows only the titles of the
        explained pairs.
      more: builders of the sections of user-defined stages, which come last; they return None if
        there is nothing to show.

    Returns:
      Path of the page.

    Raises:
      UserError: if this is not a run directory, or one of its files is damaged.
    """
    path = rundir.path / NAME
    files.write_text(path, render(load(rundir, config, data=data), more))
    return path


def render(run_files: RunFiles, more: Sequence[BuildSection] = ()) -> str:
    """Renders the page as text."""
    sections: list[Section] = []
    missing: list[ModuleType] = []
    for module in PAGE:
        section = module.build(run_files)
        if section is not None:
            sections.append(section)
        # Only sections that any run can have are named as missing.
        elif module in SECTIONS:
            missing.append(module)
    sections += [section for build in more if (section := build(run_files)) is not None]
    style, script = _resource("page.css"), _resource("page.js")
    name = str(run_files.config.get("name") or run_files.name)
    # Values are not substituted again, so a "$" in a title or in the script stays as it is.
    text = string.Template(_resource("page.html")).substitute(
        policy=escape(_policy(script)),
        title=escape(f"{name}: report"),
        name=escape(name),
        subtitle=escape(_SUBTITLE),
        style=style,
        script=script,
        nav=_nav(sections, missing),
        band=band(headlines(run_files)) or "",
        sections=join(_section(section) for section in sections),
        missing=_missing(missing) or "",
    )
    return text.encode("utf-8", "replace").decode()  # lone surrogates cannot be written


def _resource(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Content security policy: only the page's own script may run, and nothing may be loaded."""
    # Of exactly the text inside the element: a browser refuses a script that differs by a blank.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _nav(sections: Sequence[Section], missing: Sequence[ModuleType]) -> Html:
    links = [tag("li", tag("a", section.title, href=f"#{section.id}")) for section in sections]
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
    """Writes the page on the primary process, while the others wait."""
    if is_primary():
        log(f"report: {write_report(rundir, config, data=data, more=more)}")
    barrier("report written")
