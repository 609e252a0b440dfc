"""Joint training with a reward of your own: short explanations.

    python examples/own_reward.py --workdir=runs/brief

A smoke test: the language model is far too small to write sense, and two rounds teach it nothing.
For a real run start from `configs/recpie_world.py` instead of its `:tiny`.
"""

import argparse
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from xrec_jax.api.run import run
from xrec_jax.joint import rewards

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "recpie_world.py"


@rewards.register("brief", limit=30)
def brief(scored: rewards.Scored, limit: int) -> jax.Array:
    """-1 for an explanation of more than `limit` tokens, else 0; `[rollouts]`."""
    return -(scored.need("length") > limit).astype(jnp.float32)


def tiny() -> ConfigDict:
    """`configs/recpie_world.py:tiny` with the reward beside the gain in log-probability."""
    spec = importlib.util.spec_from_file_location("recpie_world", CONFIG)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config("tiny")
    config.imports = ("own_reward",)  # this file, for later commands
    config.joint.rewards.brief = ConfigDict(dict(weight=0.1, limit=10))
    return config


def main(workdir: str, config: ConfigDict | None = None) -> None:
    """Trains, and prints each round's mean of the reward."""
    config = config or tiny()
    run(config, workdir)
    rounds = pathlib.Path(workdir) / "joint" / str(config.seeds[0]) / "rounds.jsonl"
    for line in rounds.read_text().splitlines():
        record = json.loads(line)
        print({key: value for key, value in record.items() if "brief" in key or key == "round"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/brief")
    main(parser.parse_args().workdir)
