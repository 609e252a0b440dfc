"""What a stage was started with: it goes on with the same content, or not at all."""

from __future__ import annotations

from collections.abc import Mapping

from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files


def is_known(
    path: epath.Path, now: Mapping[str, str], *, workdir: epath.Path, started: str
) -> bool:
    """Compares what a stage is given with what it was started with.

    Args:
      path: its `identity.json`.
      now: digests by name.
      workdir: of the run.
      started: subject of messages, such as "tuning".

    Returns:
      Whether the stage was started before; else `now` is to be written to `path`.

    Raises:
      UserError: names what is another one, or the file if it is damaged.
    """
    if not path.exists():
        return False
    before = files.read_json(path)
    names = list(before) if isinstance(before, dict) else []
    if not names or not all(isinstance(before[name], str) and before[name] for name in names):
        raise UserError(
            f"{path}: damaged, it does not say what {started} was started with; put it back, or "
            "delete it if the content is the same"
        )
    for name, value in now.items():
        if before.get(name) != value:
            raise UserError(
                f"{workdir}: {started} was started with another content of the {name} "
                f"({str(before.get(name))[:12]}, now {value[:12]}; see {path}); give the same, or "
                "another --workdir"
            )
    return True
