"""Questions about a clip, each with the one right answer."""

KINDS = ["what moves", "which way", "what stands", "order", "describe"]
WITHOUT_PICTURE = "Show me a video."


def questions(clip):
    """All questions about a clip: (kind, question, answer)."""
    first, *rest = (shape.name for shape in clip.shapes)
    if clip.direction:
        still = f"a {rest[0]}" if rest else "nothing"
        standing = f" and a {rest[0]} stands still" if rest else ""
        return [
            ("what moves", "What moves?", f"a {first}"),
            ("which way", "Which way does it move?", clip.direction),
            ("which way", f"Which way does the {first} move?", clip.direction),
            ("what stands", "What stands still?", still),
            ("describe", "Describe the video.", f"A {first} moves {clip.direction}{standing}."),
        ]
    return [
        ("order", "What comes first?", f"the {first}"),
        ("order", "What comes last?", f"the {rest[0]}"),
        ("what moves", "What moves?", "nothing"),
        ("describe", "Describe the video.", f"First a {first} comes, then a {rest[0]}."),
    ]


def picture_questions(shape):
    """The questions about a still picture of one shape."""
    return [
        ("picture", "What is it?", f"a {shape.name}"),
        ("picture", "What colour is it?", shape.colour),
        ("picture", "What shape is it?", f"a {shape.shape}"),
    ]
