"""Titles of items and their column in the item table."""

from __future__ import annotations

import numpy as np

from xrec_jax.data.dataset import Dataset
from xrec_jax.data.readers import tables
from xrec_jax.text.prompts.layout import text_value


def title_column(dataset: Dataset) -> str | None:
    """Column of the item table with the titles, if there is one."""
    if dataset.title is not None or dataset.items is None:
        return dataset.title
    return tables.title_column(dataset.items.columns)


def titles(dataset: Dataset) -> np.ndarray:
    """Title of every item as in prompts, `[num_items]`; the id of an item without one."""
    table, column = dataset.items, title_column(dataset)
    if table is None or column is None:
        return dataset.item_ids
    cells = table[column].to_list()
    names = [text_value({column: cell}, column, joiner=" ") for cell in cells]
    return np.array(
        [id_ if name is None else name for name, id_ in zip(names, dataset.item_ids, strict=True)]
    )
