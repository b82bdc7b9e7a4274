"""Pre-trains `toyshop-clip`, the small CLIP in the package, on items outside every catalogue.

    python studies/pretrain_toyshop_clip.py --out perpeft_ray/encoder/toyshop_clip

It is a `transformers.CLIPModel` trained contrastively (Radford et al. 2021) on titles and images
of `perpeft_ray.data.toyshop.other_items`. The folder holds everything that
`CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` need. A seed determines the model,
up to floating-point differences between machines.

Letters: n items, L tokens, S pixels a side.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)

from perpeft_ray.cli import parse, run
from perpeft_ray.data.toyshop import other_items
from perpeft_ray.data.toyshop_items import IMAGE_SIZE

WIDTH = 64
PROJECTION = 24  # just enough for department, kind and colour, so that the rest is dropped
INTERMEDIATE = 128
LAYERS = 2
HEADS = 4
PATCH = 8
MAX_TOKENS = 24

TRAINING_ITEMS = 8_000
HELD_OUT_ITEMS = 500
STEPS = 1_000
BATCH = 128
LEARNING_RATE = 2e-3
WARMUP = 50
WEIGHT_DECAY = 0.1


@dataclass(frozen=True)
class Recall:
    """Text-to-image retrieval: share of titles whose image is among the first k."""

    at_1: float
    at_5: float


@dataclass(frozen=True)
class Options:
    """Options."""

    out: Path = Path("toyshop-clip")
    """Folder to write."""
    seed: int = 0
    """Seed of items and weights."""
    steps: int = STEPS
    """Training steps."""
    threads: int = 2
    """CPU threads."""


def main() -> None:
    """Train, print the recall on held-out items and save the folder."""
    chosen = parse(Options, description=__doc__)
    torch.set_num_threads(chosen.threads)
    model, processor = pretrain(chosen.seed, chosen.steps)
    recall = text_to_image_recall(model, processor, *held_out_items(chosen.seed))
    print(f"text to image among {HELD_OUT_ITEMS}: R@1 {recall.at_1:.3f}, R@5 {recall.at_5:.3f}")
    model.save_pretrained(chosen.out)
    processor.save_pretrained(chosen.out)


def pretrain(seed: int, steps: int) -> tuple[CLIPModel, CLIPProcessor]:
    """A model trained for `steps` batches on TRAINING_ITEMS other items, and its processor."""
    titles, images = other_items(TRAINING_ITEMS, seed)
    processor = build_processor(titles)
    token_ids, pixels = _inputs(processor, titles, images)
    torch.manual_seed(seed)
    model = build_model(processor.tokenizer)
    matrices = [weight for weight in model.parameters() if weight.dim() >= 2]
    others = [weight for weight in model.parameters() if weight.dim() < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": WEIGHT_DECAY},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
    )
    model.train()
    for step in range(steps):
        rows = torch.randperm(len(titles))[:BATCH]
        loss = model(input_ids=token_ids[rows], pixel_values=pixels[rows], return_loss=True).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:4d}  contrastive loss {loss.item():.3f}", flush=True)
    return model.eval(), processor  # type: ignore[no-untyped-call]  # torch leaves it untyped


def held_out_items(seed: int) -> tuple[list[str], NDArray[np.uint8]]:
    """HELD_OUT_ITEMS items that `pretrain(seed)` does not draw."""
    return other_items(HELD_OUT_ITEMS, seed + 1_000_000)


@torch.no_grad()
def text_to_image_recall(
    model: CLIPModel, processor: CLIPProcessor, titles: list[str], images: NDArray[np.uint8]
) -> Recall:
    """Recall of `images` (uint8 [n, S, S, 3]) by their `titles`; ties count against the model."""
    token_ids, pixels = _inputs(processor, titles, images)
    scores = model(input_ids=token_ids, pixel_values=pixels).logits_per_text  # [n, n]
    ranks = (scores >= scores.diagonal()[:, None]).sum(dim=1)  # 1-based
    return Recall((ranks <= 1).double().mean().item(), (ranks <= 5).double().mean().item())


def build_model(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained model for the tokenizer; weights come from torch's global generator."""
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "hidden_act": "gelu",  # one fused operation, unlike CLIP's quick_gelu
        "projection_dim": PROJECTION,
    }
    text = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_TOKENS,
        # Features are read at this token. Transformers takes id 2 to mean "the highest id".
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {"image_size": IMAGE_SIZE, "patch_size": PATCH}
    return CLIPModel(
        CLIPConfig(
            text_config=tower | text, vision_config=tower | vision, projection_dim=PROJECTION
        )
    )


def build_processor(titles: list[str]) -> CLIPProcessor:
    """The processor: CLIP's byte-pair tokenizer with every word of `titles` as one token.

    Other words are split into pieces, down to bytes, so any text can be encoded. Images are
    resized and cropped to IMAGE_SIZE, which leaves the toyshop's own unchanged.
    """
    vocabulary, merges = _byte_pairs(sorted({word for title in titles for word in title.split()}))
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=MAX_TOKENS)  # type: ignore[arg-type]  # pairs are taken too
    images = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE},
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return CLIPProcessor(image_processor=images, tokenizer=tokenizer)  # type: ignore[no-untyped-call]  # transformers leaves it untyped


def _byte_pairs(words: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair vocabulary and merges (Sennrich et al. 2016) until every word is one token."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelled = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges: list[tuple[str, str]] = []
    while pairs := Counter(pair for word in spelled for pair in itertools.pairwise(word)):
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(word, best) for word in spelled]
    letters = list(bytes_to_unicode().values())  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [left + right for left, right in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}, merges


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def _inputs(
    processor: CLIPProcessor, titles: list[str], images: NDArray[np.uint8]
) -> tuple[Tensor, Tensor]:
    """Token ids int64 [n, L] and normalised pixels float32 [n, 3, S, S]."""
    inputs = processor(
        text=titles, images=list(images), padding=True, truncation=True, return_tensors="pt"
    )
    return inputs["input_ids"], inputs["pixel_values"]


if __name__ == "__main__":
    run(main)
