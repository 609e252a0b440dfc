"""`xrec recommend`: writes the recommendations of a run to a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import polars as pl
from etils import epath

from xrec_jax.api import Run
from xrec_jax.core import outputs
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import Progress, log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.files import json_lines, remove_leftovers, text_lines, write_atomic
from xrec_jax.inference.recommendations import Record
from xrec_jax.parallel.exclusive import exclusive, of_file

FORMATS = (".jsonl", ".parquet")
# Columns of a Parquet file: the same types even where it has no rows.
SCHEMA = pl.Schema(
    {
        "user": pl.String,
        "rank": pl.Int64,
        "item": pl.String,
        "score": pl.Float64,
        "system": pl.String,
    }
)


class ListedUser(NamedTuple):
    """An entry of the `--users` flag.

    Attributes:
      source: the flag, or the file and line, for error messages.
      text: the id, possibly with blanks around it.
    """

    source: str
    text: str


def parse_users(text: str) -> list[ListedUser] | None:
    """Parses the `--users` flag: "all", a file with one id a line, or ids separated by commas.

    A file may be gzipped, begin with a byte order mark and end its lines with CR, LF or both.

    Returns:
      The entries; None for all users.

    Raises:
      UserError: for a flag or a file without any id, or a file that is not text.
    """
    if text == "all":
        return None
    if os.path.isfile(text):  # false, not an error, for a list too long for a path
        listed = [
            ListedUser(f"--users={text}, line {number}", part)
            for number, line in text_lines(text)
            for part in line.split("\r")
            if part.strip()
        ]
    else:
        listed = [ListedUser(f"--users={text}", part) for part in text.split(",") if part.strip()]
    if not listed:
        raise UserError(f"--users={text!r} names no user (give all, a file, or ids as a,b)")
    return listed


def wanted_users(run: Run, users: str) -> list[str] | None:
    """Resolves the `--users` flag to ids of the run's data, each once.

    A blank or a comma belongs to an id where the data has such an id.

    Args:
      run: the run.
      users: value of the flag, see `parse_users`.

    Returns:
      The ids in the order of the flag; None for all users.

    Raises:
      UserError: see `parse_users`; or for an id that is not in the data.
    """
    listed = parse_users(users)
    if listed is None:
        return None
    known = dict.fromkeys(map(str, run.data.dataset.user_ids))
    if users in known and not os.path.isfile(users):  # one id with a comma in it
        return [users]
    wanted = []
    for source, text in listed:
        user = next((id_ for id_ in (text, text.strip()) if id_ in known), None)
        if user is None:
            hint = did_you_mean(text.strip(), known)
            if users.strip() == text.strip():  # it may have been meant as a file
                hint += f"; there is no such file either ({users})"
            raise UserError(f"{source}: no user {text.strip()!r} in the data{hint}")
        wanted.append(user)
    return list(dict.fromkeys(wanted))


def check_output(output: str, **reads: str) -> None:
    """Checks that the output can be written, and is none of the files that the command reads.

    Args:
      output: value of `--output`.
      **reads: values of the flags that may name files.

    Raises:
      UserError: for a missing name, an unknown format, a folder that cannot be written to, or a
        file that is read too.
    """
    if not output:
        raise UserError("--output is missing; give a file ending in .jsonl or .parquet")
    if epath.Path(output).suffix not in FORMATS:
        raise UserError(f"--output={output}: the name must end in {' or '.join(FORMATS)}")
    outputs.check_output(output, reads={f"--{flag}": [path] for flag, path in reads.items()})


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

    Raises:
      UserError: for an unknown user or system, or an output that cannot be written.
    """
    check_output(output, users=users)
    # Before the run is opened, so that a faulty list is reported at once.
    parse_users(users)
    run = Run(workdir, allow_imports=allow_imports)
    wanted = wanted_users(run, users)  # a wrong id is reported before anything is written
    total = run.data.dataset.num_users if wanted is None else len(wanted)
    bar = Progress("recommend", total, unit="user", enabled=is_primary())
    written = 0

    def records() -> Iterator[Record]:
        """Recommendations one at a time, so that millions fit into memory; counts them."""
        nonlocal written
        for record in run.iter_recommend(wanted, top_k=top_k, system=system):
            written += 1
            # The bar counts users, each of whom has one record of rank 1.
            if record["rank"] == 1:
                bar.advance()
            yield record

    def write(path: str) -> None:
        if output.endswith(".parquet"):
            pl.DataFrame(records(), schema=SCHEMA).write_parquet(path)
            return
        with epath.Path(path).open("wb") as file:
            for record in records():
                file.write(json_lines([record]).encode())

    # A second call would remove the temporary file of the first one as a leftover.
    with exclusive(of_file(output)):
        if is_primary():
            remove_leftovers(output)
            write_atomic(output, write)
            bar.close()
            log(f"{written:,} recommendations for {total:,} users written to {output}")
        else:  # scores are sharded over processes: all of them compute, the first one writes
            for _ in records():
                pass
