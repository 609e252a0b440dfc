"""What BPR, SASRec and LightGCN recommend on MovieLens-100K, explained by template, base and tuned.

    xrec run --config=configs/ml100k_explained.py --workdir=runs/ml100k_explained

reads `../shared/data/ml-100k` and LLMXRec's instructions in `../shared/data/llmxrec`; elsewhere
give `--config.data.path=DIR` and `--config.instruct.path=FILE`. The base, SmolLM2-135M-Instruct,
comes with `make setup`. `:tiny` needs none of them: a world, and a small LLaMA from nothing.

The three recommenders of `configs/ml100k_*.py`, the adapter of `configs/llmxrec_smollm2.py`, and
its prompt for films with the ten latest of the history. The first recommendations of each
recommender to the same 100 users are explained; what two recommend is explained once and counts for
both. `evaluation.json` has the figures of each under `recommenders`, as "tuned on sasrec": length,
titles and attributes that are borne out, and whether the cited films moved that recommender. The
report shows them in a table.

42 minutes on two cores beside other work. Tuned texts name the film in 95 to 96 % whoever
recommends it (base 76 to 80 %); figures in docs/results/llmxrec.md.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.base()
    config.name = "ml100k_explained"
    config.stages = ("recommend", "instruct", "explain", "assess", "report")
    config.data.format = "atomic"
    config.data.path = "../shared/data/ml-100k"
    config.recommend.bpr = defaults.system(
        "bpr",
        negatives=4,
        l2=0.008,
        stddev=0.01,
        train=dict(
            batch_size=2048, learning_rate=1e-2, epochs=60, patience=10, checkpoint_every=30
        ),
    )
    config.recommend.sasrec = defaults.system(
        "sasrec",
        layers=1,
        length=20,
        context=14,
        dropout=0.5,
        train=dict(batch_size=256, learning_rate=5e-3, epochs=50, patience=12),
    )
    config.recommend.lightgcn = defaults.system(
        "lightgcn",
        layers=2,
        l2=0.01,
        objective="softmax",
        train=dict(batch_size=2048, learning_rate=3e-2, epochs=30, patience=6),
    )
    config.llm.path = "smollm2"
    config.llm.dtype = "auto"
    config.llm.generation_batch = 32
    instruct = config.instruct
    instruct.source, instruct.path = "file", "../shared/data/llmxrec/instructions.jsonl"
    instruct.examples, instruct.stratify = 0, "dataset"
    instruct.template, instruct.max_prompt_tokens = "llmxrec_movie", 768
    instruct.length = 1408
    instruct.lora.update(dict(rank=8, alpha=16.0, dropout=0.05))
    instruct.train.update(
        dict(batch_size=2, accumulation=2, epochs=2, learning_rate=1e-3, warmup=0.05, log_every=5)
    )
    config.explain.update(dict(systems=("bpr", "sasrec", "lightgcn"), users=100, top_k=1))
    config.assess.groups = ("gender",)
    return defaults.variant(config, arg)
