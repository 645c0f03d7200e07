"""Opens a quantized folder that the library saved with MLX's own loader, and compares every tensor
with the model that it was made of.

    python check_saved.py FOLDER [SOURCE]

SOURCE is models/tiny unless it is named. Each module that was quantized must have, bit for bit, what mx.quantize makes of the source's
tensor, and the same numbers after mx.dequantize; all other tensors must be the source's own. The first difference ends it.
"""

import json
import sys
from collections import Counter
from pathlib import Path

import mlx.core as mx

TINY = Path(__file__).parents[2] / "models" / "tiny"


def read_tensors(folder):
    """All tensors of a folder by name; its files must be marked as MLX's."""
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors, formats = {}, []
    for file in files:
        arrays, metadata = mx.load(str(folder / file), return_metadata=True)
        tensors |= arrays
        formats.append(metadata.get("format"))
    return tensors, formats


def read_json(path):
    return json.loads(path.read_text())


def require(same, what):
    if not same:
        sys.exit(f"DIFFERENT: {what}")


def equal(a, b):
    """Bit for bit: as numbers, NaN would differ from itself and -0 be 0."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((a.view(mx.uint8) == b.view(mx.uint8)).all())


def scheme_of(config, module):
    """As mlx-lm reads it: a module's own scheme, or else that of all."""
    scheme = config["quantization"].get(module, config["quantization"])
    require(scheme is not False, f"{module} has scales; config.json says {scheme}")
    return scheme["group_size"], scheme["bits"], scheme.get("mode", "affine")


def check(folder, source):
    config = read_json(folder / "config.json")
    require("quantization" in config, f"{folder} is not quantized")
    require(config["quantization"] == config.get("quantization_config"), "the two fields of config.json")
    saved, formats = read_tensors(folder)
    original, _ = read_tensors(source)
    require(set(formats) == {"mlx"}, f"the files' metadata: format is {formats}")
    modules = [name.removesuffix(".scales") for name in saved if name.endswith(".scales") and name not in original]
    count = Counter()
    for module in modules:
        how = scheme_of(config, module)
        group_size, bits, mode = how
        theirs = mx.quantize(original.pop(f"{module}.weight"), group_size, bits, mode=mode)
        parts = ("weight", "scales", "biases")[: len(theirs)]  # biases in the affine mode only
        ours = [saved.pop(f"{module}.{part}") for part in parts]
        for part, a, b in zip(parts, ours, theirs):
            require(equal(a, b), f"{module}.{part}, {mode}, {bits} bits in groups of {group_size}")
        numbers = [mx.dequantize(*arrays, group_size=group_size, bits=bits, mode=mode) for arrays in (ours, theirs)]
        require(equal(*numbers), f"{module}, dequantized")
        count[how] += 1
    require(saved.keys() == original.keys(), f"names: {sorted(saved.keys() ^ original.keys())}")
    for name, tensor in saved.items():
        require(equal(tensor, original[name]), name)
        # What was quantized already must still be read in the scheme that it was written in.
        if name.endswith(".scales"):
            module = name.removesuffix(".scales")
            before, now = scheme_of(read_json(source / "config.json"), module), scheme_of(config, module)
            require(before == now, f"{module}: config.json said {before} and says {now}")
    for (group_size, bits, mode), modules in sorted(count.items()):
        print(f"{modules:4} modules in {bits} bits and groups of {group_size}, {mode}: as mx.quantize has them, bit for bit")
    print(f"{len(saved):4} tensors as in {source.name}, bit for bit; format={formats[0]}")


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    check(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else TINY)
