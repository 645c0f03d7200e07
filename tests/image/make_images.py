"""Writes the pictures of this folder and what Pillow and torchvision make of them
(expected.safetensors, cases.json).

    python make_images.py

Needs Pillow 12.0.0 (13 resizes in another order), torchvision, numpy and safetensors. Everything is drawn here, from fixed seeds.
"""
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision.transforms.functional as tvf
from PIL import Image, ImageCms, ImageDraw, ImageOps
from safetensors.numpy import save_file

assert PIL.__version__ == "12.0.0", PIL.__version__
HERE = Path(__file__).parent
RNG = np.random.default_rng(2)

EXPECTED = {}  # name -> array
PROCESS_CASES = []
DECODE_CASES = []


# --- Pictures
# -----------------------------------------------------------------------------
def noise(width, height):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def shapes(width, height):
    """Hard edges and thin lines: overshoot, clipping and antialiasing show on them."""
    image = Image.new("RGB", (width, height), (250, 250, 5))
    draw = ImageDraw.Draw(image)
    for step in range(0, width + height, 7):
        draw.line((step, 0, 0, step), fill=(0, 0, 0) if step % 2 else (255, 0, 0))
    draw.ellipse((width // 5, height // 5, width * 3 // 5, height * 4 // 5), fill=(0, 90, 255))
    draw.rectangle((width // 2, height // 2, width - 3, height - 2), outline=(255, 255, 255), fill=(0, 0, 0))
    return image


def small():
    """Smooth enough that JPEG keeps it, and different under each turn and mirroring."""
    y, x = np.mgrid[0:16, 0:24]
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], -1).astype(np.uint8))


# --- Image processors
# -----------------------------------------------------------------------------
def processor(strategy, size, encoders):
    """A preprocessor_config.json as the Prismatic converter saves it: the tvf_* means and
    deviations are rounded to bfloat16.
    """
    means = [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]][:encoders]
    stds = [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]][:encoders]

    def bf16(values):
        return torch.tensor(values, dtype=torch.bfloat16).float().tolist()

    return {
        "image_processor_type": "PrismaticImageProcessor",
        "use_fused_vision_backbone": encoders == 2,
        "image_resize_strategy": strategy,
        "input_sizes": [[3, size, size]] * encoders,
        "interpolations": ["bicubic"] * encoders,
        "means": means,
        "stds": stds,
        "tvf_resize_params": [
            {
                "antialias": True,
                "interpolation": 3,
                "max_size": None,
                "size": [size, size] if strategy == "resize-naive" else size,
            }
        ]
        * encoders,
        "tvf_crop_params": [{"output_size": [size, size]}] * encoders,
        "tvf_do_letterbox": strategy == "letterbox",
        "tvf_letterbox_fill": [int(x * 255) for x in means[-1]] if strategy == "letterbox" else None,
        "tvf_normalize_params": [{"inplace": False, "mean": bf16(m), "std": bf16(s)} for m, s in zip(means, stds)],
    }


def squares(config, image):
    """What the Prismatic processor makes of a picture before normalization, one for each encoder.
    """
    if config["tvf_do_letterbox"]:
        (width, height), side = image.size, max(image.size)
        x, y = int((side - width) / 2), int((side - height) / 2)
        image = tvf.pad(image, [x, y, x, y], fill=tuple(config["tvf_letterbox_fill"]), padding_mode="constant")
    for resize, crop in zip(config["tvf_resize_params"], config["tvf_crop_params"]):
        resize = {**resize, "interpolation": tvf.InterpolationMode.BICUBIC}
        yield tvf.center_crop(tvf.resize(image, **resize), **crop)


def process(config, image):
    tensors = [tvf.normalize(tvf.to_tensor(s), **n) for s, n in zip(squares(config, image), config["tvf_normalize_params"])]
    return torch.vstack(tensors).numpy()


def process_case(picture, image, strategy, size, encoders):
    config = processor(strategy, size, encoders)
    name = f"{picture}-{strategy}-{size}"
    case = {"name": name, "picture": picture + ".png", "config": config}
    if size < 100:
        EXPECTED[name] = process(config, image)
    else:
        # Too large as numbers: a PNG, before normalization.
        case["square"] = name + ".png"
        next(squares(config, image)).save(HERE / case["square"], optimize=True)
    PROCESS_CASES.append(case)


