"""Scores a checkpoint folder on the held-out set: the share of answers exactly right, by kind of
question.

    python evaluate.py ../tiny

Weights are the folder's bfloat16 ones, arithmetic is f32, decoding is greedy, and a follow-up question comes after the
model's own first answer.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from heldout import CELL, HERE
from model import IMAGE_SIZE, load_folder
from prompts import EOS, prompt


class Reader:
    """A checkpoint that answers questions about one picture at a time."""

    def __init__(self, folder):
        self.model = load_folder(folder)
        self.tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))

    def look(self, picture):
        small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.BICUBIC)
        pixels = torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy())
        with torch.inference_mode():
            self.picture = self.model.picture(pixels[None])
        self.turns = []

    def answer(self, question):
        ids = self.tokenizer.encode(prompt(self.turns, question)).ids
        text = self.tokenizer.decode(self.model.generate(self.picture, ids, EOS)).strip()
        self.turns.append((question, text))
        return text


def main(folder):
    reader = Reader(folder)
    sheet = Image.open(HERE / "heldout.png")
    right, asked = Counter(), Counter()
    for line in (HERE / "heldout.jsonl").read_text().splitlines():
        cell = json.loads(line)
        left, top = cell["column"] * CELL, cell["row"] * CELL
        reader.look(sheet.crop((left, top, left + CELL, top + CELL)))
        for talk in cell["conversations"]:
            reader.turns = []
            for turn in talk:
                found = reader.answer(turn["question"])
                asked[turn["kind"]] += 1
                right[turn["kind"]] += found == turn["answer"]
                if found != turn["answer"]:
                    where = f"row {cell['row']}, column {cell['column']}"
                    print(f"{where}: {turn['question']} {turn['answer']!r} wanted, {found!r} found", file=sys.stderr)
    for kind in sorted(asked):
        print(f"{kind:16} {right[kind]:4} of {asked[kind]:4}  {100 * right[kind] / asked[kind]:5.1f} %")
    print(f"{'all':16} {right.total():4} of {asked.total():4}  {100 * right.total() / asked.total():5.1f} %")


if __name__ == "__main__":
    main(sys.argv[1])
