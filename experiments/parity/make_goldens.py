"""Reference results of transformers and PEFT on tiny random LLaMAs: `tests/llm/golden`.

    python -m experiments.parity.make_goldens --out=tests/llm/golden

Needs torch, transformers and PEFT (`requirements.txt`); what it writes lets `make test` compare
without them. Everything is float32 on one CPU thread from fixed seeds, weights are drawn by
NumPy, so that a second run gives the same files. `make parity` reruns it and compares.

    NAME/                 a Hugging Face checkpoint, and goldens.npz: logits of two sequences,
                          logits of a left-padded batch, 64 greedy tokens
    lora_NAME.npz         loss and gradients of an adapter; adapter after 10 steps of AdamW
    peft_adapter/         an adapter trained and saved by PEFT, and its logits in goldens.npz
    manifest.json         versions, seeds and the closest call among the greedy tokens

Each array's shape stands where it is written, [in brackets].
"""

from __future__ import annotations

import argparse
import copy
import json
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import peft
import torch
import transformers

from experiments.parity.checkpoints import CHECKPOINTS, EAGER, logits_of, write_checkpoint

MAX_ROUNDING = 3e-6  # of the adapter after the steps: a thirtieth of what may differ
STEPS = 10
# torch's own defaults but for the learning rate, written out because libraries disagree on them.
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}
IGNORED = -100

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA = {
    "qv": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 5, "lora_alpha": 8, "target_modules": list(ALL)},
}
LORA_BASE = "llama3"


