"""LLMXRec's instruction set on a real language model: SmolLM2-135M-Instruct, tuned with LoRA.

    xrec run --config=configs/llmxrec_smollm2.py --workdir=runs/llmxrec_smollm2

reads `../shared/data/llmxrec`; elsewhere give `--config.instruct.path=FILE`. The base comes with
`make setup`. `:tiny` needs neither: a world instead of the data, and a small LLaMA from nothing.

Of the 240 explanations 216 are tuned on and 24 held out, the same 24 as in
`configs/llmxrec_small.py`. An example has 540 tokens on average and 726 at most, its answer 79 and
119: rows of 1,408 tokens are 93 % full (1,024: 81 %), and one is read at a time for memory's sake.
`evaluation.json` has perplexity, length, completeness and grounding of the answers of base and
tuned model, beside the grounding of the human-checked answers (`reference`), and for each data set
the share that names its title: the reference paraphrases headlines, too. The report shows them
and the first answers.

20 minutes on two CPU cores with AVX512-BF16. Held-out perplexity 5.2 (base 15.1); all tuned answers
are within 75 words and end (base 29 %), 71 % name the recommended title (base 50 %, human-checked
83 %): all of films and games, 1 of 8 of news.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/llmxrec"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "llmxrec_smollm2"
    config.stages = ("instruct", "report")
    config.data.format = "none"
    config.llm.path = "smollm2"
    config.llm.dtype = "auto"
    config.llm.generation_batch = 24
    instruct = config.instruct
    instruct.source, instruct.path = "file", f"{DATA}/instructions.jsonl"
    instruct.examples, instruct.stratify = 0, "dataset"
    instruct.length = 1408
    instruct.lora.update(dict(rank=8, alpha=16.0, dropout=0.05))
    instruct.train.update(
        dict(batch_size=2, accumulation=2, epochs=2, learning_rate=1e-3, warmup=0.05, log_every=5)
    )
    return defaults.variant(config, arg)
