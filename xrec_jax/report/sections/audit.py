"""Findings of the audit in data, split and texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xrec_jax.report.html.markup import Html, join, tag
from xrec_jax.report.html.numbers import percent, whole
from xrec_jax.report.run_files import RunFiles, Section

ID, TITLE = "audit", "Audit"
HOW = "Run xrec audit --workdir=DIR for this run."
_SIGNS = {"error": "\u2716", "warning": "\u25b2", "info": "\u25cf"}


def build(run_files: RunFiles) -> Section | None:
    """Builds the section; None without `audit.json`."""
    audit = run_files.audit
    if audit is None:
        return None
    findings, passed = audit.get("findings", ()), audit.get("passed", ())
    lead = (
        f"{len(findings) or 'No'} finding{'' if len(findings) == 1 else 's'}; {len(passed)} checks "
        "found nothing. An error makes figures wrong, a warning needs a decision."
    )
    parts: list[Html] = [_finding(finding) for finding in findings]
    if passed:
        names = join([tag("code", name) for name in passed], " ")
        summary = f"{len(passed)} check{'' if len(passed) == 1 else 's'} passed"
        parts.append(tag("details", tag("summary", summary), tag("p", names, class_="passed")))
    return Section(ID, TITLE, lead, tag("div", *parts))


def _finding(finding: Mapping[str, Any]) -> Html:
    severity = str(finding["severity"])
    count, total = finding["count"], finding["total"]
    # A check may have had nothing to look at.
    share = f" ({percent(count / total)})" if total else ""
    examples = finding.get("examples") or ()
    return tag(
        "article",
        tag(
            "h3",
            tag("span", f"{_SIGNS.get(severity, '')} {severity}", class_="badge"),
            " ",
            tag("code", finding["code"]),
            " ",
            tag("span", f"{whole(count)} of {whole(total)}{share}", class_="count"),
        ),
        tag("p", finding["message"]),
        tag("ul", *(tag("li", example) for example in examples), class_="examples")
        if examples
        else None,
        tag("p", tag("b", "What to do: "), finding["advice"], class_="advice"),
        class_=f"finding {severity if severity in _SIGNS else 'info'}",
    )
