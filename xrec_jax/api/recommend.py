"""`xrec recommend`: recommendations of a run written to a file."""

from __future__ import annotations

import os
from typing import NamedTuple

import polars as pl
from etils import epath

from xrec_jax.api import Run
from xrec_jax.core import outputs
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import Progress, log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage.files import json_lines, remove_leftovers, text_lines, write_atomic
from xrec_jax.parallel.exclusive import exclusive, of_file

FORMATS = (".jsonl", ".parquet")
# Columns of a Parquet file, of one without a row too.
SCHEMA = pl.Schema(
    {
        "user": pl.String,
        "rank": pl.Int64,
        "item": pl.String,
        "score": pl.Float64,
        "system": pl.String,
    }
)


class Listed(NamedTuple):
    """An entry of a list of users: where it stands, and the id with blanks around it, if any."""

    place: str
    text: str


def parse_users(text: str) -> list[Listed] | None:
    """The `--users` flag: "all", a file with one id a line, or ids separated by commas.

    A file may be gzipped, begin with a byte order mark and end its lines with CR, LF or both.

    Returns:
      None for all.

    Raises:
      UserError: if nothing is given, or the file is empty or not text.
    """
    if text == "all":
        return None
    if os.path.isfile(text):  # false, not an error, for a list too long for a path
        found = [
            Listed(f"--users={text}, line {number}", part)
            for number, line in text_lines(text)
            for part in line.split("\r")
            if part.strip()
        ]
    else:
        found = [Listed(f"--users={text}", part) for part in text.split(",") if part.strip()]
    if not found:
        raise UserError(f"--users={text!r} names no user (give all, a file, or ids as a,b)")
    return found


def wanted_users(run: Run, users: str) -> list[str] | None:
    """Ids of the users that a `--users` flag names, each once; None for all.

    A blank or a comma belongs to an id where the data has it so.

    Raises:
      UserError: see `parse_users`; or if one is not in the data.
    """
    listed = parse_users(users)
    if listed is None:
        return None
    known = dict.fromkeys(map(str, run.data.dataset.user_ids))
    if users in known and not os.path.isfile(users):
        return [users]
    found = []
    for place, text in listed:
        name = next((one for one in (text, text.strip()) if one in known), None)
        if name is None:
            hint = did_you_mean(text.strip(), known)
            if users.strip() == text.strip():  # it may have been meant as a file
                hint += f"; there is no such file either ({users})"
            raise UserError(f"{place}: no user {text.strip()!r} in the data{hint}")
        found.append(name)
    return list(dict.fromkeys(found))  # nobody is asked for twice


def check_output(output: str, **reads: str) -> None:
    """Raises a `UserError` unless a file of that name can be written and ends in a known format.

    Args:
      output: the file.
      **reads: flags and the files that they may name, which must be others.
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
    """
    check_output(output, users=users)
    parse_users(users)
    run = Run(workdir, allow_imports=allow_imports)
    wanted = wanted_users(run, users)  # a wrong id is found before the output's folder is made
    total = run.data.dataset.num_users if wanted is None else len(wanted)
    bar = Progress("recommend", total, unit="user", enabled=is_primary())
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
            pl.DataFrame(records(), schema=SCHEMA).write_parquet(path)
            return
        with epath.Path(path).open("wb") as file:
            for record in records():
                file.write(json_lines([record]).encode())

    with exclusive(of_file(output)):
        if is_primary():
            remove_leftovers(output)
            write_atomic(output, write)
            bar.close()
            log(f"{written:,} recommendations for {total:,} users written to {output}")
        else:  # every process takes part in the computation
            for _ in records():
                pass
