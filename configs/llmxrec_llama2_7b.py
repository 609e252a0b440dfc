"""LLMXRec as published: LLaMA-2-7B-chat in int8, LoRA r 8 on all projections.

    xrec run --config=configs/llmxrec_llama2_7b.py --workdir=runs/llama2_7b \
        --config.llm.path=DIR --config.instruct.path=INSTRUCTIONS.jsonl --config.instruct.stratify=

(`stratify=` for a set of your own; LLMXRec's has the key `dataset`, the default.)

`DIR` is a Hugging Face directory or GGUF file, or what `xrec import` made of one. Learning
rate 3e-4, warm-up 0.1, batch 8, 5 epochs, prompt masked; decoding at temperature 0.1, top-p 0.75,
top-k 40 (the paper's repository).

Mesh and batch for some machines, as flags (`data` takes all other devices):

    one H200         the defaults
    8 H100 or H200   --config.mesh.fsdp=8 --config.instruct.train.batch_size=8
    v5e-16           --config.mesh.fsdp=16 --config.instruct.train.batch_size=16
                     --config.llm.generation_batch=64
    v5p-128          --config.mesh.fsdp=16 --config.instruct.train.batch_size=64
                     (64 chips: data=4)

The batch must be a multiple of data x fsdp.
No such device was at hand when this was written: time and figures are not known, and the sizes are
reasoned from memory needs.
"""

from ml_collections import ConfigDict

from xrec_jax import defaults


def get_config(arg: str = "") -> ConfigDict:
    config = defaults.published_llmxrec()
    config.name = "llmxrec_llama2_7b"
    config.llm.quantization = "int8"
    return defaults.variant(config, arg)