def process_cases():
    pictures = {
        "noise-97x61": noise(97, 61),
        "noise-31x31": noise(31, 31),
        "noise-24x24": noise(24, 24),
        "noise-24x53": noise(24, 53),
        "noise-70x24": noise(70, 24),
        "noise-5x6": noise(5, 6),
        "noise-1x1": noise(1, 1),
        "noise-1x90": noise(1, 90),
        "noise-301x2": noise(301, 2),
        "shapes-640x427": shapes(640, 427),
        "shapes-203x310": shapes(203, 310),
    }
    for name, image in pictures.items():
        image.save(HERE / f"{name}.png", optimize=True)
        for strategy in ["resize-naive", "resize-crop", "letterbox"]:
            process_case(name, image, strategy, 24, 1)
            if name in ["noise-97x61", "noise-5x6"]:
                process_case(name, image, strategy, 17, 2)
            if name == "shapes-640x427":
                process_case(name, image, strategy, 224, 2)
    # Each value of a sample through both encoders' normalization: a picture of every value, at its
    # own size.
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).convert("RGB")
    ramp.save(HERE / "ramp-16x16.png", optimize=True)
    process_case("ramp-16x16", ramp, "resize-naive", 16, 2)


# --- Decoding
# -----------------------------------------------------------------------------
def png(depth, color, rows, extra=b""):
    """A PNG in a form that Pillow does not write; `rows` are its scan lines without their filter
    byte.
    """
    width = rows.shape[1] * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color])
    return png_file(width, rows.shape[0], depth, color, extra + png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + r.tobytes() for r in rows))))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_file(width, height, depth, color, chunks):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + png_chunk(b"IEND", b"")


def decode_case(name, tolerance=0, orientation=True, expected=None):
    """The file `name` decodes to what Pillow makes of it, within `tolerance`."""
    image = Image.open(HERE / name)
    if orientation:
        image = ImageOps.exif_transpose(image)
    array = np.asarray(image.convert("RGB")) if expected is None else expected
    key = f"decode:{name}" + ("" if orientation else ":as-stored")
    EXPECTED[key] = np.ascontiguousarray(array, dtype=np.uint8)
    DECODE_CASES.append({"file": name, "expected": key, "tolerance": tolerance, "apply_orientation": orientation})


