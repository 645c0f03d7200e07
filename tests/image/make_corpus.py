"""Makes tests/image/corpus: small files of real encoders, and the SHA-256 of the RGB that Pillow
12.0.0 makes of each. `python tests/image/make_corpus.py`, with Pillow and numpy.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent / "corpus"


def picture(width, height, seed):
    """Smooth colors, an edge and some noise: what chroma upsampling and rounding show at."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    wave = lambda a, b, c: 127.5 + 127.5 * np.sin(a * x / width + b * y / height + c)
    values = np.stack([wave(7, 3, 0), wave(-4, 9, 1), wave(2, -6, 2)], -1)
    values[(x > width // 3) & (y > height // 2)] = [220, 30, 60]
    values += random.normal(0, 12, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def main():
    HERE.mkdir(exist_ok=True)
    for old in HERE.iterdir():
        old.unlink()
    sizes = [(61, 47), (16, 16), (33, 90), (1, 1), (17, 8)]
    save = lambda image, name, **options: image.save(HERE / name, **options)
    for i, (width, height) in enumerate(sizes):
        image = picture(width, height, i)
        for name, subsampling in [("444", 0), ("422", 1), ("420", 2)]:
            save(image, f"{name}_{width}x{height}.jpg", quality=[30, 60, 75, 90, 95][i], subsampling=subsampling)
        save(image, f"progressive_{width}x{height}.jpg", quality=80, progressive=True)
        save(image.convert("L"), f"gray_{width}x{height}.jpg", quality=85)
    photo = picture(70, 53, 9)
    save(photo, "restarts.jpg", quality=75, restart_marker_blocks=3)
    save(photo, "optimized.jpg", quality=50, optimize=True)
    save(photo, "rgb.jpg", quality=90, keep_rgb=True)
    save(photo.convert("CMYK"), "cmyk.jpg", quality=90)
    # Its inks are taken for YCCK: Adobe's marker says so in its last byte.
    ycck = bytearray((HERE / "cmyk.jpg").read_bytes())
    ycck[ycck.find(b"Adobe") + 11] = 2
    (HERE / "ycck.jpg").write_bytes(ycck)
    save(photo, "deflated.png")
    save(photo.quantize(17), "palette.png")
    save(photo.quantize(17), "transparent_palette.png", transparency=3)
    save(photo.convert("L"), "gray.png")
    save(photo.convert("1"), "bits.png")
    with_alpha = photo.convert("RGBA")
    with_alpha.putalpha(photo.convert("L"))
    save(with_alpha, "alpha.png")
    save(with_alpha.convert("LA"), "gray_alpha.png")
    save(photo.quantize(32), "one.gif")
    save(photo.quantize(32), "several.gif", save_all=True, append_images=[picture(70, 53, 10).quantize(32)])
    save(photo, "plain.bmp")
    save(photo.quantize(9), "palette.bmp")
    for compression in ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        save(photo, f"{compression}.tiff", compression=compression)
    save(photo, "lossy.webp", quality=70)
    save(photo, "lossless.webp", lossless=True)
    save(with_alpha, "alpha.webp", quality=80)
    found = {}
    for path in sorted(HERE.iterdir()):
        image = Image.open(path)
        image.seek(0)
        rgb = image.convert("RGB")
        found[path.name] = {"size": list(rgb.size), "sha256": hashlib.sha256(rgb.tobytes()).hexdigest()}
    (HERE / "expected.json").write_text(json.dumps(found, indent=1) + "\n")


main()
