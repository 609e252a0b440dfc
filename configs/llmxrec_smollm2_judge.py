"""A fair judge on LLMXRec's own judgements with SmolLM2-135M-Instruct as the discriminator.

    xrec run --config=configs/llmxrec_smollm2_judge.py --workdir=runs/llmxrec_smollm2_judge

needs `../shared/data/llmxrec`; elsewhere give `--config.judge.path=FILE` and
`--config.judge.explanations=PROMPTS+EXPLANATIONS,`. The base comes with `make setup`. `:tiny` needs
neither.

As `configs/llmxrec_judge.py`: the 1,440 judgements are split by prompt and learned in both orders;
18 blocks of 80 rows are the pairs of systems, known to the pair-identity baseline only. The
published explanations of five systems are compared on 150 drawn prompts, 50 a data set, of those
that the judge has not learned from. A prompt is cut to 256 tokens (its oldest history entries go):
a judgement then has 482 tokens on average and 625 at most, uncut 644 and 912.

About an hour of training on two CPU cores with AVX512-BF16 (1.18 million tokens, up to 14 GiB), and
half an hour for the 3,580 pairs. Held-out accuracy in both orders .905 (the pair of systems alone
.934); win ratio of LLMXRec's tuned model 85.8 %, of GPT-4 83.2 %.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/llmxrec"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "llmxrec_smollm2_judge"
    config.stages = ("judge", "report")
    config.data.format = "none"
    config.llm.path = "smollm2"
    config.llm.dtype = "auto"
    judge = config.judge
    judge.source, judge.path = "file", f"{DATA}/judgements.jsonl.gz"
    judge.block, judge.stratify = 80, "dataset"
    judge.explanations = (f"{DATA}/bpr-mf/prompts.jsonl.gz+{DATA}/bpr-mf/explanations.jsonl.gz",)
    judge.by, judge.prompts = "dataset", 150
    judge.max_prompt_tokens, judge.length, judge.batch = 256, 1024, 20
    judge.lora.update(dict(rank=8, alpha=16.0, dropout=0.05))
    judge.train.update(
        dict(batch_size=4, accumulation=2, epochs=1, learning_rate=1e-3, warmup=0.05, log_every=20)
    )
    return defaults.variant(config, arg)
