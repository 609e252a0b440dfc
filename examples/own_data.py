"""Trains on a CSV file with columns of your own names.

    python examples/own_data.py --workdir=runs/own_data

writes a small shop's purchases first; put your own file and columns in its place.
"""

import argparse
import csv
import pathlib
import random

import xrec_jax
from xrec_jax import defaults
from xrec_jax.api.run import run


def write_purchases(folder: pathlib.Path, customers: int) -> None:
    """Writes `purchases.csv` and `products.csv`: each customer buys from one of four shelves."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "products.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["sku", "label", "shelf"])
        rows.writerows([f"s{i}", f"Product {i}", f"shelf {i % 4}"] for i in range(60))
    with (folder / "purchases.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "sku", "bought_at"])
        for customer in range(customers):
            for day, k in enumerate(draw.sample(range(15), 8)):
                sku = f"s{4 * k + customer % 4}"
                rows.writerow([f"c{customer}", sku, f"2024-03-{day + 1:02}T12:00:00"])


def main(workdir: str, customers: int = 200, epochs: int = 20) -> None:
    """Writes the files, trains on them, and prints what a customer may buy next."""
    folder = pathlib.Path(workdir).with_name("purchases")
    write_purchases(folder, customers)

    config = defaults.base()
    config.name = "purchases"
    config.data.format = "csv"
    config.data.path = str(folder / "purchases.csv")
    config.data.items = str(folder / "products.csv")
    config.data.columns.update(user="customer", item="sku", timestamp="bought_at", title="label")
    config.data.filters.user_core = 3  # customers with fewer purchases are left out
    config.data.split.kind = "leave_one_out"
    config.recommend.bpr = defaults.system(
        "bpr", dim=16, train=dict(batch_size=128, epochs=epochs, learning_rate=0.02)
    )
    config.stages = ("recommend",)
    run(config, workdir)

    for record in xrec_jax.restore(workdir).recommend(["c0"], top_k=3):
        print(record["rank"], record["item"], round(record["score"], 3))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/own_data")
    main(parser.parse_args().workdir)
