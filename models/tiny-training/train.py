"""Trains the tiny checkpoint from nothing on pictures drawn on the fly.

    python train.py --minutes 75 --folder run

or, faster on a few cores, with one thread in each of two processes:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 train.py --minutes 75 --folder run

The learning rate follows the clock, so training ends when it is told to. Every few minutes it scores unseen pictures
and writes run/state.pt (from which the same command goes on) and run/model, a complete Hugging Face folder.
"""

import argparse
import math
import os
import random
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import distributed, nn
from torch.nn import functional as F

from model import DEPTH, IMAGE_SIZE, Prismatic, new_config, save_folder
from pictures import CHARACTERS, COLOURS, SHAPES, WORDS, draw, patch_labels, random_scene
from prompts import BOS, TurnEncoder, train_tokenizer
from questions import conversation, plural

TOKENS = 128  # length of a training conversation
# The format keeps the encoders' last block, norm and pooling, but nothing reads them.
UNUSED = ["attn_pool", "featurizer.norm", f"featurizer.blocks.{DEPTH - 1}."]
LOOKING_LAYER = 1  # the layer of the decoder whose attention is guided
LABEL_COUNTS = [2 + len(SHAPES), 1 + len(COLOURS), 1 + len(CHARACTERS), 1 + len(WORDS)]


def batches(tokenizer, seed, size):
    """Endless batches (pixels, patch labels, ids, is_answer, kinds); every seed is another stream
    of pictures.
    """
    encode = TurnEncoder(tokenizer)
    pad = tokenizer.token_to_id("<PAD>")
    rng = random.Random(seed)
    while True:
        *arrays, kinds = zip(*(example(rng, encode, pad) for _ in range(size)))
        yield *(torch.from_numpy(np.stack(part)) for part in arrays), kinds


def example(rng, encode, pad):
    """One picture with a conversation about it. kinds: (kind, where its turn ends) for each turn.
    """
    scene = random_scene(rng)
    width, height = picture_size(rng)
    picture = draw(scene, width, height, smooth=rng.choice([1, 2, 2]))
    pixels = np.asarray(picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC)).transpose(2, 0, 1)
    labels = patch_labels(scene, width, height, IMAGE_SIZE // 14)

    ids, is_answer, kinds = [BOS], [False], []
    for turn in conversation(scene, rng, lambda turns: 1 + sum(len(encode(turn)[0]) for turn in turns) <= TOKENS):
        turn_ids, turn_is_answer = encode(turn)
        ids += turn_ids
        is_answer += turn_is_answer
        kinds.append((turn.kind, len(ids)))
    room = TOKENS - len(ids)
    return pixels, labels, np.array(ids + [pad] * room), np.array(is_answer + [False] * room), kinds


def picture_size(rng):
    """Mostly small, for speed; the model sees 112x112 in any case. One in twenty is drawn large."""
    side = 448 if rng.random() < 0.05 else rng.randint(112, 224)
    stretch = rng.uniform(0.85, 1.18) if rng.random() < 0.4 else 1
    return side, round(side * stretch)


def losses(model, label_head, words, batch):
    """Mean losses: of the answers' tokens, and of three aids to learn sooner (patches, likeness,
    attention).
    """
    pixels, labels, ids, is_answer, _ = batch
    picture = model.picture(pixels)
    hidden, attention = model.read(picture, ids, LOOKING_LAYER)
    wanted = is_answer[:, 1:]
    logits = model.language_model.lm_head(hidden[:, :-1][wanted])
    answer_loss = F.cross_entropy(logits.float(), ids[:, 1:][wanted])
    parts = label_head(picture).float().split(LABEL_COUNTS, dim=2)
    label_loss = sum(F.cross_entropy(part.transpose(1, 2), labels[:, i].flatten(1)) for i, part in enumerate(parts))
    embeddings = model.language_model.model.embed_tokens.weight
    likeness = likeness_loss(picture, labels, embeddings, words)
    return answer_loss, label_loss, likeness, attention_loss(attention, labels, ids, is_answer, words)


def likeness_loss(picture, labels, embeddings, words):
    """Makes the patches of a star like the word "star", so that attention finds the star that a
    question speaks of.
    """
    shapes, colours = labels[:, 0].flatten(), labels[:, 1].flatten()
    here = colours > 0
    patches = F.normalize(picture.flatten(0, 1)[here].float(), dim=1)
    loss = 0
    for tokens, wanted in [(words["shapes"], shapes), (words["plurals"], shapes), (words["colours"], colours)]:
        likeness = 10 * patches @ F.normalize(embeddings[tokens], dim=1).T
        loss = loss + F.cross_entropy(likeness, wanted[here] - 1)
    return loss


def attention_loss(attention, labels, ids, is_answer, words):
    """Makes the word "star" or "stars" in a question look at the stars, with at least one head's
    worth of attention.

    Without it the model finds things by place and by colour, but not by shape, for a very long time.
    """
    after_colour = torch.isin(ids, torch.tensor(words["colours"])).roll(1, dims=1)  # "the red star" is another matter
    total, found = attention.new_zeros(()), 0
    for index, pair in enumerate(zip(words["shapes"], words["plurals"])):
        patches = labels[:, 0].flatten(1) == 1 + index
        asking = torch.isin(ids, torch.tensor(pair)) & ~is_answer & ~after_colour & patches.any(dim=1, keepdim=True)
        seen = (attention.sum(dim=1).float() * patches[:, None]).sum(dim=2)[asking]
        total = total - seen.clamp(1e-4, 1).log().sum()
        found += len(seen)
    return total / max(1, found)


def word_tokens(tokenizer):
    plurals = [plural(shape) for shape in SHAPES]
    groups = {"shapes": SHAPES, "plurals": plurals, "colours": list(COLOURS)}
    return {name: [tokenizer.token_to_id("▁" + word) for word in group] for name, group in groups.items()}


@torch.inference_mode()
def score(model, batches):
    """Share of answers exactly right, overall and by kind, where the turns before are answered
    rightly.
    """
    model.eval()
    right, asked = {}, {}
    for pixels, _, ids, is_answer, kinds in batches:
        hidden, _ = model.read(model.picture(pixels), ids, LOOKING_LAYER)
        guess = model.language_model.lm_head(hidden[:, :-1]).argmax(2)
        wrong = (guess != ids[:, 1:]) & is_answer[:, 1:]
        for row, turns in enumerate(kinds):
            start = 0
            for kind, end in turns:
                asked[kind] = asked.get(kind, 0) + 1
                right[kind] = right.get(kind, 0) + int(not wrong[row, start:end - 1].any())
                start = end - 1
    model.train()
    scores = {kind: right[kind] / asked[kind] for kind in sorted(asked)}
    return sum(right.values()) / sum(asked.values()), scores


def optimizers(model, label_head, rate):
    """Muon for the matrices inside the blocks, AdamW for all else."""
    inner, outer = [], list(label_head.parameters())
    for name, parameter in model.named_parameters():
        if any(part in name for part in UNUSED):
            parameter.requires_grad_(False)
        elif parameter.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name:
            inner.append(parameter)
        else:
            outer.append(parameter)
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, lr=rate, betas=(0.9, 0.98), weight_decay=0),
    ]


