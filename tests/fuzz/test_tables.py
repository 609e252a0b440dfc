"""Damaged tables: atomic files, of events and items."""

import pytest

from tests.fuzz.mutate import survives
from xrec_jax.data.load import load

pytestmark = pytest.mark.slow

INTER = (
    "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    'ann\ta\t3.5\t1700000000000000001\nben\tb"\t4\t5\nann\tb\t1\t8\n'
)
ITEM_COLUMNS = "item_id:token\ttitle:token_seq\tyear:float\tv:float_seq\n"
ITEM = ITEM_COLUMNS + 'a\tThe A\t2001\t1 2\nb"\tB\t\t\nb\tB\t1\t3\n'


def whole(dataset):
    """What was read is consistent with itself."""
    events = dataset.interactions
    assert len(events) and len(events.user) == len(events.item)
    assert events.user.max() < len(dataset.user_ids) and events.item.max() < len(dataset.item_ids)
    assert len(set(dataset.user_ids)) == len(dataset.user_ids)
    if dataset.items is not None:
        assert len(dataset.items) == len(dataset.item_ids)


@pytest.mark.parametrize("seed", range(2))
def test_atomic_events(tmp_path, seed):
    survives(
        lambda path: load({"format": "atomic", "path": str(path.parent)}),
        INTER.encode(),
        tmp_path / "d.inter",
        seed=seed,
        check=whole,
    )


def test_atomic_items(tmp_path):
    (tmp_path / "d.inter").write_text(INTER)
    survives(
        lambda path: load({"format": "atomic", "path": str(path.parent)}),
        ITEM.encode(),
        tmp_path / "d.item",
        check=whole,
    )
