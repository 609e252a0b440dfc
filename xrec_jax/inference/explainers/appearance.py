"""Labels, titles and colours of explainers, kept for pages that are made without their code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from xrec_jax.core.errors import UserError
from xrec_jax.core.registering import is_library
from xrec_jax.core.rundir import RunDir
from xrec_jax.core.storage import files
from xrec_jax.inference.explainers.base import COLOURS, Spec, find
from xrec_jax.inference.explainers.selection import folder

FILE = "explainers.json"


class Appearance(NamedTuple):
    """An explainer on the page.

    Attributes:
      label: label in charts and tables.
      title: title of its texts.
      colour: of `COLOURS`; "" for any free one.
    """

    label: str
    title: str
    colour: str = ""


_stored: dict[str, Appearance] = {}  # of the run whose page is being made


def appearance(name: str) -> Appearance | None:
    """Appearance of an explainer that is registered or stored; None for other names."""
    registration = find(name)
    if registration is None:
        return _stored.get(name)
    return Appearance(registration.label, registration.title, registration.colour)


def label(name: str) -> str:
    """Label of an explainer in charts and tables; its name if nothing is known of it."""
    known = appearance(name)
    return name if known is None else known.label


def keep(rundir: RunDir, specs: Sequence[Spec]) -> None:
    """Writes the appearances of explainers that are not the library's own, if there are any."""
    registered = [registration for spec in specs if (registration := find(spec.name)) is not None]
    own = [registration for registration in registered if not is_library(registration.build)]
    if own:
        content = {r.name: Appearance(r.label, r.title, r.colour)._asdict() for r in own}
        files.write_json(folder(rundir) / FILE, content)


@contextlib.contextmanager
def stored(rundir: RunDir) -> Iterator[None]:
    """Makes the kept appearances of a run known within the block.

    Raises:
      UserError: if their file is damaged.
    """
    path = folder(rundir) / FILE
    content = files.read_json(path) if path.exists() else {}
    entries: list[tuple[str, Any]] = [("", None)]
    if isinstance(content, dict):
        entries = [*content.items()]
    for name, kept in entries:
        if not (
            isinstance(kept, dict)
            and kept.keys() == {*Appearance._fields}
            and all(isinstance(text, str) for text in kept.values())
            and kept["colour"] in ("", *COLOURS)
        ):
            raise UserError(
                f"{path}: {name!r} must have {', '.join(Appearance._fields)}; put it back, or "
                "delete the file: names then stand in for labels"
            )
    _stored.update({name: Appearance(**kept) for name, kept in entries})
    try:
        yield
    finally:
        _stored.clear()