def decode_cases():
    rgb = small()
    gray = rgb.convert("L")
    alpha = Image.fromarray(np.asarray(gray.transpose(Image.Transpose.ROTATE_180)).copy())
    alpha.putpixel((3, 3), 0)
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    la = gray.copy()
    la.putalpha(alpha)
    palette = rgb.quantize(13)
    cmyk = Image.fromarray(np.dstack([np.asarray(rgb), np.asarray(gray) // 3]), "CMYK")
    noisy = noise(32, 32)

    def save(image, name, tolerance=0, **options):
        image.save(HERE / name, **options)
        decode_case(name, tolerance)

    # PNG
    for mode, image in {"rgb": rgb, "gray": gray, "rgba": rgba, "la": la, "palette": palette, "bits": gray.convert("1")}.items():
        save(image, f"{mode}.png")
    save(palette, "palette-transparent.png", transparency=4)
    save(rgb, "rgb-transparent.png", transparency=(0, 0, 0))
    (HERE / "gray-2bit.png").write_bytes(png(2, 0, RNG.integers(0, 256, (5, 3), dtype=np.uint8)))
    (HERE / "gray-4bit.png").write_bytes(png(4, 0, RNG.integers(0, 256, (5, 3), dtype=np.uint8)))
    decode_case("gray-2bit.png")
    decode_case("gray-4bit.png")
    for name, color, samples in [("rgb-16bit", 2, 3), ("rgba-16bit", 6, 4), ("la-16bit", 4, 2)]:
        (HERE / f"{name}.png").write_bytes(png(16, color, RNG.integers(0, 256, (5, 7 * samples * 2), dtype=np.uint8)))
        decode_case(f"{name}.png")
    deep = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    # Where we differ from Pillow on purpose: it clips 16-bit gray at 255.
    upper_half = np.repeat((deep >> 8)[..., None], 3, -1)
    Image.fromarray(deep).save(HERE / "gray-16bit.png")
    decode_case("gray-16bit.png", expected=upper_half)

    # BMP
    for mode, image in {"rgb": rgb, "gray": gray, "palette": palette, "bits": gray.convert("1")}.items():
        save(image, f"{mode}.bmp")

    # GIF; the animations' first frame covers the picture
    save(palette, "palette.gif")
    save(palette, "interlaced.gif", interlace=1)
    save(palette, "transparent.gif", transparency=4)
    save(palette, "animated.gif", save_all=True, append_images=[noise(24, 16).quantize(8)])

    # WebP
    save(rgb, "rgb.webp", lossless=True)
    save(rgba, "rgba.webp", lossless=True, exact=True)
    save(rgb, "lossy.webp", tolerance=2, quality=90)
    save(rgb, "animated.webp", save_all=True, append_images=[noise(24, 16)], lossless=True)

    # TIFF
    for mode, image in {"rgb": rgb, "gray": gray, "rgba": rgba, "bits": gray.convert("1")}.items():
        save(image, f"{mode}.tiff")
    for compression in ["tiff_lzw", "tiff_adobe_deflate", "packbits"]:
        save(rgb, f"{compression.removeprefix('tiff_')}.tiff", compression=compression)
    save(cmyk, "cmyk.tiff", tolerance=1)
    Image.fromarray(deep).save(HERE / "gray-16bit.tiff")
    decode_case("gray-16bit.tiff", expected=upper_half)

    # JPEG. Where color is stored at half the resolution, decoders differ in how they interpolate
    # it.
    save(rgb, "rgb.jpg", tolerance=4, quality=90)
    save(rgb, "subsampling-none.jpg", tolerance=2, quality=90, subsampling=0)
    save(rgb, "subsampling-422.jpg", tolerance=4, quality=90, subsampling=1)
    save(noisy, "noise.jpg", tolerance=4, quality=85)
    save(noisy, "progressive.jpg", tolerance=4, quality=85, progressive=True)
    save(gray, "gray.jpg", tolerance=2, quality=90)
    save(cmyk, "cmyk.jpg", tolerance=2, quality=95)
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes(12)  # The time of its making.
    save(rgb, "profile.jpg", tolerance=4, quality=90, icc_profile=bytes(profile))

    # Orientations
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        name = f"orientation-{orientation}.jpg"
        rgb.save(HERE / name, quality=95, subsampling=0, exif=exif)
        decode_case(name, tolerance=2)
        decode_case(name, tolerance=2, orientation=False)
        for kind, options in {"png": {"exif": exif}, "webp": {"exif": exif, "lossless": True}, "tiff": {"tiffinfo": {0x0112: orientation}}}.items():
            name = f"orientation-{orientation}.{kind}"
            rgb.save(HERE / name, **options)
            decode_case(name)
            # Pillow turns a TIFF as it opens it, so there the picture itself is what is stored.
            decode_case(name, orientation=False, expected=np.asarray(rgb) if kind == "tiff" else None)
    # A thumbnail within the EXIF data has an end of its own; data after the end is none of ours.
    exif = Image.Exif()
    exif[0x0112] = 6
    thumbnail = (HERE / "gray.jpg").read_bytes()
    rgb.save(HERE / "trailer.jpg", quality=90, exif=exif, comment=thumbnail)
    with open(HERE / "trailer.jpg", "ab") as file:
        file.write(b"\xff\xda and more")
    decode_case("trailer.jpg", tolerance=4)


# --- Files that claim too much
# -----------------------------------------------------------------------------
def hostile():
    idat = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    files = {
        "side-65535.png": png_file(65535, 65535, 8, 2, idat),
        "side-20000.png": png_file(20000, 20000, 8, 2, idat),
        "side-2147483647.png": png_file(2**31 - 1, 2**31 - 1, 16, 6, idat),
        "thin-100000x1.png": png_file(100_000, 1, 8, 0, idat),
        "empty-0x0.png": png_file(0, 0, 8, 2, idat),
        "side-65535.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;",
        # The canvas is a pixel, the frame in it is not.
        "frame-65535.gif": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;",
        "empty-0x0.gif": b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";",
        "side-60000.bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
        "side-2147483647.bmp": b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 2**31 - 1, 2**31 - 1, 1, 24, 0, 0, 0, 0, 0, 0),
        "side-16384.webp": webp(b"VP8L", b"\x2f" + struct.pack("<I", 16383 | 16383 << 14) + bytes(20)),
        "canvas-16777216.webp": webp(b"VP8X", struct.pack("<I", 0) + b"\xff\xff\xff\xff\xff\xff"),
        "side-65535.tiff": tiff(65535, 65535, 8),
        "side-4294967295.tiff": tiff(2**32 - 1, 2**32 - 1, 1000),
    }
    start = bytearray((HERE / "rgb.jpg").read_bytes())
    at = start.index(b"\xff\xc0")
    start[at + 5 : at + 9] = struct.pack(">HH", 65535, 65535)
    files["side-65535.jpg"] = bytes(start)
    (HERE / "hostile").mkdir(exist_ok=True)
    for name, content in files.items():
        (HERE / "hostile" / name).write_bytes(content)


def webp(kind, content):
    chunk = kind + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def tiff(width, height, strip_bytes):
    """One strip of RGB that is not there."""
    tags = [(256, width), (257, height), (258, 8), (259, 1), (262, 2), (273, 8), (277, 3), (278, height), (279, strip_bytes)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


process_cases()
decode_cases()
hostile()
save_file(EXPECTED, HERE / "expected.safetensors")


def lines(cases):
    return ",\n".join(json.dumps(case) for case in cases)


(HERE / "cases.json").write_text(f'{{"process": [\n{lines(PROCESS_CASES)}\n], "decode": [\n{lines(DECODE_CASES)}\n]}}\n')
