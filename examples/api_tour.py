#!/usr/bin/env python
"""The Python interface, cell by cell: load a checkpoint, embed texts, look at logits, go on in text and in pixels.

    python examples/api_tour.py runs/demo

The checkpoint is a run, one of its checkpoints, or a folder in the released Hugging Face layout.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", nargs="?", default="runs/demo", help="default: %(default)s")
checkpoint = parser.parse_args().checkpoint

# %% Load. No GPU, no process group.
from megatron_pixel.api import load

model = load(checkpoint)

# %% Embeddings, one row a text: as tokens, or rendered and read as pixels.
texts = ["the congress of the united states", "the senate and the house", "a report to the secretary"]
as_tokens = model.embed(texts)
as_pixels = model.embed(texts, modality="pixel", pooling="mean")
print("embeddings", tuple(as_tokens.shape), tuple(as_pixels.shape))

# %% How alike two texts look to the model.
unit = as_pixels / as_pixels.norm(dim=-1, keepdim=True)
print("cosine similarities", (unit @ unit.T).numpy().round(2).tolist())

# %% What may come next: logits for every position, the likeliest tokens after the last one.
logits = model.logits("the congress of the")
best = logits[-1].softmax(-1).topk(5)
tokenizer = model.parts.tokenizer
for probability, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
    print(f"next {tokenizer.piece(token)!r} {probability:.3f}")

# %% The perplexity of a text: how likely each token was, given those before it.
ids = model.parts.text_prompt(texts[0]).tokens
chosen = model.logits(texts[0])[:-1].log_softmax(-1)[range(len(ids) - 1), ids[1:]]
print(f"perplexity {(-chosen.mean()).exp():.1f}")

# %% Going on, in text and in pixels.
print("text", repr(model.generate("the congress", max_tokens=8, temperature=0.8, top_p=0.9, seed=1)))
page = model.draw("the congress", max_patches=4)
print("page", page.shape, page.dtype)
