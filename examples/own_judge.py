"""Compares the explanations of two runs by a judge of your own.

    python examples/own_judge.py --workdir=runs/example --workdir=runs/other

The command line takes the same function by name, with this folder in PYTHONPATH:

    xrec compare --workdir=runs/example --workdir=runs/other --judge=own_judge:longer
"""

import argparse
from collections.abc import Sequence

from xrec_jax.api.compare import compare


def longer(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Probability that the first explanation of each prompt is better: the longer, the better.

    A judge is asked about every pair in both orders. One that has a language model reads `prompts`
    as well; this one is the baseline that it has to beat.
    """
    return [len(a) / (len(a) + len(b)) for a, b in zip(first, second, strict=True)]


def main(workdirs: Sequence[str]) -> None:
    """Prints the win ratio of every explainer of the runs with its interval."""
    result = compare(workdirs, judge=longer)
    for system, figures in result["explanations"]["figures"].items():
        print(system, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", action="append", required=True)
    main(parser.parse_args().workdir)
