"""The Qwen2-VL model of transformers in a small size, its tokenizer, its prompt, and its Hugging
Face folder.
"""

import json
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from clips import SIDE, random_clip
from questions import WITHOUT_PICTURE, picture_questions, questions

PATCH, MERGE = 14, 2
GRID = SIDE // PATCH
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]
# As in Qwen2-VL's tokenizer.json.
WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
# As in Qwen2-VL's tokenizer_config.json.
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
    "{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}"
    "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer():
    """Qwen2's byte-level BPE, in which every word of the questions and answers is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORD), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(sample_text(), trainer)
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL])
    return tokenizer


def sample_text():
    rng = random.Random("tokenizer")
    yield from ["system\nYou are a helpful assistant.", "user\n", "assistant\n", WITHOUT_PICTURE] * 1000
    for _ in range(1000):
        clip = random_clip(rng)
        for _, question, answer in questions(clip) + picture_questions(clip.shapes[0]):
            yield from (question, answer)


def prompt(vision, question, first=True):
    """A user's turn up to the answer. vision: the placeholder tokens and their marks, or ""."""
    return f"{SYSTEM if first else ''}<|im_start|>user\n{vision}{question}<|im_end|>\n<|im_start|>assistant\n"


def vision_text(grids, kind="video"):
    """The marks with a placeholder for every merged patch of `grids` pairs of frames."""
    pads = f"<|{kind}_pad|>" * (grids * (GRID // MERGE) ** 2)
    return f"<|vision_start|>{pads}<|vision_end|>"


def positions(grids, before, length):
    """Qwen2-VL's position ids [3, length] of a text with `grids` pairs of frames from index
    `before` on.

    The text after a picture or video goes on after the largest position so far, as in the released
    algorithm (transformers 4.45); some later versions count otherwise after videos.
    """
    if not grids:
        return torch.arange(length).expand(3, -1)
    side = GRID // MERGE
    seen = torch.stack(torch.meshgrid(*map(torch.arange, (grids, side, side)), indexing="ij")).flatten(1) + before
    after = length - before - seen.shape[1]
    return torch.cat([
        torch.arange(before).expand(3, -1), seen, torch.arange(after).expand(3, -1) + seen.max() + 1,
    ], dim=1)


def patches(pixels):
    """Qwen2-VL's patches [batch, grids, 16, 1176] of frames [batch, frames, 56, 56, 3] in 0..255."""
    x = torch.from_numpy(np.ascontiguousarray(pixels)).float() / 255
    x = (x - torch.tensor(MEAN)) / torch.tensor(STD)
    n, side = x.shape[0], GRID // MERGE
    x = x.view(n, -1, 2, side, MERGE, PATCH, side, MERGE, PATCH, 3)
    x = x.permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return x.reshape(n, -1, GRID * GRID, 3 * 2 * PATCH * PATCH)


def look(visual, patches):
    """The picture side of transformers' model for batches of 56x56 frames.

    The first part [batch, tokens, width] is what `visual(...)` gives, but takes all pairs of frames
    at once; the second [batch, pairs, 16, width] is what the last block gives.
    """
    n = patches.shape[0]
    x = patches.flatten(0, 1) @ visual.patch_embed.proj.weight.flatten(1).T
    at = torch.arange(GRID * GRID).view(2, 2, 2, 2).permute(0, 2, 1, 3).flatten()
    frequencies = visual.rotary_pos_emb.inv_freq.float()
    angles = torch.cat([(at // GRID)[:, None] * frequencies, (at % GRID)[:, None] * frequencies], dim=1)
    cos, sin = (torch.cat([part, part], dim=1) for part in (angles.cos(), angles.sin()))

    def turn(a):
        left, right = a.chunk(2, dim=-1)
        return a * cos + torch.cat([-right, left], dim=-1) * sin

    for block in visual.blocks:
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(turn(q).to(v.dtype), turn(k).to(v.dtype), v)
        x = x + block.attn.proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    merged = visual.merger.mlp(visual.merger.ln_q(x).unflatten(1, (-1, MERGE * MERGE)).flatten(2))
    return merged.view(n, -1, merged.shape[-1]), x.unflatten(0, (n, -1))


def new_config(tokenizer):
    """config.json, flat as that of the released Qwen2-VL checkpoints."""
    ids = {piece: tokenizer.token_to_id(piece) for piece in SPECIAL}
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "hidden_act": "silu",
        "hidden_size": 128,
        "image_token_id": ids["<|image_pad|>"],
        "initializer_range": 0.02,
        "intermediate_size": 384,
        "max_position_embeddings": 2048,
        "max_window_layers": 4,
        "model_type": "qwen2_vl",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {"mrope_section": [4, 6, 6], "type": "mrope"},
        "rope_theta": 10000.0,
        "sliding_window": 2048,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "video_token_id": ids["<|video_pad|>"],
        "vision_config": {
            "depth": 3,
            "embed_dim": 128,
            "hidden_act": "quick_gelu",
            "hidden_size": 128,
            "in_channels": 3,
            "in_chans": 3,
            "mlp_ratio": 4,
            "model_type": "qwen2_vl",
            "num_heads": 4,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "spatial_patch_size": PATCH,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "vocab_size": (tokenizer.get_vocab_size() + 63) // 64 * 64,
    }


def new_model(config):
    return Qwen2VLForConditionalGeneration(Qwen2VLConfig(**json.loads(json.dumps(config)))).float()


def save_folder(model, tokenizer, folder):
    """Writes everything but the model card, with the tensors named as in the released
    checkpoints.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = new_config(tokenizer)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {
        "bos_token_id": config["bos_token_id"], "do_sample": False,
        "eos_token_id": [config["eos_token_id"], config["bos_token_id"]],
        "pad_token_id": config["bos_token_id"],
    })
    write_json(folder / "preprocessor_config.json", {
        "min_pixels": SIDE * SIDE, "max_pixels": SIDE * SIDE, "patch_size": PATCH, "temporal_patch_size": 2,
        "merge_size": MERGE, "image_mean": MEAN, "image_std": STD,
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor",
    })
    added = {
        str(tokenizer.token_to_id(piece)): {
            "content": piece, "lstrip": False, "normalized": False,
            "rstrip": False, "single_word": False, "special": True,
        }
        for piece in SPECIAL
    }
    write_json(folder / "tokenizer_config.json", {
        "add_prefix_space": False, "added_tokens_decoder": added,
        "additional_special_tokens": SPECIAL[1:], "bos_token": None, "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": "<|im_end|>", "errors": "replace",
        "model_max_length": 2048, "pad_token": "<|endoftext|>", "padding_side": "left",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    })
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE})  # for the processor
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {}
    for name, tensor in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            name = name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
            weights[name] = tensor.detach().to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")
