"""`xrec recommend`: recommendations of a run written to a file."""

from __future__ import annotations

import pathlib

import numpy as np
import polars as pl
from etils import epath

from xrec_jax.core.errors import UserError
from xrec_jax.core.files import check_file, json_lines, remove_leftovers, write_atomic
from xrec_jax.core.logging import Progress, say
from xrec_jax.parallel.distributed import is_first
from xrec_jax.parallel.exclusive import exclusive, of_file
from xrec_jax.pipelines.session import Run

FORMATS = (".jsonl", ".parquet")


def parse_users(text: str) -> list[str] | None:
    """The `--users` flag: "all", a file with one id a line, or ids separated by commas.

    Returns:
      None for all.

    Raises:
      UserError: if nothing is given or the file is empty.
    """
    if text == "all":
        return None
    path = pathlib.Path(text)
    if path.is_file():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--users={text}: not a readable UTF-8 file ({error})") from error
        users = [line.strip() for line in lines if line.strip()]
    else:
        users = [user.strip() for user in text.split(",") if user.strip()]
    if not users:
        raise UserError(f"--users={text!r} names no user (give all, a file, or ids as a,b)")
    return list(dict.fromkeys(users))  # nobody is asked for twice


def wanted_rows(run: Run, users: str) -> np.ndarray | None:
    """Rows of the users that a `--users` flag names; None for all.

    Raises:
      UserError: see `parse_users`; or if one is not in the data.
    """
    wanted = parse_users(users)
    if wanted is None:
        return None
    try:
        return run.user_rows(wanted)
    except UserError as error:
        file = "" if "," in users else f"; --users={users}: no such file either"
        raise UserError(f"{error}{file}") from error


def check_output(output: str) -> None:
    """Raises a `UserError` unless a file of that name can be written and ends in a known format."""
    if not output:
        raise UserError("--output is missing; give a file ending in .jsonl or .parquet")
    if epath.Path(output).suffix not in FORMATS:
        raise UserError(f"--output={output}: the name must end in {' or '.join(FORMATS)}")
    check_file(output, "--output")


def recommend(
    workdir: str,
    *,
    users: str,
    top_k: int,
    output: str,
    system: str = "",
    allow_imports: bool = False,
) -> None:
    """Writes recommendations, one record an item; the file appears whole or not at all.

    Args:
      workdir: the run.
      users: see `parse_users`.
      top_k: items a user.
      output: `.jsonl` or `.parquet`.
      system: which recommender; default the best on validation.
      allow_imports: import the modules that the run's config names.
    """
    check_output(output)
    wanted = parse_users(users)
    run = Run(workdir, allow_imports=allow_imports)
    wanted_rows(run, users)  # a wrong id is found before the output's folder is made
    total = run.data.dataset.num_users if wanted is None else len(wanted)
    bar = Progress("recommend", total, unit="user", enabled=is_first())
    written = 0

    def records():
        nonlocal written
        for record in run.iter_recommend(wanted, top_k=top_k, system=system):
            written += 1
            if record["rank"] == 1:
                bar.advance()
            yield record

    def write(path: str) -> None:
        if output.endswith(".parquet"):
            pl.DataFrame(records()).write_parquet(path)
            return
        with epath.Path(path).open("wb") as file:
            for record in records():
                file.write(json_lines([record]).encode())

    with exclusive(of_file(output)):
        if is_first():
            remove_leftovers(output)
            write_atomic(output, write)
            bar.close()
            say(f"{written:,} recommendations for {total:,} users written to {output}")
        else:  # every process takes part in the computation
            for _ in records():
                pass
