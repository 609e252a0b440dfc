"""LLMXRec's instruction set with a small LLaMA from nothing.

    xrec run --config=configs/llmxrec_small.py --workdir=runs/llmxrec_small

reads `../shared/data/llmxrec`; elsewhere give `--config.instruct.path=FILE` and
`--config.pretrain.files=PROMPTS+EXPLANATIONS,`. The base learns to write from LLMXRec's BPR-MF
prompts with the answers of GPT3.5; whatever holds a held-out prompt or answer
is left out. `:tiny` needs no files.

16 minutes on two CPU cores that also ran other work. Held-out perplexity 52.9 (base) and 24.3
(tuned); all 24 tuned answers within 75 words and ended by EOS.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults

DATA = "../shared/data/llmxrec"


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "llmxrec_small"
    config.stages = ("pretrain", "instruct")
    config.data.format = "none"
    config.llm.update(
        dict(
            vocab_size=4096,
            hidden_size=256,
            intermediate_size=688,
            num_layers=4,
            num_heads=8,
            num_kv_heads=4,
            head_dim=32,
            max_positions=1024,
        )
    )
    pretrain = config.pretrain
    pretrain.source = "files"
    pretrain.files = (f"{DATA}/bpr-mf/prompts.jsonl.gz+{DATA}/bpr-mf/explanations.jsonl.gz",)
    pretrain.keep.update(dict(field="model", among=("GPT3.5",)))
    pretrain.length = 1024
    pretrain.train.update(dict(batch_size=8, epochs=1, learning_rate=3e-3, log_every=20))
    instruct = config.instruct
    instruct.source, instruct.path = "file", f"{DATA}/instructions.jsonl"
    instruct.examples, instruct.stratify = 0, "dataset"
    instruct.length = 1024
    instruct.lora.update(dict(rank=32, alpha=64.0, dropout=0.05))
    instruct.train.update(dict(batch_size=8, epochs=10, learning_rate=3e-3, evaluate_every=2))
    return defaults.variant(config, arg)
