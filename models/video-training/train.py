"""Trains the small video checkpoint from nothing on clips drawn on the fly.

    OMP_NUM_THREADS=1 python train.py --minutes 25 --folder run --bf16

The learning rate follows the clock, so training ends when it is told to. Every few minutes it
scores unseen clips and writes run/model, a complete Hugging Face folder.
"""

import argparse
import math
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn import functional as F
from transformers import Qwen2VLForConditionalGeneration

from clips import COLOURS, DIRECTIONS, SHAPES, Clip, draw, labels, random_clip
from model import (
    SYSTEM, look, new_config, new_model, patches, positions, prompt, save_folder, train_tokenizer, vision_text,
)
from questions import WITHOUT_PICTURE, picture_questions, questions

TURNS = 2
LABEL_COUNTS = [1 + len(SHAPES), 1 + len(COLOURS), 2 + len(DIRECTIONS)]


class Batches:
    """Endless batches of one number of frame pairs: mostly the 4 of a whole clip, sometimes more or
    fewer, a single picture, or nothing to look at.
    """

    def __init__(self, tokenizer, seed, size):
        self.rng = random.Random(seed)
        self.tokenizer, self.size, self.known = tokenizer, size, {}
        self.end = tokenizer.token_to_id("<|im_end|>")

    def encode(self, text):
        if text not in self.known:
            self.known[text] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return self.known[text]

    def __call__(self, case=None):
        """(patches or None, their labels, ids, is_answer, position ids, where the patches go)."""
        case = case or self.rng.choices(["clip", "length", "picture", "text"], [70, 15, 13, 2])[0]
        grids = {"clip": 4, "length": self.rng.choice([2, 3, 5, 6]), "picture": 1, "text": 0}[case]
        examples = [self.example(case, grids) for _ in range(self.size)]
        length = max(len(ids) for *_, ids, _ in examples)
        ids = torch.tensor([ids + [self.end] * (length - len(ids)) for *_, ids, _ in examples])
        is_answer = torch.tensor([mask + [False] * (length - len(mask)) for *_, mask in examples])
        before = len(self.encode(f"{SYSTEM}<|im_start|>user\n<|vision_start|>"))
        seen = patches(np.stack([pixels for pixels, *_ in examples])) if grids else None
        named = torch.from_numpy(np.stack([named for _, named, *_ in examples]))
        return seen, named, ids, is_answer, positions(grids, before, length), before

    def example(self, case, grids):
        """(pixels, labels, ids, is_answer) of one clip with a conversation about it."""
        rng, clip = self.rng, random_clip(self.rng)
        pixels, vision, asked = None, "", questions(clip)
        if case == "picture":
            shape = clip.shapes[0]
            clip = Clip(clip.background, [replace(shape, end=shape.start, goes=1.01)])
            frame = draw(clip)[0]
            pixels, vision, asked = np.stack([frame] * 2), vision_text(1, "image"), picture_questions(clip.shapes[0])
        elif case == "text":
            asked = [(kind, question, WITHOUT_PICTURE) for kind, question, _ in asked]
        else:
            pixels, vision = draw(clip, 2 * grids), vision_text(grids)
        ids, is_answer = [], []
        for turn, (_, question, answer) in enumerate(rng.sample(asked, TURNS)):
            start = self.encode(prompt("" if turn else vision, question, not turn))
            reply = self.encode(answer) + [self.end]
            after = self.encode("\n")
            ids += start + reply + after
            is_answer += [False] * len(start) + [True] * len(reply) + [False] * len(after)
        return pixels, labels(clip, 2 * grids), ids, is_answer


