"""Times RecBole, a PyTorch recommendation library, on one model and one data set.

The script runs in an environment of RecBole's own and imports nothing of this project, so that
neither library weighs on the other. What RecBole 1.2.1 needs to start beside current NumPy, SciPy
and torch is patched at run time; its installed files stay as they are.

    python3.11 -m venv /tmp/recbole_env
    /tmp/recbole_env/bin/pip install torch==2.13.0 numpy scipy "pandas<3" scikit-learn pyyaml \
        tqdm colorlog colorama texttable psutil
    /tmp/recbole_env/bin/pip install --no-deps recbole==1.2.1
    OMP_NUM_THREADS=1 taskset -c 1 /tmp/recbole_env/bin/python recbole_peer.py --model=BPR \
        --data=DIR_OF_ATOMIC_FILES --dataset=ml-100k --learning-rate=5e-3 --output=bpr.json

Protocol: the last event of a user is the test, the one before it the validation; every item of the
catalogue is ranked. The clock runs over training and validation; set-up, the copy of the best
weights and the extra masked measures of SASRec are off it.
"""

import argparse
import copy
import ctypes
import importlib.metadata
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def patch_environment() -> None:
    """Gives current NumPy, SciPy and torch back the names that RecBole 1.2.1 imports or calls."""
    from scipy import sparse

    for name, kind in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        if not hasattr(np, name):
            setattr(np, name, kind)
    if not hasattr(np, "float"):
        np.float = np.float64  # type: ignore[attr-defined]  # also read before RecBole's own aliases exist.
    if not hasattr(sparse.dok_matrix, "_update"):
        sparse.dok_matrix._update = lambda matrix, entries: matrix._dict.update(entries)
    # The trainer opens a TensorBoard writer that nothing here reads: an empty one will do.
    board = types.ModuleType("torch.utils.tensorboard")
    writer = type("SummaryWriter", (), {"__init__": lambda self, *args, **kw: None})
    board.SummaryWriter = writer  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"] = board
    warnings.filterwarnings("ignore", module=r"recbole\.")


def keep_memory() -> bool:
    """Tells glibc to reuse freed memory instead of handing large blocks back to the kernel.

    A step of SASRec allocates gigabytes in large blocks; without this the kernel maps and clears
    them anew each time, which costs SASRec some 40 % of its time.

    Returns:
        Whether the C library took both options.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: 0)
    return bool(mallopt(-4, 0) and mallopt(-1, -1))  # M_MMAP_MAX: none; M_TRIM_THRESHOLD: never.


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Builds the part of RecBole's configuration that departs from its defaults."""
    chosen = {
        "gpu_id": "",
        "seed": args.seed,
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
        "metrics": ["Recall", "Hit", "NDCG", "MRR"],
        "topk": [5, 10, 20],
        "valid_metric": "NDCG@10",
        "metric_decimal_place": 8,
        "train_batch_size": 2048,
        "learning_rate": args.learning_rate,
        "epochs": args.epochs,
    }
    if args.model == "SASRec":
        chosen |= {"MAX_ITEM_LIST_LENGTH": args.max_length, "train_neg_sample_args": None}
        chosen |= {"loss_type": "CE", "hidden_size": 64, "repeatable": True}
    else:
        chosen |= {"embedding_size": 64}
    return chosen


