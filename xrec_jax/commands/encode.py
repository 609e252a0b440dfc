"""`xrec encode`: vectors of items from their texts, for recommenders with a content tower."""

from __future__ import annotations

from absl.flags import FlagValues

from xrec_jax.commands.verb import Verb, integer, required, text


def _encode(values: FlagValues) -> int:
    required(values, "items", "output", "base")
    from xrec_jax.api import encode

    encode.encode(
        str(values["items"].value),  # `FlagValues.items` is a method
        values.output,
        base=values.base,
        id_column=values.id,
        text=values.text,
        layer=values.layer,
        max_tokens=values.max_tokens,
        batch=values.batch,
        dtype=values.dtype,
    )
    return 0


ENCODE = Verb(
    name="encode",
    summary="encode the texts of items with a frozen language model",
    flags=(
        text("items", "table of items, CSV or Parquet"),
        text("output", "F.parquet with an id and a vector an item, for data.item_vectors"),
        text("base", "Hugging Face directory, GGUF file, import, ORG/NAME of the hub or smollm2"),
        text("id", "column of ids; default: the names that data.columns.item stands for"),
        text("text", "such as '{name}, {category}'; default: all columns with their names"),
        text("layer", "hidden states to average: last or embedding", "last"),
        integer("max_tokens", 128, "longer texts are cut"),
        integer("batch", 64, "texts at a time"),
        text("dtype", "float32, bfloat16 or auto", "auto"),
    ),
    run=_encode,
)
