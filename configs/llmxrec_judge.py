"""A fair judge on LLMXRec's own judgements, and what it says about the published explanations.

    xrec run --config=configs/llmxrec_judge.py --workdir=runs/llmxrec_judge

needs `../shared/data/llmxrec` and the base of a finished `configs/llmxrec_small.py` in
`runs/llmxrec_small/base`; elsewhere give `--config.llm.path=DIR`, `--config.judge.path=FILE` and
`--config.judge.explanations=PROMPTS+EXPLANATIONS,`. `:tiny` needs neither.

The 1,440 judgements are split by prompt and learned in both orders; 18 blocks of 80 rows are the
pairs of systems, known to the pair-identity baseline only. A prompt is cut to 192 tokens: its
oldest history entries go, and their number is printed. The comparison takes 300 drawn prompts, 100
a data set, of those that the judge has not learned from, each with ten pairs of five systems in
both orders; `--config.judge.prompts=0` takes all 2,753.

Accuracy on 290 held-out judgements .900 as shown and .883 in the other order, position consistency
.893, ECE .071; the constant answer has .845 and the pair-identity prior .934. Fair win ratio of
LLaMA2-SFT .800 and of GPT4 .835, where the published count has 99.25, 87.17 and 99.50 % (mind,
ml-100k, steam) against 75.65, 85.29 and 75.50 %. Its time was not measured on a quiet machine.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/llmxrec"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "llmxrec_judge"
    config.stages = ("judge",)
    config.data.format = "none"
    config.llm.path = "runs/llmxrec_small/base"
    config.llm.chat_template = "no"
    judge = config.judge
    judge.source, judge.path = "file", f"{DATA}/judgements.jsonl.gz"
    judge.block, judge.stratify = 80, "dataset"
    judge.explanations = (f"{DATA}/bpr-mf/prompts.jsonl.gz+{DATA}/bpr-mf/explanations.jsonl.gz",)
    judge.by, judge.prompts = "dataset", 300
    judge.max_prompt_tokens, judge.length, judge.batch = 192, 1024, 20
    judge.lora.update(dict(rank=8, alpha=16.0, dropout=0.05))
    judge.train.update(dict(batch_size=2, epochs=2, learning_rate=1e-3, warmup=0.05, log_every=40))
    return defaults.variant(config, arg)