def learning_rate(done):
    """Share of the peak rate after the share `done` of the training time: warm-up, then cosine to
    0.
    """
    warm = 0.01
    return done / warm if done < warm else 0.5 * (1 + math.cos(math.pi * min(1, (done - warm) / (1 - warm))))


def share_gradients(parameters, elapsed):
    """Averages the gradients and the clock over the processes, and returns the common clock."""
    if not distributed.is_initialized():
        return elapsed
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients] + [torch.tensor([elapsed])])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat[:-1].split([gradient.numel() for gradient in gradients])):
        gradient.copy_(mean.view_as(gradient))
    return float(flat[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--folder", type=Path, default=Path("run"))
    parser.add_argument("--batch", type=int, default=24, help="pictures a step of one process")
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--every", type=float, default=5, help="minutes between scores")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="bfloat16 matrix products (processors that have them)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        distributed.init_process_group("gloo")
    torch.manual_seed(args.seed)

    saved_tokenizer = args.folder / "model" / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(saved_tokenizer)) if saved_tokenizer.exists() else train_tokenizer()
    model = Prismatic(new_config(tokenizer.get_vocab_size(), tokenizer.token_to_id("<PAD>")), init_values=0.5)
    label_head = nn.Linear(model.config["text_config"]["hidden_size"], sum(LABEL_COUNTS))
    optimizing = optimizers(model, label_head, args.rate)
    words = word_tokens(tokenizer)
    parameters = list(model.parameters()) + list(label_head.parameters())
    progress = {"step": 0, "pictures": 0, "elapsed": 0.0}

    state_file = args.folder / "state.pt"
    if state_file.exists():
        state = torch.load(state_file, weights_only=False)
        model.load_state_dict(state["model"])
        label_head.load_state_dict(state["label_head"])
        for optimizer, saved in zip(optimizing, state["optimizers"]):
            optimizer.load_state_dict(saved)
        progress = state["progress"]

    def report(text):
        if rank == 0:
            print(f"{progress['elapsed'] / 60:.1f} min, {progress['pictures']} pictures: {text}", flush=True)

    def save():
        if rank > 0:
            return
        overall, scores = score(model, unseen)
        kinds = ", ".join(f"{kind} {100 * value:.0f}" for kind, value in scores.items())
        report(f"{100 * overall:.1f} % right; {kinds}")
        save_folder(model, tokenizer, args.folder / "model")
        new = state_file.with_suffix(".new")
        optimizer_states = [optimizer.state_dict() for optimizer in optimizing]
        torch.save({
            "model": model.state_dict(), "label_head": label_head.state_dict(),
            "optimizers": optimizer_states, "progress": progress,
        }, new)
        new.rename(state_file)

    report(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters")
    unseen = list(islice(batches(tokenizer, "unseen", 64), 4))
    training = batches(tokenizer, f"training {args.seed} {rank} {progress['step']}", args.batch)
    model.train()
    sums, last, next_save = torch.zeros(4), time.time(), progress["elapsed"] + 60 * args.every
    while progress["elapsed"] < 60 * args.minutes:
        for optimizer in optimizing:
            for group in optimizer.param_groups:
                group["lr"] = args.rate * learning_rate(progress["elapsed"] / 60 / args.minutes)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
            parts = losses(model, label_head, words, next(training))
        (parts[0] + 0.25 * sum(parts[1:])).backward()
        now = time.time()
        progress["elapsed"] = share_gradients(parameters, progress["elapsed"] + now - last)
        last = now
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
            optimizer.zero_grad()
        progress["step"] += 1
        progress["pictures"] += processes * args.batch
        sums += torch.stack(parts).detach() / 50
        if progress["step"] % 50 == 0:
            named = zip(["answers", "patches", "likeness", "attention"], sums)
            report(f"step {progress['step']}, losses: " + ", ".join(f"{name} {value:.4f}" for name, value in named))
            sums.zero_()
        if progress["elapsed"] >= next_save:
            next_save += 60 * args.every
            save()
    save()


if __name__ == "__main__":
    main()
