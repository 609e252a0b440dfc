"""Files of named arrays (`.npz`), written atomically and read without unpickling."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.storage import files


def write_npz(path: epath.PathLike, arrays: Mapping[str, npt.ArrayLike]) -> None:
    """Writes arrays by name, compressed; the same arrays always give the same bytes."""

    def write(temporary: str) -> None:
        with epath.Path(temporary).open("wb") as file:
            np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]

    files.write_atomic(path, write)


def read_npz(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads all arrays of a file; nothing in it is executed.

    Raises:
      UserError: if it is missing or damaged; names the file.
    """
    try:
        with epath.Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # a damaged archive fails in any of a dozen ways
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{path} is damaged: no arrays can be read from it ({reason}); put it back, or delete "
            "it and run the stage again"
        ) from error