def seconds(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[float, Any]:
    """Calls a function and returns the wall seconds it took, then its result."""
    start = time.perf_counter()
    result = call(*args, **options)
    return time.perf_counter() - start, result


def peak_rss() -> float:
    """Returns the largest resident memory of this process so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@torch.no_grad()
def masked_metrics(trainer: Any, batches: Iterable, hidden: torch.Tensor) -> dict[str, float]:
    """Measures a sequential model with the items a user has already seen left out of the ranking.

    Args:
        trainer: RecBole's trainer, which holds the model.
        batches: the evaluation batches, each with one target a row.
        hidden: users by items, true where an item is left out.

    Returns:
        NDCG@10 and Hit@10.
    """
    trainer.model.eval()
    ranks = []
    for batch in batches:
        interaction, scores, _, target = trainer._full_sort_batch_eval(batch)
        above = scores > scores.gather(1, target[:, None])
        ranks.append((above & ~hidden[interaction["user_id"]]).sum(1))
    rank = torch.cat(ranks).double()
    gain = torch.where(rank < 10, 1 / torch.log2(rank + 2), 0.0)
    return {"ndcg@10": gain.mean().item(), "hit@10": (rank < 10).double().mean().item()}


def forget_tables(model: Any) -> None:
    """Drops the propagated embeddings that LightGCN keeps, so that ranking makes them anew."""
    for name in ("restore_user_e", "restore_item_e"):
        if hasattr(model, name):
            setattr(model, name, None)


@torch.no_grad()
def rank_prepared(trainer: Any, batches: list) -> None:
    """Scores and takes the top 20 of batches that are already collated: RecBole's inner part."""
    for batch in batches:
        torch.topk(trainer._full_sort_batch_eval(batch)[1], 20, dim=-1)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Trains, validates, ranks and tests one model.

    Args:
        args: The command line.

    Returns:
        The record that is written as JSON.
    """
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    imported, start = peak_rss(), time.perf_counter()
    config = Config(model=args.model, dataset=args.dataset, config_dict=settings(args))
    config["data_path"] = args.data  # RecBole would look in its own package for some data sets.
    init_seed(args.seed, True)
    dataset = create_dataset(config)
    users, items = dataset.user_num, dataset.item_num
    pairs = torch.from_numpy(dataset.inter_feat[["user_id", "item_id"]].to_numpy(copy=True))
    # General models count an evaluation batch in scores, sequential ones in rows.
    sequential = args.model == "SASRec"
    config["eval_batch_size"] = args.eval_users * (1 if sequential else items)
    train, valid, test = data_preparation(config, dataset)
    init_seed(args.seed, True)
    model = get_model(args.model)(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], args.model)(config, model)
    anomaly_found = torch.is_anomaly_enabled()
    torch.autograd.set_detect_anomaly(False)  # Left on by the import of a sequential model.
    hidden = {}
    if sequential:
        mask = torch.zeros(users, items, dtype=torch.bool)
        mask[pairs[:, 0], pairs[:, 1]] = True
        for loader in (test, valid):  # The validation ranking hides neither of the two targets.
            for interaction, _, _, target in loader:
                mask[interaction["user_id"], target] = False
            hidden[loader] = mask.clone()
    set_up = time.perf_counter() - start

    # Its `fit` would not time training and validation apart, so that its epochs are called here.
    examples, clock, epochs = len(train._dataset), 0.0, []
    best: dict[str, Any] = {"valid_ndcg@10": -1.0}
    best_weights, stopped_by = None, "epochs"
    for epoch in range(1, args.epochs + 1):
        train_seconds, loss = seconds(trainer._train_epoch, train, epoch)
        valid_seconds, (score, _) = seconds(trainer._valid_epoch, valid)
        clock += train_seconds + valid_seconds
        row = {"epoch": epoch, "train_seconds": train_seconds, "valid_seconds": valid_seconds}
        row |= {"clock_seconds": clock, "loss": loss, "valid_ndcg@10": score}
        if sequential:
            masked = masked_metrics(trainer, valid, hidden[valid])
            row["valid_ndcg@10_masked"] = masked["ndcg@10"]
        epochs.append(row)
        if score > best["valid_ndcg@10"]:
            best, best_weights = row, copy.deepcopy(model.state_dict())
        print(json.dumps({k: round(v, 4) for k, v in row.items()}), file=sys.stderr, flush=True)
        if epoch - best["epoch"] >= args.patience > 0:
            stopped_by = "patience"
            break
        if clock >= args.time_limit:
            stopped_by = "time"
            break
    peak = peak_rss()

    # Ranking is timed with the weights of the best epoch, in three ways that are ours, too.
    model.load_state_dict(best_weights)
    forget_tables(model)
    tested = dict(trainer.evaluate(test, load_best_model=False))
    ready, repeats = list(test), range(args.ranking_passes)

    def evaluated() -> None:
        forget_tables(model)  # As in the first evaluation of a model's weights.
        trainer.evaluate(test, load_best_model=False)

    def prepared() -> None:
        forget_tables(model)
        rank_prepared(trainer, ready)

    passes = [seconds(evaluated)[0] for _ in repeats]
    inner = [seconds(prepared)[0] for _ in repeats]
    tables_ready = [seconds(rank_prepared, trainer, ready)[0] for _ in repeats]
    middle = statistics.median(row["train_seconds"] for row in epochs)
    packages = ("recbole", "torch", "numpy", "scipy", "pandas")
    record = {
        "peer": "RecBole",
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "arguments": vars(args),
        "users": test.sample_size,
        "items": items - 1,
        "train_examples": examples,
        "torch_threads": torch.get_num_threads(),
        "anomaly_detection_left_on_by_imports": anomaly_found,
        "setup_seconds": set_up,
        "train_seconds_per_epoch": middle,
        "train_examples_per_s": examples / middle,
        "best_epoch": best["epoch"],
        "stopped_by": stopped_by,
        "best_valid_ndcg@10": best["valid_ndcg@10"],
        "seconds_to_best": best["clock_seconds"],
        "ranking_users_per_s": test.sample_size / statistics.median(passes),
        "ranking_users_per_s_prepared": test.sample_size / statistics.median(inner),
        "ranking_users_per_s_tables_ready": test.sample_size / statistics.median(tables_ready),
        "peak_rss_mib": peak,
        "peak_rss_mib_after_imports": imported,
        "test_ndcg@10": tested["ndcg@10"],
        "test_hit@10": tested["hit@10"],
        "test": tested,
    }
    if sequential:
        record["test_masked"] = masked_metrics(trainer, test, hidden[test])
        record["best_valid_ndcg@10_masked"] = max(r["valid_ndcg@10_masked"] for r in epochs)
    return record | {"epochs": epochs}


def main() -> None:
    """Reads the command line, runs in a temporary directory and writes the record."""
    parser = argparse.ArgumentParser(description="Times RecBole on one model and one data set.")
    parser.add_argument("--model", choices=("BPR", "LightGCN", "SASRec"), required=True)
    parser.add_argument("--data", type=lambda p: str(Path(p).resolve()), required=True)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--output", type=lambda p: str(Path(p).resolve()), required=True)
    for name, value, meaning in (
        ("--seed", 0, "seed of the weights, the order and the negatives"),
        ("--epochs", 100, "epochs at most"),
        ("--time-limit", 86400.0, "clock seconds after which no epoch starts"),
        ("--patience", 0, "epochs without a better validation before the end; 0: never"),
        ("--learning-rate", 1e-3, "learning rate of Adam"),
        ("--max-length", 20, "history length of SASRec"),
        ("--eval-users", 256, "users an evaluation batch"),
        ("--ranking-passes", 7, "timed evaluation passes"),
    ):
        parser.add_argument(name, type=type(value), default=value, help=meaning)
    parser.add_argument("--stock-malloc", action="store_true", help="leave glibc's allocator alone")
    args = parser.parse_args()
    if not Path(args.data, f"{args.dataset}.inter").is_file():
        parser.error(f"no {args.dataset}.inter in {args.data}")
    sys.argv = sys.argv[:1]  # RecBole's configuration reads the command line by itself.
    patch_environment()
    kept = not args.stock_malloc and keep_memory()
    with tempfile.TemporaryDirectory() as folder:  # RecBole writes saved/ and log/ where it runs.
        os.chdir(folder)
        record = run(args) | {"memory_kept": kept}
        os.chdir("/")
    Path(args.output).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
