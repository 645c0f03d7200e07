"""Draws the pictures that the tiny checkpoint is trained and tested on.

A picture has three rows and three columns of places. One to four coloured shapes stand in them, and sometimes a plate
with a two-digit number or a short word takes a whole row. `random_scene` says what is in a picture, `draw` paints it.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SHAPES = ["circle", "square", "triangle", "star", "cross"]
COLOURS = {
    "red": (220, 30, 35),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 30),
    "green": (40, 165, 60),
    "blue": (35, 85, 225),
    "purple": (145, 50, 170),
}
WORDS = """BIRD BOOK BUS CAR CAT CUP DOG EXIT FISH HAT HOUSE MILK MOON OPEN RAIN SNOW STOP SUN TEA TREE""".split()
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

PLACES = [
    ["at the top left", "at the top", "at the top right"],
    ["on the left", "in the middle", "on the right"],
    ["at the bottom left", "at the bottom", "at the bottom right"],
]


@dataclass(frozen=True)
class Shape:
    """A coloured shape. x, y, size are fractions of the picture, turn is in degrees."""

    shape: str
    colour: str
    row: int
    col: int
    x: float
    y: float
    size: float
    turn: float
    rgb: tuple

    @property
    def place(self):
        return PLACES[self.row][self.col]

    @property
    def words(self):
        article = "an" if self.colour == "orange" else "a"
        return f"{article} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Plate:
    """A plate with a number or a word, which has a row to itself."""

    kind: str  # "number" or "word"
    text: str
    row: int
    x: float
    y: float
    size: float  # height of the font
    paper: tuple
    ink: tuple

    @property
    def place(self):
        return PLACES[self.row][1]

    @property
    def words(self):
        return f"the {self.kind} {self.text}"


@dataclass(frozen=True)
class Scene:
    background: tuple
    shapes: list = field(default_factory=list)  # in reading order
    plate: Plate | None = None

    @property
    def items(self):
        """Everything in the picture, in reading order."""
        items = self.shapes + ([self.plate] if self.plate else [])
        return sorted(items, key=lambda item: (item.row, getattr(item, "col", 1)))


def grey(rng, low, high, tint):
    level = rng.uniform(low, high)
    return tuple(int(min(255, max(0, level + rng.uniform(-tint, tint)))) for _ in range(3))


def random_scene(rng):
    """A scene from a `random.Random`."""
    dark = rng.random() < 0.35
    background = grey(rng, 5, 60, 12) if dark else grey(rng, 205, 255, 12)
    plate = random_plate(rng) if rng.random() < 0.55 else None
    fewest = 0 if plate and rng.random() < 0.1 else 1
    count = rng.randint(fewest, 4)
    free = [(row, col) for row in range(3) for col in range(3) if not plate or row != plate.row]
    shapes = [random_shape(rng, row, col) for row, col in sorted(rng.sample(free, count))]
    return Scene(background, shapes, plate)


def random_plate(rng):
    kind = rng.choice(["number", "word"])
    text = str(rng.randint(10, 99)) if kind == "number" else rng.choice(WORDS)
    row = rng.randrange(3)
    size = rng.uniform(0.2, 0.26)
    paper, ink = grey(rng, 225, 255, 8), grey(rng, 0, 50, 8)
    if rng.random() < 0.3:
        paper, ink = ink, paper
    x = 0.5 + rng.uniform(-0.1, 0.1)
    y = (row + 0.5) / 3 + rng.uniform(-0.015, 0.015)
    return Plate(kind, text, row, x, y, size, paper, ink)


def random_shape(rng, row, col):
    size = rng.uniform(0.65, 0.92) / 3
    room = (1 / 3 - size) / 2
    x = (col + 0.5) / 3 + rng.uniform(-room, room)
    y = (row + 0.5) / 3 + rng.uniform(-room, room)
    colour = rng.choice(list(COLOURS))
    rgb = tuple(int(min(255, max(0, level + rng.uniform(-12, 12)))) for level in COLOURS[colour])
    return Shape(rng.choice(SHAPES), colour, row, col, x, y, size, rng.uniform(-8, 8), rgb)


def outline(shape):
    """Corners of a shape of radius 1 around the origin, y downwards."""
    if shape == "square":
        return [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]
    if shape == "triangle":
        return [(0, -1), (1, 0.8), (-1, 0.8)]
    if shape == "cross":
        a = 0.33
        half = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        return half + [(-x, -y) for x, y in half]
    points = []
    for corner in range(10):  # star
        radius = 1.05 if corner % 2 == 0 else 0.45
        angle = math.pi * (corner / 5 - 0.5)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    return points


@lru_cache(maxsize=512)
def font(size):
    return ImageFont.load_default(size)


def draw(scene, width, height, smooth=2):
    """Paints a scene at `smooth` times the asked size and shrinks it, which smooths the edges."""
    w, h = width * smooth, height * smooth
    side = min(w, h)
    picture = Image.new("RGB", (w, h), scene.background)
    pen = ImageDraw.Draw(picture)
    for shape in scene.shapes:
        draw_shape(pen, shape, shape.x * w, shape.y * h, shape.size * side / 2)
    if scene.plate:
        draw_plate(pen, scene.plate, w, h)
    return picture.reduce(smooth) if smooth > 1 else picture


def draw_shape(pen, shape, x, y, radius):
    if shape.shape == "circle":
        pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=shape.rgb)
        return
    cos, sin = math.cos(math.radians(shape.turn)), math.sin(math.radians(shape.turn))
    corners = [(x + radius * (a * cos - b * sin), y + radius * (a * sin + b * cos)) for a, b in outline(shape.shape)]
    pen.polygon(corners, fill=shape.rgb)


def draw_plate(pen, plate, w, h):
    size = max(1, round(plate.size * min(w, h)))
    half_width = font(size).getlength(plate.text) / 2 + 0.35 * size
    x, y = plate.x * w, plate.y * h
    frame = [x - half_width, y - 0.62 * size, x + half_width, y + 0.62 * size]
    pen.rectangle(frame, fill=plate.paper, outline=plate.ink, width=max(1, size // 14))
    pen.text((x, y), plate.text, fill=plate.ink, font=font(size), anchor="mm")


def patch_labels(scene, width, height, grid):
    """What is under each patch of the model's grid: [4, grid, grid] of shape, colour, character and
    word; 0 is none.

    Training asks the picture side for these, besides the answers, which makes it learn to see much sooner.
    """
    labels = np.zeros((4, grid, grid), dtype=np.int64)
    side = min(width, height)

    def patches(low, high):
        """Indices of the patches whose middle lies between two fractions."""
        return slice(max(0, math.ceil(low * grid - 0.5)), min(grid, math.floor(high * grid - 0.5) + 1))

    for shape in scene.shapes:
        dx, dy = shape.size * side / width / 2, shape.size * side / height / 2
        box = patches(shape.y - dy, shape.y + dy), patches(shape.x - dx, shape.x + dx)
        labels[0][box] = 1 + SHAPES.index(shape.shape)
        labels[1][box] = 1 + list(COLOURS).index(shape.colour)
    if scene.plate:
        plate = scene.plate
        size = plate.size * side
        em = font(64)
        scale = size / 64 / width
        left = plate.x - em.getlength(plate.text) * scale / 2
        rows = patches(plate.y - 0.45 * size / height, plate.y + 0.45 * size / height)
        right = left + em.getlength(plate.text) * scale
        labels[0][rows, patches(left, right)] = 1 + len(SHAPES)
        if plate.kind == "word":
            labels[3][rows, patches(left, right)] = 1 + WORDS.index(plate.text)
        for index, character in enumerate(plate.text):
            middle = left + (em.getlength(plate.text[:index]) + em.getlength(character) / 2) * scale
            labels[2][rows, min(grid - 1, int(middle * grid))] = 1 + CHARACTERS.index(character)
    return labels