def batches(vocab: int, seed: int) -> dict[str, np.ndarray]:
    """Three batches of right-padded prompts and completions; labels only on the completions."""
    rng = np.random.default_rng(seed)
    count, rows, length = 3, 3, 21
    ids = rng.integers(3, vocab, (count, rows, length))
    lengths = rng.integers(length // 2, length + 1, (count, rows, 1))
    prompts = rng.integers(2, length // 2 - 2, (count, rows, 1))
    at = np.arange(length)
    mask = (at < lengths).astype(np.int64)
    labels = np.where((at >= prompts) & (mask == 1), ids, IGNORED)
    return {"ids": ids * mask, "mask": mask, "labels": labels}


def _loss(model: Any, data: dict[str, np.ndarray], step: int) -> torch.Tensor:
    single = {key: torch.from_numpy(value[step % len(value)]) for key, value in data.items()}
    return model(single["ids"], attention_mask=single["mask"], labels=single["labels"]).loss


def _adapter_weights(model: Any) -> list[tuple[Any, str]]:
    """The adapter's parameters with names such as `layers.0.self_attn.q_proj.lora_A`."""
    return [
        (weight, key.removeprefix("base_model.model.model.").removesuffix(".default.weight"))
        for key, weight in model.named_parameters()
        if ".lora_" in key
    ]


def _factors(model: Any, *, grad: bool = False) -> dict[str, np.ndarray]:
    """Copies of the adapter's parameters, or of their gradients."""
    return {
        key: (weight.grad if grad else weight).detach().numpy().copy()
        for weight, key in _adapter_weights(model)
    }


def _train(model: Any, start: dict[str, np.ndarray], data: Any) -> list[float]:
    """Ten steps of AdamW from the adapter `start` and B = 0; returns the losses."""
    with torch.no_grad():
        for weight, key in _adapter_weights(model):
            weight.copy_(torch.from_numpy(start[key])) if "lora_A" in key else weight.zero_()
    optimizer = torch.optim.AdamW([weight for weight, _ in _adapter_weights(model)], **ADAMW)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = _loss(model, data, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def write_lora(name: str, base: pathlib.Path, out: pathlib.Path, seed: int) -> tuple[Any, int]:
    """Writes an adapter's loss, gradients and ten steps; returns the trained PEFT model and seed.

    The gradients are taken at a random B (at B = 0 those of A vanish), the steps start at PEFT's
    own start, B = 0. AdamW divides by the gradient's size, so where that nearly vanishes rounding
    decides the step: tries seeds until float64 takes the same ones.
    """
    while True:
        model = transformers.LlamaForCausalLM.from_pretrained(base, **EAGER)
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA[name], task_type="CAUSAL_LM"))
        model.train()  # no dropout anywhere
        data = batches(model.config.vocab_size, seed)
        start = _factors(model)
        wide = copy.deepcopy(model).double()
        losses = _train(model, start, data)
        _train(wide, start, data)
        end, other = _factors(model), _factors(wide)
        if max(np.abs(end[key] - other[key]).max() for key in end) < MAX_ROUNDING:
            break
        seed += 1000
    arrays: dict[str, Any] = dict(data)  # ids, mask, labels: [3, rows, length]

    point = copy.deepcopy(model)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for weight, key in _adapter_weights(point):
            drawn = 0.1 * rng.standard_normal(tuple(weight.shape), dtype=np.float32)
            weight.copy_(torch.from_numpy(start[key] if "lora_A" in key else drawn))
    loss = _loss(point, data, 0)
    point.zero_grad()
    loss.backward()

    arrays |= {"loss": loss.item(), "step_losses": np.array(losses, np.float32)}  # [], [10]
    # lora_A: [rank, in]; lora_B: [out, rank]
    arrays |= {f"start/{key}": value for key, value in start.items() if "lora_A" in key}
    arrays |= {f"point/{key}": value for key, value in _factors(point).items() if "lora_B" in key}
    arrays |= {f"gradient/{key}": value for key, value in _factors(point, grad=True).items()}
    arrays |= {f"end/{key}": value for key, value in end.items()}
    np.savez_compressed(out / f"lora_{name}.npz", **arrays)
    return model.eval(), seed


def write_peft_adapter(model: Any, out: pathlib.Path) -> None:
    """Saves a trained adapter as PEFT does, and the logits it gives on its first batch."""
    model.peft_config["default"].base_model_name_or_path = LORA_BASE
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, save_embedding_layers=False)
        config = json.loads(pathlib.Path(scratch, "adapter_config.json").read_text())
        config["target_modules"].sort()  # a set: its order changes from run to run
        out.mkdir(parents=True, exist_ok=True)
        (out / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        # The third file is a model card.
        shutil.copy(pathlib.Path(scratch, "adapter_model.safetensors"), out)
    ids = batches(model.config.vocab_size, seed=99)["ids"][0]
    np.savez_compressed(out / "goldens.npz", ids=ids, logits=logits_of(model, ids))


def write_all(out: pathlib.Path, *, seed: int = 0) -> dict[str, Any]:
    """Writes everything below `out`, which may exist; returns the manifest."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    manifest: dict[str, Any] = {
        package.__name__: package.__version__.split("+")[0]
        for package in (torch, transformers, peft)
    }
    manifest |= {"adamw": ADAMW, "lora": LORA, "lora_base": LORA_BASE}
    for index, name in enumerate(CHECKPOINTS):
        folder = out / name
        shutil.rmtree(folder, ignore_errors=True)
        manifest[name] = write_checkpoint(name, folder, seed * 10 + index)
    for index, name in enumerate(LORA):
        tuned, used = write_lora(name, out / LORA_BASE, out, seed * 10 + index)
        manifest[f"lora_{name}"] = {"seed": used}
    write_peft_adapter(tuned, out / "peft_adapter")
    (out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def main() -> None:
    """Writes the goldens and prints what was written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("tests/llm/golden"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(write_all(args.out, seed=args.seed), indent=2))
    files = [path for path in sorted(args.out.rglob("*")) if path.is_file()]
    for path in files:
        print(f"{path.stat().st_size:>9,} {path}")
    print(f"{sum(path.stat().st_size for path in files):>9,} in all")


if __name__ == "__main__":
    main()
