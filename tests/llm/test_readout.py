"""Log-probabilities of continuations against a plain pass over prompt and continuation."""

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.special

from tests import tiny
from xrec_jax.core.errors import UserError
from xrec_jax.llm.generation.readout import Readout
from xrec_jax.llm.language_model import LanguageModel, load_llm
from xrec_jax.llm.model.lora import Adapter, LoraConfig, init_params
from xrec_jax.parallel.mesh import use_mesh

TEXTS = ['{"sex": "woman"', '{"sex": "man", "age": 30}', "{", '{"sex": "woman, so to speak']
PROMPTS = ["who is it?", "a longer question about a place, a bar, a park. " * 3]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readout") / "model"
    return tiny.llama_directory(folder, [*TEXTS, *PROMPTS] * 4, num_layers=1)


def adapter_of(model):
    config = LoraConfig(2, 4.0, 0.0, ("q", "v", "down"))
    params = nn.unbox(init_params(config, model.config, jax.random.key(0)))
    keys = iter(jax.random.split(jax.random.key(1), 99))
    return Adapter(
        jax.tree.map(lambda x: x + 0.3 * jax.random.normal(next(keys), x.shape), params), config
    )


def naive(lm, prompt, text, name, template):
    """Sum over the tokens of an answer, one pass over the whole of it."""
    begin = lm.tokenizer.prompt(prompt, template=template)
    whole = list(lm.tokenizer.render((prompt, text), template=template).ids)
    assert whole[: len(begin)] == begin
    end = next(n for n in range(len(begin), len(whole)) if whole[n] in lm.tokenizer.eos_ids)
    logits = np.asarray(lm.logits([whole[:end]], adapter=name), np.float64)[0]
    log_probs = scipy.special.log_softmax(logits, axis=-1)
    return sum(log_probs[n - 1, whole[n]] for n in range(len(begin), end))


@pytest.mark.parametrize(("name", "template"), [(None, False), ("tuned", True)])
def test_a_readout_is_a_plain_pass(directory, name, template):
    plain = load_llm(directory)
    adapter = adapter_of(plain.model)
    lm = LanguageModel(plain.model, plain.params, plain.tokenizer, adapters={"tuned": adapter})
    readout = Readout(
        lm.model, lm.params, lm.tokenizer, adapter=adapter if name else None, template=template
    )
    for prompt in PROMPTS:
        expected = [naive(lm, prompt, text, name, template) for text in TEXTS]
        np.testing.assert_allclose(readout.open(prompt).log_probs(TEXTS), expected, rtol=2e-5)


def test_a_readout_on_a_mesh(directory):
    plain = load_llm(directory)
    expected = Readout(plain.model, plain.params, plain.tokenizer).open(PROMPTS[1])
    mesh = tiny.mesh(8, 2, 2)
    with use_mesh(mesh):
        lm = load_llm(directory, mesh=mesh, batch=4)
        found = Readout(lm.model, lm.params, lm.tokenizer).open(PROMPTS[1])
        np.testing.assert_allclose(
            found.log_probs(TEXTS[:3]), expected.log_probs(TEXTS[:3]), rtol=1e-4
        )


def test_what_is_too_long_is_refused(directory):
    lm = load_llm(directory)
    readout = Readout(lm.model, lm.params, lm.tokenizer)
    with pytest.raises(UserError, match="but the model takes 256"):
        readout.open("why? " * 300)
    with pytest.raises(UserError, match=r"a prompt and its answer have .* takes 256; shorten"):
        readout.open(PROMPTS[0]).log_probs(["yes " * 300])
