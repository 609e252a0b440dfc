"""An explainer of your own beside the template: in files, figures and report.

    python examples/own_explainer.py --workdir=runs/last_visit

With this folder in PYTHONPATH the run's later commands know it too:

    xrec explain --workdir=runs/last_visit --explainer=last_visit --allow_imports --output=why.jsonl
"""

import argparse
import json
import pathlib
from collections.abc import Iterator, Sequence

from xrec_jax import defaults
from xrec_jax.api.run import run
from xrec_jax.inference import explainers
from xrec_jax.tasks.requests import ExplanationRequest

NAME = "last_visit"


@explainers.register(NAME, label="last visit", colour="purple")
class LastVisit(explainers.Explainer):
    """Names the place that the user visited last; a text depends on its request alone."""

    def write(
        self, requests: Sequence[ExplanationRequest]
    ) -> Iterator[tuple[int, explainers.Written]]:
        for place, request in enumerate(requests):
            pair = self.setup.builder.pair(request)  # all that a prompt is made of
            seen = pair["history"][-1]["title"] if pair["history"] else "nothing yet"
            yield place, explainers.Written(f"{pair['title']} goes well with {seen}.")


def main(workdir: str, users: int = 300, epochs: int = 5) -> None:
    """Lets both explain, and prints what each says, and how much of it is true."""
    config = defaults.base()
    config.name = "last visit"
    config.imports = ("own_explainer",)  # this file, for later commands
    config.data.world.update(num_users=users, num_items=120)
    config.recommend.bpr = defaults.system("bpr", dim=32, train=dict(epochs=epochs))
    config.stages = ("recommend", "explain", "assess", "report")
    config.explain.explainers = ("template", NAME)
    run(config, workdir)

    folder = pathlib.Path(workdir)
    assessed = json.loads((folder / "evaluation.json").read_text())["assess"]
    for name in config.explain.explainers:
        first = (folder / "explanations" / f"{name}.jsonl").read_text().splitlines()[0]
        print(f"{name}: {json.loads(first)['text']}")
        print(f"  F1 of true reasons {assessed[name]['planted/f1']['value']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default="runs/last_visit")
    main(parser.parse_args().workdir)