def losses(model, heads, batch):
    """(loss of the answers, loss of the labels, share of first answers right token by token)."""
    seen, labels, ids, is_answer, place, before = batch
    embeds, label_loss = model.model.language_model.embed_tokens(ids), torch.zeros(())
    if seen is not None:
        tokens, features = look(model.model.visual, seen)
        embeds = torch.cat([embeds[:, :before], tokens.to(embeds.dtype), embeds[:, before + tokens.shape[1] :]], dim=1)
        wanted = [labels[:, :, :16], labels[:, :, 16:]]
        for head, x, label in zip(heads, [features, tokens.unflatten(1, (-1, 4))], wanted):
            for part, target in zip(head(x).float().split(LABEL_COUNTS, dim=-1), label.unbind(-1)):
                label_loss = label_loss + F.cross_entropy(part.flatten(0, 2), target.flatten())
    hidden = model.model.language_model(
        inputs_embeds=embeds, position_ids=place[:, None].expand(-1, len(ids), -1), use_cache=False
    ).last_hidden_state
    wanted = is_answer[:, 1:]
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    target = ids[:, 1:][wanted]
    wrong = torch.zeros_like(wanted, dtype=torch.long)
    wrong[wanted] = (logits.argmax(dim=1) != target).long()
    number = (wanted & ~is_answer[:, :-1]).cumsum(dim=1)  # which answer a position belongs to
    right = ((wrong * (number == 1)).sum(dim=1) == 0).float().mean()
    return F.cross_entropy(logits, target), label_loss, right


def optimizers(model, heads, rate):
    """Muon for the matrices inside the blocks, AdamW for all else."""
    named = [(name, p) for name, p in model.named_parameters()]
    inner = [p for name, p in named if p.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name]
    chosen = {id(p) for p in inner}
    outer = [p for _, p in named if id(p) not in chosen] + list(heads.parameters())
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0),
    ]


def learning_rate(done):
    """Share of the peak rate after the share `done` of the time: warm-up, then cosine to 0."""
    warm = 0.02
    return done / warm if done < warm else 0.5 * (1 + math.cos(math.pi * min(1, (done - warm) / (1 - warm))))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--folder", type=Path, default=Path("run"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--every", type=float, default=2, help="minutes between scores")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 matrix products")
    parser.add_argument("--start", type=Path, help="a saved folder to go on from")
    args = parser.parse_args()
    torch.manual_seed(1)
    tokenizer = train_tokenizer()
    model = new_model(new_config(tokenizer))
    if args.start:
        model = Qwen2VLForConditionalGeneration.from_pretrained(args.start, dtype=torch.float32)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    width = model.config.vision_config.embed_dim
    heads = nn.ModuleList([nn.Linear(width, sum(LABEL_COUNTS)) for _ in range(2)])
    optimizing = optimizers(model, heads, args.rate)
    training = Batches(tokenizer, "training", args.batch)
    unseen = Batches(tokenizer, "unseen", 100)
    unseen = [unseen("clip") for _ in range(3)] + [unseen("picture")]
    start, step, sums = time.time(), 0, np.zeros(3)
    next_save = args.every

    def save():
        with torch.inference_mode():
            rights = [float(losses(model, heads, batch)[2]) for batch in unseen]
        print(f"unseen clips {100 * np.mean(rights[:3]):.1f} %, pictures {100 * rights[3]:.1f} %", flush=True)
        save_folder(model, tokenizer, args.folder / "model")

    while (minutes := (time.time() - start) / 60) < args.minutes:
        for optimizer in optimizing:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * learning_rate(minutes / args.minutes)
        # The plain attention has the faster backward pass on processors, at this length.
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16), sdpa_kernel(SDPBackend.MATH):
            answers, named, right = losses(model, heads, training())
        (answers + 0.25 * named).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        sums += np.array([answers.item(), named.item(), right.item()]) / 50
        if step % 50 == 0:
            answers, named, right = sums
            print(f"{minutes:.1f} min, step {step}: losses of answers {answers:.4f} and labels {named:.4f}, "
                  f"right {100 * right:.1f} %", flush=True)
            sums[:] = 0
        if minutes >= next_save:
            next_save += args.every
            save()
    save()
    print(f"{step} steps, {step * args.batch} clips", flush=True)


if __name__ == "__main__":
    main()
