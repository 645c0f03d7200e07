"""Questions about a scene, each with the one right answer, and conversations made of them."""

from dataclasses import dataclass

from pictures import COLOURS, PLACES, SHAPES, Plate, Shape

KINDS = ["describe", "count", "colour", "shape", "place", "what is where", "read", "relation"]
# How often training asks each kind: finding a thing by its shape is learned last, so kinds that
# need it come oftener.
WEIGHTS = [4 if kind in ("colour", "place") else 1 for kind in KINDS]
NUMBERS = ["None", "One", "Two", "Three", "Four"]


@dataclass(frozen=True)
class Turn:
    kind: str
    question: str
    answer: str
    about: tuple = ()  # the items that "it" or "they" means in a follow-up question


def sentence(words):
    return words[0].upper() + words[1:] + "."


def listing(parts):
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def plural(shape):
    return shape + ("es" if shape == "cross" else "s")


def names(scene, shape):
    """The ways to name a shape that fit no other shape of the scene."""
    same_shape = sum(other.shape == shape.shape for other in scene.shapes)
    same_colour = sum(other.colour == shape.colour for other in scene.shapes)
    same_both = sum((other.shape, other.colour) == (shape.shape, shape.colour) for other in scene.shapes)
    found = []
    if same_shape == 1:
        found.append(f"the {shape.shape}")
    if same_colour == 1:
        found.append(f"the {shape.colour} shape")
    if same_both == 1:
        found.append(f"the {shape.colour} {shape.shape}")
    return found


def describe(scene, rng):
    question = rng.choice(["Describe the picture.", "What do you see?", "What is in the picture?"])
    return Turn("describe", question, sentence(listing([f"{item.words} {item.place}" for item in scene.items])))


def count(scene, rng):
    choice = rng.randrange(3)
    if choice == 0:
        return Turn("count", "How many shapes are there?", NUMBERS[len(scene.shapes)] + ".", tuple(scene.shapes))
    present = scene.shapes and rng.random() < 0.8
    if choice == 1:
        colour = rng.choice(scene.shapes).colour if present else rng.choice(list(COLOURS))
        found = tuple(shape for shape in scene.shapes if shape.colour == colour)
        return Turn("count", f"How many {colour} shapes are there?", NUMBERS[len(found)] + ".", found)
    kind = rng.choice(scene.shapes).shape if present else rng.choice(SHAPES)
    found = tuple(shape for shape in scene.shapes if shape.shape == kind)
    return Turn("count", f"How many {plural(kind)} are there?", NUMBERS[len(found)] + ".", found)


def colour(scene, rng):
    shapes = [shape for shape in scene.shapes if f"the {shape.shape}" in names(scene, shape)]
    if not shapes:
        return None
    shape = rng.choice(shapes)
    return Turn("colour", f"What colour is the {shape.shape}?", sentence(shape.colour), (shape,))


def shape(scene, rng):
    shapes = [shape for shape in scene.shapes if f"the {shape.colour} shape" in names(scene, shape)]
    if not shapes:
        return None
    shape = rng.choice(shapes)
    return Turn("shape", f"What is the {shape.colour} shape?", sentence(f"a {shape.shape}"), (shape,))


def named_item(scene, rng):
    """An item and an unmistakable name for it, or None."""
    found = [(shape, name) for shape in scene.shapes for name in names(scene, shape)]
    if scene.plate:
        found += [(scene.plate, f"the {scene.plate.kind}")] * 2
    return rng.choice(found) if found else None


def place(scene, rng):
    found = named_item(scene, rng)
    if not found:
        return None
    item, name = found
    return Turn("place", f"Where is {name}?", sentence(item.place), (item,))


def what_is_where(scene, rng):
    if rng.random() < 0.8:
        item = rng.choice(scene.items)
        return Turn("what is where", f"What is {item.place}?", sentence(item.words), (item,))
    taken = {item.place for item in scene.items}
    if scene.plate:
        taken |= set(PLACES[scene.plate.row])
    empty = [place for row in PLACES for place in row if place not in taken]
    return Turn("what is where", f"What is {rng.choice(empty)}?", "Nothing.")


