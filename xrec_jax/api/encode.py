"""`xrec encode`: vectors of items from their texts, for recommenders with a content tower."""

from __future__ import annotations

import os
import pathlib
import string
from collections.abc import Sequence

import polars as pl

from xrec_jax.core import outputs
from xrec_jax.core.errors import UserError, did_you_mean
from xrec_jax.core.logging import Progress, log
from xrec_jax.core.runtime.distributed import is_primary
from xrec_jax.core.storage import files
from xrec_jax.data.readers import tables, vectors
from xrec_jax.data.readers.events import DEFAULT_COLUMNS
from xrec_jax.llm.encoder import LAYERS, TextEncoder
from xrec_jax.llm.language_model import load_llm

_BLOCK = 1024  # texts between two steps of the progress bar


def encode(
    items: str,
    output: str,
    *,
    base: str,
    id_column: str = "",
    text: str = "",
    layer: str = "last",
    max_tokens: int = 128,
    batch: int = 64,
    dtype: str = "auto",
) -> None:
    """Writes the mean hidden state of a frozen language model over the text of every item.

    An item without any text gets no row.

    Args:
      items: CSV or Parquet table of the items.
      output: Parquet file with the columns `item` and `vector`, as `data.item_vectors` wants it.
      base: path or name of the model; see `hub.resolve`.
      id_column: column of ids; "" for the default names.
      text: format string of an item's text over the columns; "" for all columns that have a value,
        as "name: value; ...".
      layer: see `llm.encoder.mean_states`.
      max_tokens: longer texts are cut.
      batch: texts at a time.
      dtype: dtype of parameters and computation.

    Raises:
      UserError: if table or model cannot be read, a column of `text` is missing, or no item has a
        text.
    """
    outputs.check_output(output, reads={"--items": [items]})
    if not output.endswith(".parquet"):
        raise UserError(f"--output={output} must end in .parquet")
    if layer not in LAYERS:
        raise UserError(f"--layer={layer!r} is not valid{did_you_mean(layer, LAYERS)}")
    if batch < 1:
        raise UserError(f"--batch={batch} must be at least 1")
    if max_tokens < 1:
        raise UserError(f"--max_tokens={max_tokens} must be at least 1")
    path = pathlib.Path(items)
    format = "parquet" if path.suffix.lower() == ".parquet" else "csv"
    names = (id_column,) if id_column else DEFAULT_COLUMNS["item"]
    table = tables.read_table(path, format, names, "--id")
    texts = item_texts(table.features, text, path)
    rows = [row for row, value in enumerate(texts) if value]
    if not rows:
        raise UserError(f"{path}: no item has a text; choose other columns with --text")

    lm = load_llm(base, dtype=dtype)
    if max_tokens > lm.model.config.max_positions:
        raise UserError(
            f"--max_tokens={max_tokens}, but {base} takes {lm.model.config.max_positions}"
        )
    whole = lm.tokenizer.encode_batch(texts, bos=False)
    tokens = [ids[:max_tokens] for ids in whole]
    cut = sum(len(ids) > max_tokens for ids in whole)
    encoder = TextEncoder(lm.model, lm.params, batch=batch, layer=layer)
    progress = Progress("encode", len(rows), unit="item", enabled=is_primary())
    blocks = []
    # By length, so that a block has few widths.
    order = sorted(rows, key=lambda row: len(tokens[row]))
    for first in range(0, len(order), _BLOCK):
        chosen = order[first : first + _BLOCK]
        encoding, _ = encoder([tokens[row] for row in chosen])
        blocks.append(pl.DataFrame({"row": chosen, vectors.COLUMN: encoding}))
        progress.advance(len(chosen))
    progress.close()
    frame = pl.concat(blocks).sort("row")
    frame = pl.DataFrame({"item": table.ids.gather(frame["row"])}).with_columns(
        frame[vectors.COLUMN].cast(pl.List(pl.Float32))
    )
    if is_primary():
        files.write_atomic(output, frame.write_parquet)
        without = len(texts) - len(rows)
        log(
            f"{len(rows):,} vectors of {encoder.width} features written to {output}"
            + f"; {without:,} items have no text" * bool(without)
            + f"; {cut:,} texts cut to {max_tokens} tokens" * bool(cut)
        )


def item_texts(columns: pl.DataFrame, text: str, path: os.PathLike[str]) -> list[str]:
    """Texts of the rows of a table, "" for a row without any value.

    Args:
      columns: the table without its ids.
      text: see `encode`.
      path: of the table, for messages.

    Raises:
      UserError: if `text` is no format string over the columns.
    """
    wanted = _fields(text, columns.columns, path) if text else columns.columns
    out = []
    for values in columns.select(wanted).iter_rows():
        shown = ["" if value is None else str(value).strip() for value in values]
        if not any(shown):
            out.append("")
        elif text:
            known = dict(zip(wanted, shown, strict=True))
            # Not `str.format`, which would read a column "geo.lat" as an attribute of "geo".
            pieces = string.Formatter().parse(text)
            filled = "".join(part + ("" if f is None else known[f]) for part, f, _, _ in pieces)
            # Without what stood between a missing value and its neighbour, as in ", a park".
            out.append(filled.strip(" ,;:|-"))
        else:
            pairs = zip(wanted, shown, strict=True)
            out.append("; ".join(f"{name}: {value}" for name, value in pairs if value))
    return out


def _fields(text: str, names: Sequence[str], path: os.PathLike[str]) -> list[str]:
    """Columns that a format string names."""
    try:
        parts = list(string.Formatter().parse(text))
    except ValueError as error:
        raise UserError(f"--text={text!r} is no format string ({error})") from None
    fields = list(dict.fromkeys(field for _, field, _, _ in parts if field is not None))
    if not fields or any(spec or conversion for _, _, spec, conversion in parts):
        raise UserError(f"--text={text!r} must name columns, plainly: '{{name}}, {{category}}'")
    for field in fields:
        if field not in names:
            raise UserError(f"{path}: no column {field!r} (--text){did_you_mean(field, names)}")
    return fields
