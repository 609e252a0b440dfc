"""LLMXRec's local attributes with SmolLM2-135M-Instruct: age, gender, occupation from ten films.

    xrec run --config=configs/llmxrec_smollm2_attributes.py --workdir=runs/smollm2_attributes

reads `../shared/data/llmxrec`; elsewhere give `--config.attributes.path=FILE`. The base comes with
`make setup`. `:tiny` needs neither.

As `configs/llmxrec_attributes.py`: users are told apart by their ten films, in any order, and two
fifths of them are held out. Nothing that states a held-out user's attributes is learned from: this
base is not trained on the published prompts.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/llmxrec"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "llmxrec_smollm2_attributes"
    config.stages = ("attributes", "report")
    config.data.format = "none"
    config.llm.path = "smollm2"
    config.llm.dtype = "auto"
    attributes = config.attributes
    attributes.source, attributes.path = "file", f"{DATA}/attributes.jsonl"
    attributes.only = ("user age", "user gender", "user occupation")
    attributes.held_out, attributes.length = 0.4, 1024
    attributes.lora.update(dict(rank=8, alpha=16.0))
    attributes.train.update(dict(batch_size=2, epochs=3, learning_rate=1e-3, warmup=0.05))
    return defaults.variant(config, arg)
