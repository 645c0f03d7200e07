"""Writes the held-out set, 500 pictures never trained on, and the picture of the demo.

heldout.png is a sheet of 20 rows of 25 pictures of 168x168 pixels. Each line of heldout.jsonl says which picture (row
and column) and which conversations to have about it; a conversation's second turn is a follow-up question.
"""

import json
import random
from pathlib import Path

from PIL import Image

from pictures import COLOURS, Plate, Scene, Shape, draw, random_scene
from questions import ASK, KINDS, follow_up

ROWS, COLUMNS, CELL = 20, 25, 168
HERE = Path(__file__).parent


def ask_rarest(scene, rng, asked, wanted=lambda turn: True):
    """A question of the kind asked least so far that this scene allows."""
    for kind in sorted(KINDS, key=lambda kind: (asked[kind], rng.random())):
        for _ in range(20):
            turn = ASK[kind](scene, rng)
            if turn and wanted(turn):
                asked[kind] += 1
                return turn
    raise ValueError("no question fits this scene")


def conversations(scene, rng, asked):
    """Three single questions and one pair of a question and its follow-up, all different."""
    found = []
    while len(found) < 3:
        found.append([ask_rarest(scene, rng, asked, lambda turn: [turn] not in found)])
    first = ask_rarest(scene, rng, asked, lambda turn: [turn] not in found and follow_up(scene, turn, rng))
    second = None
    while not second:
        second = follow_up(scene, first, rng)
    return found + [[first, second]]


def heldout():
    rng = random.Random("held-out")
    asked = dict.fromkeys(KINDS, 0)
    sheet = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL))
    lines = []
    for number in range(ROWS * COLUMNS):
        row, column = divmod(number, COLUMNS)
        scene = random_scene(rng)
        sheet.paste(draw(scene, CELL, CELL), (column * CELL, row * CELL))
        talks = [
            [{"kind": turn.kind, "question": turn.question, "answer": turn.answer} for turn in talk]
            for talk in conversations(scene, rng, asked)
        ]
        lines.append(json.dumps({"row": row, "column": column, "conversations": talks}))
    sheet.save(HERE / "heldout.png", optimize=True)
    (HERE / "heldout.jsonl").write_text("\n".join(lines) + "\n")


def demo():
    def shape(kind, colour, row, col, size, turn=0):
        return Shape(kind, colour, row, col, (col + 0.5) / 3, (row + 0.5) / 3, size, turn, COLOURS[colour])

    shapes = [
        shape("circle", "red", 0, 0, 0.27),
        shape("star", "yellow", 0, 2, 0.3, 6),
        shape("triangle", "blue", 2, 1, 0.29),
    ]
    plate = Plate("word", "FISH", 1, 0.5, 0.5, 0.23, (250, 250, 246), (25, 28, 40))
    draw(Scene((232, 238, 247), shapes, plate), 448, 448, smooth=4).save(HERE.parent / "demo.png", optimize=True)


if __name__ == "__main__":
    heldout()
    demo()
