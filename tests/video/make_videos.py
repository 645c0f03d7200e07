"""Makes the animations of this folder, and what Pillow 12.0.0 makes of them: expected.json has the
duration of each frame in milliseconds and the SHA-256 of its RGB.
`python tests/video/make_videos.py`, with Pillow and numpy.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageSequence

HERE = Path(__file__).parent
COUNT = 12


def frames(width=48, height=36):
    made = []
    for i in range(COUNT):
        image = Image.new("RGB", (width, height), (20, 60, 90))
        draw = ImageDraw.Draw(image)
        draw.rectangle([2, 2, 10, 33], fill=(200, 180, 40))
        draw.ellipse([10 + 2 * i, 8, 22 + 2 * i, 20], fill=(220, 30, 60 + 10 * i))
        made.append(image)
    return made


def main():
    equal, unequal = [100] * COUNT, [100] * 3 + [500] + [100] * 4 + [0] + [200] * 3
    files = {
        "equal.gif": dict(duration=equal), "unequal.gif": dict(duration=unequal), "background.gif": dict(duration=equal, disposal=2),
        "equal.webp": dict(duration=equal, lossless=True), "unequal.webp": dict(duration=unequal, lossless=True),
        "equal.png": dict(duration=equal), "unequal.png": dict(duration=unequal),
    }
    expected = {}
    for name, options in files.items():
        first, *rest = frames()
        first.save(HERE / name, save_all=True, append_images=rest, loop=0, **options)
        shown = []
        for frame in ImageSequence.Iterator(Image.open(HERE / name)):
            rgb = np.asarray(frame.convert("RGB"))
            shown.append({"duration": frame.info["duration"], "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()})
        expected[name] = shown
        print(name, len(shown), [frame["duration"] for frame in shown])
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


main()
