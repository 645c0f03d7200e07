"""Draws the clips that the small video checkpoint is trained and tested on.

A clip has 56x56 pixels and, as a rule, 8 frames. Either one shape moves while another may stand
still, or one shape comes and goes and then another comes. `random_clip` says what happens, `draw`
paints it.
"""

from dataclasses import dataclass

import numpy as np

SIDE, FRAMES = 56, 8
SHAPES = ["circle", "square", "triangle", "cross"]
COLOURS = {
    "red": (220, 30, 35),
    "yellow": (250, 220, 30),
    "green": (40, 165, 60),
    "blue": (35, 85, 225),
    "purple": (145, 50, 170),
}
DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE] + 0.5  # the middles of the pixels


@dataclass(frozen=True)
class Shape:
    """A coloured shape on a straight way; places and radius are in pixels, times from 0 to 1."""

    shape: str
    colour: str
    rgb: tuple
    radius: float
    start: tuple  # (x, y) at time 0
    end: tuple  # (x, y) at time 1
    comes: float = 0
    goes: float = 1.01

    @property
    def name(self):
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Clip:
    """What happens: `direction` is set where the first shape moves; else the second one follows it
    in time.
    """

    background: tuple
    shapes: list
    direction: str | None = None


def random_clip(rng):
    """A clip from a `random.Random`."""
    low, high = (5, 60) if rng.random() < 0.35 else (205, 255)
    background = near((rng.uniform(low, high),) * 3, rng, 10)
    first, second = rng.sample([(s, c) for s in SHAPES for c in COLOURS], 2)
    if rng.random() < 0.6:
        direction = rng.choice(list(DIRECTIONS))
        return Clip(background, moving_shapes(first, second, direction, rng), direction)
    middle = rng.uniform(0.36, 0.64)
    shapes = []
    for kind, times in [(first, (0, middle)), (second, (middle, 1.01))]:
        place = rng.uniform(11, SIDE - 11), rng.uniform(11, SIDE - 11)
        shapes.append(shape(kind, place, place, rng, *times))
    return Clip(background, shapes)


def moving_shapes(first, second, direction, rng):
    """A shape that moves across the clip and, in half of all clips, one beside its way."""
    lanes = [SIDE / 4, 3 * SIDE / 4]
    rng.shuffle(lanes)
    alone = rng.random() < 0.5
    lane = rng.uniform(11, SIDE - 11) if alone else lanes[0] + rng.uniform(-3, 3)
    way, middle = rng.uniform(22, 34), SIDE / 2 + rng.uniform(-4, 4)
    dx, dy = DIRECTIONS[direction]

    def at(along, across):
        return (along, across) if dx else (across, along)

    half = (dx + dy) * way / 2
    shapes = [shape(first, at(middle - half, lane), at(middle + half, lane), rng)]
    if not alone:
        place = at(rng.uniform(11, SIDE - 11), lanes[1] + rng.uniform(-3, 3))
        shapes.append(shape(second, place, place, rng))
    return shapes


def shape(kind, start, end, rng, comes=0, goes=1.01):
    name, colour = kind
    return Shape(name, colour, near(COLOURS[colour], rng, 12), rng.uniform(7.5, 9.5), start, end, comes, goes)


def near(rgb, rng, spread):
    return tuple(int(min(255, max(0, part + rng.uniform(-spread, spread)))) for part in rgb)


def draw(clip, frames=FRAMES):
    """The frames: [frames, 56, 56, 3] in 0..255."""
    pixels = np.empty((frames, SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:] = clip.background
    for shape in clip.shapes:
        for index in range(frames):
            time = index / max(1, frames - 1)
            if shape.comes <= time < shape.goes:
                x, y = (a + (b - a) * time for a, b in zip(shape.start, shape.end))
                paint(pixels[index], shape, x, y)
    return pixels


def labels(clip, frames):
    """What is near the middle of each patch of 14x14 pixels, and what is in each quarter, in every
    pair of frames: [pairs, 16 + 4, 3] of shape, colour and motion; 0 is none.

    The patches are in Qwen2-VL's order, by quarters. Training asks the picture side for these,
    besides the answers, which makes it learn to see much sooner.
    """
    quarters = [(x, y) for y in (0, 28) for x in (0, 28)]
    patches = [(x + dx + 7, y + dy + 7) for x, y in quarters for dy in (0, 14) for dx in (0, 14)]
    places = np.array(patches + [(x + 14, y + 14) for x, y in quarters])
    reach = np.array([11] * 16 + [14] * 4)
    found = np.zeros((frames // 2, 20, 3), dtype=np.int64)
    for index, pair in enumerate(found):
        for shape in clip.shapes:
            if shape.comes <= (2 * index + 1) / max(1, frames - 1) < shape.goes:
                time = (2 * index + 0.5) / max(1, frames - 1)
                middle = [a + (b - a) * time for a, b in zip(shape.start, shape.end)]
                moving = clip.direction and shape is clip.shapes[0]
                motion = 2 + list(DIRECTIONS).index(clip.direction) if moving else 1
                here = abs(places - middle).max(axis=1) <= reach
                pair[here] = 1 + SHAPES.index(shape.shape), 1 + list(COLOURS).index(shape.colour), motion
    return found


def paint(frame, shape, x, y):
    reach = int(shape.radius) + 2
    top, left = max(0, int(y) - reach), max(0, int(x) - reach)
    box = np.s_[top : max(top, int(y) + reach), left : max(left, int(x) + reach)]
    frame[box][inside(shape.shape, (COLUMNS[box] - x) / shape.radius, (ROWS[box] - y) / shape.radius)] = shape.rgb


def inside(kind, x, y):
    """Whether points lie in a shape of radius 1 around 0."""
    if kind == "circle":
        return x * x + y * y <= 1
    if kind == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if kind == "triangle":
        return (y <= 0.85) & (2 * abs(x) <= y + 1.0)
    return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1)