def read(scene, rng):
    plate = scene.plate
    if not plate:
        return Turn("read", "What is written?", "Nothing.") if rng.random() < 0.15 else None
    if rng.random() < 0.5:
        return Turn("read", "What is written?", sentence(plate.words), (plate,))
    return Turn("read", f"What {plate.kind} is written?", f"{plate.text}.", (plate,))


def in_direction(scene, item, direction):
    """The items in the columns left or right of an item, or in the rows above or below it."""
    if direction == "above":
        return [other for other in scene.items if other.row < item.row]
    if direction == "below":
        return [other for other in scene.items if other.row > item.row]
    if isinstance(item, Plate):
        return None
    if direction == "left of":
        return [other for other in scene.shapes if other.col < item.col]
    return [other for other in scene.shapes if other.col > item.col]


def related(scene, item, name, rng):
    """What is left of, right of, above or below an item, asked where that is one thing or (less
    often) nothing.
    """
    directions = ["left of", "right of", "above", "below"]
    rng.shuffle(directions)
    empty_is_fine = rng.random() < 0.15
    for direction in directions:
        found = in_direction(scene, item, direction)
        if found is not None and (len(found) == 1 or (not found and empty_is_fine)):
            answer = sentence(found[0].words) if found else "Nothing."
            return Turn("relation", f"What is {direction} {name}?", answer, tuple(found))
    return None


def relation(scene, rng):
    found = named_item(scene, rng)
    return related(scene, *found, rng) if found else None


ASK = dict(zip(KINDS, [describe, count, colour, shape, place, what_is_where, read, relation]))


def follow_up(scene, turn, rng):
    """A question that makes sense only after the turn before it, or None."""
    if not turn.about or turn.kind == "describe":
        return None
    if len(turn.about) == 1:
        candidates = follow_up_it(scene, turn, turn.about[0], rng)
    else:
        candidates = follow_up_they(turn)
    if not candidates:
        return None
    question, answer, about = rng.choice(candidates)
    return Turn("follow-up", question, answer, about)


def follow_up_it(scene, turn, item, rng):
    said = f"{turn.question} {turn.answer}".lower()
    candidates = []
    if item.place not in said:
        candidates.append(("Where is it?", sentence(item.place), (item,)))
    relation = related(scene, item, "it", rng)
    if relation:
        candidates.append((relation.question, relation.answer, relation.about))
    if isinstance(item, Shape):
        if item.colour in said:
            same = tuple(other for other in scene.shapes if other.colour == item.colour)
            candidates.append(("How many shapes have that colour?", NUMBERS[len(same)] + ".", same))
        else:
            candidates.append(("What colour is it?", sentence(item.colour), (item,)))
        if item.shape not in said:
            candidates.append(("What shape is it?", sentence(f"a {item.shape}"), (item,)))
    return candidates


def follow_up_they(turn):
    shapes = turn.about
    candidates = [("Where are they?", sentence(listing([shape.place for shape in shapes])), ())]
    if len({shape.shape for shape in shapes}) == 1:
        candidates.append(("What colours are they?", sentence(listing([shape.colour for shape in shapes])), ()))
    elif len({shape.colour for shape in shapes}) == 1:
        candidates.append(("What shapes are they?", sentence(listing([f"a {shape.shape}" for shape in shapes])), ()))
    return candidates


def conversation(scene, rng, fits):
    """Turns about a scene in random order, some of them follow-ups, for as long as `fits(turns)`
    holds.
    """
    turns = []
    for _ in range(40):
        turn = follow_up(scene, turns[-1], rng) if turns and rng.random() < 0.5 else None
        turn = turn or ASK[rng.choices(KINDS, WEIGHTS)[0]](scene, rng)
        if not turn or asked_before(turn, turns):
            continue
        if not fits(turns + [turn]):
            break
        turns.append(turn)
    return turns


def asked_before(turn, turns):
    """Whether a question was asked already; "it" may mean something else by now, and one
    description is enough.
    """
    if turn.kind == "describe":
        return any(earlier.kind == "describe" for earlier in turns)
    return "it?" not in turn.question and any(turn.question == earlier.question for earlier in turns)
