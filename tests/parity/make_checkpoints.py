"""Writes the pictures, the tiny random checkpoints and what PyTorch computes from them.

    python make_checkpoints.py [NAME...]

Layout: see README.md beside this file.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import numpy
import torch
from huggingface_hub import save_torch_state_dict
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import AutoTokenizer, logging

from reference import (
    Prismatic, checkpoint_name, decode, load_model, load_picture, load_preprocessor, load_tokenizer, prompt_text, tower_names,
)

HERE = Path(__file__).parent
DINO, SIGLIP = "vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"
STEPS = 24
# Nothing that rounds differently from PyTorch may turn the greedy choice of a fixture.
LEAST_GAP = 0.03

CHECKPOINTS = {
    # Mistral's defaults wherever the sizes allow: eps 1e-6, theta 10000, window 4096.
    "naive_f32": {
        "seed": 1,
        "dtype": torch.float32,
        "strategy": "resize-naive",
        "size": 56,
        "towers": {
            DINO: {"embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0},
            SIGLIP: {"embed_dim": 36, "depth": 4, "num_heads": 3},
        },
        "text": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2},
    },
    # Sharded; every setting of the decoder differs from its default, head_dim from hidden_size /
    # heads, and the window is shorter than any prompt with a picture.
    "letterbox_bf16": {
        "seed": 2,
        "dtype": torch.bfloat16,
        "shard_size": 400_000,
        "strategy": "letterbox",
        "size": 70,
        "towers": {
            DINO: {"embed_dim": 48, "depth": 3, "num_heads": 3},
            SIGLIP: {"embed_dim": 40, "depth": 5, "num_heads": 5, "mlp_ratio": 3.0},
        },
        "text": {
            "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 3,
            "head_dim": 16, "sliding_window": 28, "rms_norm_eps": 1e-5, "rope_theta": 1000.0, "max_position_embeddings": 4096,
        },
    },
    # One encoder alone, which also means a projector of two layers; no tvf_* settings; no window.
    "crop_siglip": {
        "seed": 3,
        "dtype": torch.bfloat16,
        "strategy": "resize-crop",
        "size": 42,
        "towers": {SIGLIP: {"embed_dim": 36, "depth": 3, "num_heads": 2}},
        "text": {
            "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "sliding_window": None,
        },
    },
}
MEANS = {DINO: [0.485, 0.456, 0.406], SIGLIP: [0.5, 0.5, 0.5]}
STDS = {DINO: [0.229, 0.224, 0.225], SIGLIP: [0.5, 0.5, 0.5]}

SENTENCES = [
    "In: What is in the picture?\nOut: There is a small red boat on the water near the shore.",
    "In: Where is the dog?\nOut: The dog is on the left of the tree, and it looks at the other dog.",
    "In: How many people are there?\nOut: There are three people in front of the house on the right.",
    "In: Describe the picture.\nOut: A man with a hat stands on the street and holds a green umbrella over his head.",
    "In: What colour is the car?\nOut: The car on the other side of the street is white, the one in front of it is blue.",
    "In: What does the sign say?\nOut: The sign says that the station is closed in winter.",
]
THINGS = [
    "this", "there", "the colour", "on the left", "near the tree", "the dog",
    "on the water", "a house", "in front", "the sign", "over there", "white",
]
LONG = (
    "Look at the picture for as long as you want and describe what there is to see: the people, the street, the house. "
    "At the end say, in one short sentence, what is {}."
)
# A case's turns, written with one of THINGS in place of {}: the first one whose greedy answer is
# valid text and safe from rounding.
CASES = {
    "short": ["What is {}?"],
    "long": [LONG],
    "unicode": ["¿Qué es {}? 👩‍🚀🦀 naïve – 日本語 <image>\tno"],
    "two_turns": ["Where is {}?", "  It is near the tree, on the left. ", "And what does the sign say?"],
}


# Pictures

def make_pictures(folder):
    """Gradients, waves, hard edges and noise in three very different sizes."""
    folder.mkdir(exist_ok=True)
    random = numpy.random.default_rng(7)
    for name, (width, height) in {"photo": (161, 120), "small": (5, 8), "tall": (13, 391)}.items():
        y, x = numpy.mgrid[0:height, 0:width].astype(float)
        red = 255 * x / width
        green = 128 + 120 * numpy.sin(x / 7) * numpy.cos(y / 11)
        blue = 255 * ((x // 6 + y // 9) % 2)
        noise = random.normal(0, 12, (height, width, 3)) * (y > height / 2)[..., None]
        pixels = (numpy.stack([red, green, blue], axis=2) + noise).clip(0, 255).astype(numpy.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png", optimize=True)


# Tokenizer

def make_tokenizer(pieces=110):
    """A Llama tokenizer: merges learned on SENTENCES, bytes for any other text, and <PAD> added
    after the vocabulary.
    """
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split("\n", "removed"), pre_tokenizers.Metaspace()])
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=pieces, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    names = special + [f"<0x{byte:02X}>" for byte in range(256)] + sorted(learned["vocab"], key=learned["vocab"].get)
    tokenizer = Tokenizer(models.BPE(
        vocab={name: id for id, name in enumerate(names)},
        merges=[tuple(merge) for merge in learned["merges"]],
        unk_token="<unk>", fuse_unk=True, byte_fallback=True,
    ))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in [*special, "<PAD>"]])
    return tokenizer


# Checkpoints

def config_json(recipe, tokenizer):
    pad = tokenizer.token_to_id("<PAD>")
    ids, kwargs = list(recipe["towers"]), list(recipe["towers"].values())
    fused = len(ids) == 2
    dtype = str(recipe["dtype"]).removeprefix("torch.")
    # Rounded up to a multiple of 64 as in the published checkpoint: the rows past <PAD> stand for
    # no token.
    rows = math.ceil((pad + 1) / 64) * 64
    return {
        "arch_specifier": "no-align+fused-gelu-mlp" if fused else "no-align+gelu-mlp",
        "architectures": ["PrismaticForConditionalGeneration"],
        "hf_llm_id": "random",
        "image_resize_strategy": recipe["strategy"],
        "image_sizes": [recipe["size"]] * len(ids),
        "llm_backbone_id": "random-pure",
        "llm_max_length": 2048,
        "model_type": "prismatic",
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": pad,
        "text_config": {"model_type": "mistral", "pad_token_id": pad, "torch_dtype": dtype, "vocab_size": rows, **recipe["text"]},
        "timm_model_ids": ids,
        "timm_override_act_layers": [None] * len(ids),
        "timm_override_kwargs": kwargs,
        "torch_dtype": dtype,
        "use_fused_vision_backbone": fused,
        "vision_backbone_id": "dinosiglip-vit-so-224px" if fused else "siglip-vit-so400m",
    }


def preprocessor_json(recipe):
    ids, size, strategy = list(recipe["towers"]), recipe["size"], recipe["strategy"]
    means, stds = [MEANS[id] for id in ids], [STDS[id] for id in ids]
    settings = {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": strategy,
        "input_sizes": [[3, size, size]] * len(ids),
        "interpolations": ["bicubic"] * len(ids),
        "means": means,
        "processor_class": "PrismaticProcessor",
        "stds": stds,
        "use_fused_vision_backbone": len(ids) == 2,
    }
    if len(ids) == 1:
        return settings
    # The published file has these two rounded to bfloat16, and they are what counts.
    rounded = [torch.tensor(values).bfloat16().tolist() for values in (means, stds)]
    edges = [size, size] if strategy == "resize-naive" else size
    return settings | {
        "tvf_crop_params": [{"output_size": [size, size]}] * len(ids),
        "tvf_do_letterbox": strategy == "letterbox",
        "tvf_letterbox_fill": [int(mean * 255) for mean in means[-1]] if strategy == "letterbox" else None,
        "tvf_normalize_params": [{"inplace": False, "mean": mean, "std": std} for mean, std in zip(*rounded)],
        "tvf_resize_params": [{"antialias": True, "interpolation": 3, "max_size": None, "size": edges}] * len(ids),
    }


def tokenizer_json(tokenizer):
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>", "unk_token": "<unk>"}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(tokenizer.token_to_id(name)): {"content": name, **flags} for name in sorted(special.values(), key=tokenizer.token_to_id)}
    return {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, **special, "clean_up_tokenization_spaces": False,
        "legacy": True, "model_max_length": 2048, "padding_side": "right", "processor_class": "PrismaticProcessor",
        "tokenizer_class": "LlamaTokenizer",
    }


# Queries and keys of gain 2 make attention choose; in the decoder what enters and leaves a layer
# stays near 0.03.
GAINS = {
    "patch_embed": 0.03, "attn.qkv": 1.6, "mlp.fc1": 1.6, "mlp.fc2": 2.0,
    "q_proj": 2.0, "k_proj": 2.0, "o_proj": 0.05, "down_proj": 0.05, "lm_head": 4.0,
    "projector.fc1": 0.4, "projector.fc2": 1.5,
}


BYTES = slice(3, 3 + 256)


def randomize(model, seed, dtype):
    """Weights under which every part of the model counts.

    Logits have a standard deviation near 3. What enters the first norm of an encoder or of the decoder is small, as in a trained model,
    so that the norms' eps counts too.
    """
    generator = torch.Generator().manual_seed(seed)
    last_of_projector = [name for name, _ in model.named_parameters() if name.startswith("projector") and name.endswith("weight")][-1]

    def normal(shape, std, mean=0.0):
        return torch.randn(shape, generator=generator) * std + mean

    for name, weight in model.named_parameters():
        if name.endswith("gamma"):
            value = normal(weight.shape, 0.2, 0.7)
        elif "norm" in name:
            value = normal(weight.shape, 0.2, 1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            value = normal(weight.shape, 0.02 if "patch_embed" in name or "projector" in name else 0.3)
        elif name.endswith(("pos_embed", "cls_token", "reg_token", "embed_tokens.weight")):
            value = normal(weight.shape, 0.03)
        elif name.endswith("attn_pool.latent"):
            value = normal(weight.shape, 1.0)
        else:
            gain = 0.05 if name == last_of_projector else next((gain for part, gain in GAINS.items() if part in name), 1.0)
            value = normal(weight.shape, gain / math.sqrt(weight[0].numel()))
        weight.copy_(value.to(dtype))
    # As in a trained model, answers seldom leave the words for single bytes.
    model.language_model.lm_head.weight[BYTES] *= 0.5


def save_checkpoint(folder, recipe, tokenizer):
    folder.mkdir(parents=True)
    config = config_json(recipe, tokenizer)
    model = Prismatic(config)
    randomize(model, recipe["seed"], recipe["dtype"])
    weights = {checkpoint_name(name): tensor.to(recipe["dtype"]).contiguous() for name, tensor in model.state_dict().items()}
    save_torch_state_dict(weights, folder, max_shard_size=recipe.get("shard_size", "1GB"))
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor_json(recipe))
    write_json(folder / "tokenizer_config.json", tokenizer_json(tokenizer))
    write_json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": config["pad_token_id"],
    })


# References

def answer_case(model, tokenizer, transformers_tokenizer, turns, projected):
    """One case of expected.json, or None where rounding could turn its greedy answer or where the
    answer is no valid text.
    """
    text = prompt_text(turns)
    ids = tokenizer.encode(text).ids
    assert ids == transformers_tokenizer(text)["input_ids"], text
    answer, logprobs, gaps = model.greedy(ids, projected, STEPS)
    words = decode(tokenizer, answer)
    if len(answer) < STEPS or min(gaps) < LEAST_GAP or "\ufffd" in words:
        return None
    assert answer == model.hf_generate(ids, projected, STEPS), text
    return {
        "turns": turns, "prompt": text, "ids": ids, "answer": words, "answer_ids": answer, "logprobs": logprobs, "least_gap": min(gaps),
    }


def first_safe(case, turns, answer):
    for thing in THINGS:
        found = answer([turn.replace("{}", thing) for turn in turns])
        if found:
            return found
    raise SystemExit(f"{case}: no prompt with a safe greedy answer; change the seed or THINGS")


def make_references(folder, pictures):
    checkpoint = folder / "model"
    model, preprocess, tokenizer = load_model(checkpoint), load_preprocessor(checkpoint), load_tokenizer(checkpoint)
    transformers_tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tensors, cases = {}, []

    def add(case, picture, projected, turns):
        def answer(turns):
            return answer_case(model, tokenizer, transformers_tokenizer, turns, projected)

        found = first_safe(f"{folder.name} {picture} {case}", turns, answer)
        name = f"{picture or 'text'}.{case}"
        cases.append({"name": name, "picture": picture, **found})
        tensors[f"{name}.logits"] = model.logits(found["ids"], projected)
        return found

    for path in sorted(pictures.glob("*.png")):
        picture = path.stem
        pixels = preprocess(load_picture(path))
        features = model.features(pixels)
        projected = model.project(features)
        tensors |= {f"{picture}.pixels": pixels, f"{picture}.projected": projected}
        tensors |= {f"{picture}.{name}": tensor for name, tensor in zip(tower_names(model), features)}
        found = {case: add(case, picture, projected, turns) for case, turns in CASES.items()}
        # A conversation with the model's own answer, as a session holds it.
        question = found["short"]["turns"]
        add("own_answer", picture, projected, [*question, found["short"]["answer"], "And what is {}?"])
    for case in ["short", "long"]:
        add(case, None, None, CASES[case])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "expected.safetensors")
    write_json(folder / "expected.json", {"steps": STEPS, "cases": cases})
    report(folder, tensors, cases)


def report(folder, tensors, cases):
    logits = torch.stack([tensor for name, tensor in tensors.items() if name.endswith(".logits")])
    model, expected = (sum(path.stat().st_size for path in files) for files in [folder.glob("model/*"), folder.glob("expected.*")])
    gap = min(case["least_gap"] for case in cases)
    print(f"{folder.name}: model {model} bytes, references {expected} bytes; logits std {logits.std():.2f}; smallest gap {gap:.3f}")
    for name, tensor in tensors.items():
        print(f"  {name} {list(tensor.shape)} std {tensor.std():.3f}")


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def main(names):
    make_pictures(HERE / "pictures")
    tokenizer = make_tokenizer()
    for name in names or CHECKPOINTS:
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(folder / "model", CHECKPOINTS[name], tokenizer)
        make_references(folder, HERE / "pictures")


if __name__ == "__main__":
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    with torch.inference_mode():
        main(sys.argv[1:])
