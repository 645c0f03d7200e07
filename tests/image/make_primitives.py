"""Makes tests/image/primitives.json: SHA-256 of what Pillow 12.0.0 and transformers 5.24 make of
the
pictures in tests/models/pictures, and sizes of transformers' smart_resize.
`python tests/image/make_primitives.py`, with tests/models/requirements.txt.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from transformers.image_transforms import center_crop, normalize, rescale
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

HERE = Path(__file__).parent
PICTURES = HERE.parent / "models" / "pictures"
FILTERS = {"nearest": Image.NEAREST, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "lanczos": Image.LANCZOS}


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def main():
    resized, cropped, cut, padded, values = [], [], [], [], []
    for name in ["smooth", "noise", "wide", "tall"]:
        image = Image.open(PICTURES / f"{name}.png").convert("RGB")
        for kind, number in FILTERS.items():
            for size in [(28, 28), (101, 33), (7, 160), (image.width, image.height), (1, 1)]:
                resized.append({"picture": name, "filter": kind, "size": size, "sha256": digest(image.resize(size, number))})
        for size in [(20, 31), (45, 44), (130, 160), (41, 170)]:
            centered = center_crop(np.asarray(image), (size[1], size[0]), data_format="channels_last", input_data_format="channels_last")
            cropped.append({"picture": name, "size": size, "sha256": digest(centered.astype(np.uint8))})
        for place, size in [((0, 0), (28, 28)), ((7, 12), (33, 20)), ((30, 40), (50, 9)), ((300, 2), (4, 5))]:
            box = (*place, place[0] + size[0], place[1] + size[1])
            cut.append({"picture": name, "place": place, "size": size, "sha256": digest(image.crop(box))})
        border = (3, 0, 5, 9)
        padded.append({"picture": name, "border": border, "sha256": digest(ImageOps.expand(image, border, (10, 20, 30)))})
        scaled = rescale(np.asarray(image).transpose(2, 0, 1), 1 / 255, data_format="channels_first", input_data_format="channels_first")
        mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
        planes = normalize(scaled, mean, std, data_format="channels_first", input_data_format="channels_first")
        values.append({"picture": name, "rescaled": digest(scaled.astype(np.float32)), "planes": digest(planes.astype(np.float32))})
    random = np.random.default_rng(3)
    sizes = []
    for height, width in [(14, 14), (42, 70), (70, 98), (1, 190), (3000, 4000), *random.integers(5, 3000, (40, 2)).tolist()]:
        for factor, least, most in [(28, 3136, 12845056), (28, 3136, 1003520), (32, 65536, 200000), (28, 50176, 60000)]:
            try:
                sizes.append([height, width, factor, least, most, *smart_resize(height, width, factor, least, most)])
            except ValueError:
                sizes.append([height, width, factor, least, most, 0, 0])
    found = {"resized": resized, "cropped": cropped, "cut": cut, "padded": padded, "values": values, "sizes": sizes}
    lines = [f' "{key}": [\n' + ",\n".join("  " + json.dumps(entry) for entry in entries) + "\n ]" for key, entries in found.items()]
    (HERE / "primitives.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
