"""The PyTorch reference on any checkpoint folder of this format, and how far another program's
numbers are from it.

    python compare.py MODEL_DIR IMAGE --prompt "What is this?" [--prompt ...] [--out stages.safetensors] [--ours stages.safetensors]

Every --prompt is a turn of one conversation: a question, an answer, a question and so on. Both files hold the tensors `pixels`,
`image_features`, `logits` (of every position of the prefill) and `input_ids`, -1 where a picture's features stand.
`examples/stages.rs`, with --cpu, writes --ours.
EXIF orientation is not applied.
"""

import argparse
import sys

import torch
from safetensors.torch import load_file, save_file

from reference import load_model, load_picture, load_preprocessor, load_tokenizer, prompt_text

TOLERANCE = 5e-4


def stages(folder, image, turns):
    model, tokenizer = load_model(folder), load_tokenizer(folder)
    pixels = load_preprocessor(folder)(load_picture(image))
    features = model.features(pixels)
    projected = model.project(features)
    ids = tokenizer.encode(prompt_text(turns)).ids
    rows = ids[:1] + [-1] * projected.shape[-2] + ids[1:]
    return {
        "pixels": pixels, "image_features": projected, "logits": model.logits_of_all(ids, projected), "input_ids": torch.tensor(rows),
    }


def differs(name, ours, theirs):
    """Prints one line; true where the tensors are further apart than they may be."""
    if ours is None:
        print(f"{name:16} missing")
        return True
    ours, theirs = ours.squeeze(), theirs.squeeze()
    if ours.shape != theirs.shape:
        print(f"{name:16} shape {list(ours.shape)}, expected {list(theirs.shape)}")
        return True
    furthest = float((ours.double() - theirs.double()).abs().max())
    allowed = 0 if name in ["pixels", "input_ids"] else TOLERANCE
    # Written so that NaN fails.
    within = furthest <= allowed
    print(f"{name:16} furthest {furthest:.2e}, allowed {allowed:.0e}{'' if within else '  <- TOO FAR'}")
    return not within


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("image")
    parser.add_argument("--prompt", action="append", required=True, help="may be repeated")
    parser.add_argument("--out", help="write the reference's tensors here")
    parser.add_argument("--ours", help="compare with the tensors in this file")
    arguments = parser.parse_args()

    reference = stages(arguments.model, arguments.image, arguments.prompt)
    for name, tensor in reference.items():
        print(f"{name:16} {list(tensor.shape)} mean {tensor.double().mean():.6f} std {tensor.double().std():.6f}")
    if arguments.out:
        save_file({name: tensor.contiguous() for name, tensor in reference.items()}, arguments.out)
    if arguments.ours:
        ours = load_file(arguments.ours)
        if any([differs(name, ours.get(name), tensor) for name, tensor in reference.items()]):
            sys.exit("not the same")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
