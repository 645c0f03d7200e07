"""Writes the held-out set, 300 clips never trained on, and the clip of the demo.

heldout.png is a sheet of 300 rows, each the 8 frames of 56x56 pixels of one clip from left to
right. Each line of heldout.jsonl says the row, the kind of question, the question and the answer.
"""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from clips import COLOURS, FRAMES, SIDE, Clip, Shape, draw, random_clip
from questions import KINDS, questions

CLIPS = 300
HERE = Path(__file__).parent


def heldout():
    rng = random.Random("held-out")
    asked = dict.fromkeys(KINDS, 0)
    rows, lines = [], []
    for row in range(CLIPS):
        clip = random_clip(rng)
        rows.append(np.concatenate(draw(clip), axis=1))
        fitting = questions(clip)
        rng.shuffle(fitting)
        kind, question, answer = min(fitting, key=lambda found: asked[found[0]])  # asked least so far
        asked[kind] += 1
        lines.append(json.dumps({"row": row, "kind": kind, "question": question, "answer": answer}))
    Image.fromarray(np.concatenate(rows)).save(HERE / "heldout.png", optimize=True)
    (HERE / "heldout.jsonl").write_text("\n".join(lines) + "\n")


def demo():
    """A red circle that moves to the left above a blue square, 2 frames a second."""
    shapes = [
        Shape("circle", "red", COLOURS["red"], 9, (43, 15), (13, 15)),
        Shape("square", "blue", COLOURS["blue"], 8.5, (33, 42), (33, 42)),
    ]
    frames = draw(Clip((232, 238, 247), shapes))
    # One palette of every colour of the clip, so that nothing is lost.
    colours, indices = np.unique(frames.reshape(-1, 3), axis=0, return_inverse=True)
    pictures = [Image.fromarray(frame) for frame in indices.reshape(FRAMES, SIDE, SIDE).astype(np.uint8)]
    for picture in pictures:
        picture.putpalette(colours.flatten().tolist())
    pictures[0].save(
        HERE.parent / "demo.gif", save_all=True, append_images=pictures[1:], duration=500, loop=0, optimize=False,
        disposal=1,
    )


if __name__ == "__main__":
    heldout()
    demo()
