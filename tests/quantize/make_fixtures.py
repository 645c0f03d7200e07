"""Writes what MLX's own Python package makes of a matrix and of a model, and what PyTorch computes
from that model.

    python make_fixtures.py

Layout: see README.md beside this file.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy
import torch
from transformers import logging

HERE = Path(__file__).parent
PARITY = HERE.parent / "parity"
sys.path.insert(0, str(PARITY))
from make_checkpoints import SIGLIP, make_tokenizer, save_checkpoint, write_json  # noqa: E402
from reference import load_model, load_picture, load_preprocessor, load_tokenizer, prompt_text  # noqa: E402

SCHEMES = [("affine", bits, group_size) for bits in (2, 3, 4, 5, 6, 8) for group_size in (32, 64, 128)]
SCHEMES += [("mxfp4", 4, 32), ("mxfp8", 8, 32), ("nvfp4", 4, 16)]

# Widths that 64 divides, but for SigLIP's MLP: 96 here, 4304 in the model that is published.
RECIPE = {
    "seed": 4,
    "dtype": torch.bfloat16,
    "strategy": "resize-naive",
    "size": 28,
    "towers": {SIGLIP: {"embed_dim": 64, "depth": 3, "num_heads": 2, "mlp_ratio": 1.5, "patch_size": 7}},
    "text": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
}
# As mlx-lm writes it: the mode with the scheme of most modules, exceptions without. The last block
# of an encoder is never run.
DEFAULT = {"group_size": 64, "bits": 4, "mode": "affine"}
EXCEPTIONS = {
    "language_model.lm_head": {"group_size": 64, "bits": 8},
    "language_model.model.embed_tokens": {"group_size": 32, "bits": 6},
    "vision_backbone.featurizer.blocks.2.attn.qkv": {"group_size": 32, "bits": 8},
    "projector.fc2": False,
}
QUESTION = "What is there in the picture?"


def make_schemes(path):
    """Rows of several magnitudes and the odd ones: nothing but zeros, one number only, all
    negative, a far outlier.
    """
    random = numpy.random.default_rng(5)
    rows = random.normal(0, 1, (8, 256)) * numpy.array([[1], [0.02], [30], [1e-6], [0], [1], [1], [1]])
    rows[5] = 0.7
    rows[6] = -abs(rows[6]) - 1
    rows[7, 100] = 500
    matrix = mx.array(rows.astype(numpy.float32)).astype(mx.bfloat16)
    arrays = {"matrix": matrix}
    for mode, bits, group_size in SCHEMES:
        packed = mx.quantize(matrix, group_size, bits, mode=mode)  # biases in the affine mode only
        parts = dict(zip(["weight", "scales", "biases"], packed))
        arrays |= {f"{mode}-{bits}-{group_size}.{part}": array for part, array in parts.items()}
        numbers = mx.dequantize(*packed, group_size=group_size, bits=bits, mode=mode)
        arrays[f"{mode}-{bits}-{group_size}.dequantized"] = numbers
    mx.save_safetensors(str(path), arrays, {"format": "mlx"})


def scheme_of(module, weight):
    """None where MLX's community leaves it: what is no linear layer or embedding, and rows that the
    group size does not divide.
    """
    scheme = EXCEPTIONS.get(module, DEFAULT)
    is_matrix = weight.ndim == 2
    return scheme if scheme and is_matrix and weight.shape[1] % scheme["group_size"] == 0 else None


def quantize(weights):
    """The tensors of the quantized model, and their numbers as floats."""
    stored, floats = {}, {}
    for name, tensor in weights.items():
        module, _, part = name.rpartition(".")
        scheme = scheme_of(module, tensor) if part == "weight" else None
        if scheme is None:
            stored[name], floats[name] = tensor, tensor.astype(mx.float32)
            continue
        how = scheme["group_size"], scheme["bits"]
        weight, scales, biases = mx.quantize(tensor, *how)
        stored |= {name: weight, f"{module}.scales": scales, f"{module}.biases": biases}
        # Activations are f32 in these tests, and so is what a quantized matrix is multiplied as.
        floats[name] = mx.dequantize(weight, scales.astype(mx.float32), biases.astype(mx.float32), *how)
    return stored, floats


def write_weights(folder, arrays):
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "mlx"})


def compute(folder):
    """What PyTorch computes from a checkpoint."""
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    pixels = load_preprocessor(folder)(load_picture(PARITY / "pictures" / "photo.png"))
    projected = model.project(model.features(pixels))
    ids = tokenizer.encode(prompt_text([QUESTION])).ids
    return {
        "ids": torch.tensor(ids, dtype=torch.int32),
        "projected": projected,
        "picture.logits": model.logits_of_all(ids, projected),
        "text.logits": model.logits_of_all(ids),
    }


def make_model(folder):
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory() as temporary:
        source, copy = Path(temporary) / "source", Path(temporary) / "copy"
        save_checkpoint(source, RECIPE, make_tokenizer())
        stored, floats = quantize(mx.load(str(source / "model.safetensors")))
        for place, arrays in [(folder, stored), (copy, floats)]:
            shutil.copytree(source, place)
            write_weights(place, arrays)
        before, expected = compute(source), compute(copy)
    config = json.loads((folder / "config.json").read_text())
    quantization = DEFAULT | EXCEPTIONS
    write_json(folder / "config.json", config | {"quantization": quantization, "quantization_config": quantization})
    arrays = {name: mx.array(tensor.numpy()) for name, tensor in expected.items()}
    mx.save_safetensors(str(HERE / "expected.safetensors"), arrays)
    for name in ["projected", "picture.logits", "text.logits"]:
        moved = (expected[name] - before[name]).abs().max()
        print(f"{name} {list(expected[name].shape)} std {expected[name].std():.3f}; quantizing moves it by up to {moved:.3f}")


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    mx.set_default_device(mx.cpu)
    make_schemes(HERE / "schemes.safetensors")
    with torch.inference_mode():
        make_model(HERE / "mlx-4bit")
