"""A judge of your own as a stage: it compares the explanations of a run.

    python examples/own_judge.py --workdir=runs/judged

Two finished runs are compared by a plain function, with this folder in PYTHONPATH:

    xrec compare --workdir=runs/example --workdir=runs/other --judge=own_judge:prefer_longer
"""

import argparse
import json
import pathlib
from collections.abc import Sequence

import own_explainer

from xrec_jax import defaults
from xrec_jax.api.run import run
from xrec_jax.inference import judges


def prefer_longer(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
) -> list[float]:
    """Probability that the first text of each prompt is better: the longer, the better.

    A judge is asked about every pair in both orders. This one never reads, and is the baseline that
    one with a language model has to beat.
    """
    return [len(a) / (len(a) + len(b)) for a, b in zip(first, second, strict=True)]


@judges.register("longer", label="The longer text")
def longer(setup: judges.Setup):
    """The judge for a run; `setup` has its config, its directory and the pairs."""
    return prefer_longer


def main(workdir: str, users: int = 300, epochs: int = 5) -> None:
    """Compares the template with the explainer of `own_explainer.py`; prints both win ratios."""
    config = defaults.base()
    config.name = "judged"
    config.imports = ("own_explainer", "own_judge")  # for later commands
    config.data.world.update(num_users=users, num_items=120)
    config.recommend.bpr = defaults.system("bpr", dim=32, train=dict(epochs=epochs))
    config.stages = ("recommend", "explain", "judge", "report")
    config.explain.explainers = ("template", own_explainer.NAME)
    config.judge.source = "longer"
    run(config, workdir)

    figures = json.loads((pathlib.Path(workdir) / "evaluation.json").read_text())["judge"]
    for name in config.explain.explainers:
        ratio = figures[name]["win/ratio"]
        print(f"{name}: {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/judged")
    main(parser.parse_args().workdir)
