"""Makes tests/models/qwen2_vl and qwen2_5_vl (the hub's form: flat, tied), qwen2_vl_untied and
qwen2_5_vl_untied (as transformers 5 saves them: nested, with a head), and what transformers makes of
them. With names, only these.
`python tests/models/make_qwen2_vl.py`, with requirements.txt.
"""

import copy
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig, Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from reference import HERE, byte_level, greedy, hub_names, pictures, randomize, save, write_json

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]
# The published models'
# (https://huggingface.co/Qwen/Qwen2-VL-2B-Instruct/blob/main/chat_template.json).
TEMPLATE = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] == 'video' or 'video' in content %}"
    "{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
image = lambda name: {"type": "image", "name": name}
text = lambda words: {"type": "text", "text": words}
user = lambda *parts: {"role": "user", "content": list(parts)}
PROCESSORS = {"qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor"}
SCENARIOS = {
    "one": [user(image("smooth"), text("What is in the picture?"))],
    "two": [user(image("wide"), text("The left one is red, and"), image("noise"), text(" the right one?"))],
    "messages": [
        user(image("smooth"), text("What is in the picture?")),
        {"role": "assistant", "content": [text("A cat and a dog; 12 of them.")]},
        user(text("Describe it\nin one word."), image("tall")),
    ],
    "text": [user(text("größer, naïve, 图片里有什么?"))],
    "system": [{"role": "system", "content": [text("Be brief.")]}, user(image("noise"), text("How many shapes?"))],
}


def rename(name):
    """transformers' names in memory to the hub's."""
    if name == "lm_head.weight":
        return None
    name = name.removeprefix("model.")
    return f"model.{name.removeprefix('language_model.')}" if name.startswith("language_model.") else name


# The two families: configuration, model and vision_config. Windows of 56 pixels are two by two
# merged squares, so that these small pictures have several, whole and cut.
FAMILIES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration, {
        "depth": 3, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "in_chans": 3, "hidden_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    }),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, {
        "depth": 4, "hidden_size": 32, "intermediate_size": 52, "num_heads": 2, "in_chans": 3, "out_hidden_size": 64, "patch_size": 14,
        "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2, "window_size": 56, "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2, "hidden_act": "silu",
    }),
}


def config(family, vocab, tokens, tied):
    ids = {name: tokens.token_to_id(token) for name, token in [
        ("bos_token_id", "<|endoftext|>"), ("eos_token_id", "<|im_end|>"), ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"), ("vision_token_id", "<|vision_pad|>"), ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
    ]}
    return {
        "model_type": family, "architectures": [FAMILIES[family][1].__name__], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": vocab, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "hidden_act": "silu",
        "max_position_embeddings": 4096, "sliding_window": 4096, "use_sliding_window": False, "max_window_layers": 4,
        "tie_word_embeddings": tied, "torch_dtype": "bfloat16",
        "vision_config": FAMILIES[family][2],
    } | ids


def make(name, seed, tied):
    if sys.argv[1:] and name not in sys.argv[1:]:
        return
    folder, family = HERE / name, name.removesuffix("_untied")
    config_class, model_class, vision = FAMILIES[family]
    tokens = byte_level(SPECIAL)
    vocab = (tokens.get_vocab_size() + 7) // 8 * 8
    flat = config(family, vocab, tokens, tied)
    full = config_class(**{k: v for k, v in json.loads(json.dumps(flat)).items() if k not in ("model_type", "architectures")})
    for part in (full, full.text_config, full.vision_config):
        part._attn_implementation = "eager"
    assert full.text_config.hidden_size == 64 and full.vision_config.depth == vision["depth"], full
    model = randomize(model_class(full), seed)
    if tied:
        model.tie_weights()
    processor = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": PROCESSORS[family], "min_pixels": 3136, "max_pixels": 12544,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    settings = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    generation = {"bos_token_id": flat["bos_token_id"], "eos_token_id": [flat["eos_token_id"], flat["bos_token_id"]], "do_sample": True}
    tensors = hub_names(model.state_dict(), rename)
    if tied:
        save(folder / "model", tensors, flat, processor, tokens, settings | {"chat_template": TEMPLATE}, None, generation)
    else:
        # As transformers itself writes it, in shards.
        copy.deepcopy(model).bfloat16().save_pretrained(folder / "model", max_shard_size="120KB")

        written = json.loads((folder / "model" / "config.json").read_text())
        weights = {p.name: p for p in (folder / "model").glob("*.safetensors")}
        print(name, sorted(weights), sorted(written), list(load_file(next(iter(weights.values()))))[:3])
        write_json(folder / "model" / "preprocessor_config.json", processor)
        tokens.save(str(folder / "model" / "tokenizer.json"))
        write_json(folder / "model" / "tokenizer_config.json", settings)
        (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
        write_json(folder / "model" / "generation_config.json", generation)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = TEMPLATE
    settings = {k: v for k, v in processor.items() if k not in ("image_processor_type", "processor_class")}
    image_processor = Qwen2VLImageProcessorPil(**settings)
    expected, cases = {}, {}
    shown = pictures()
    for scenario, messages in SCENARIOS.items():
        names = [part["name"] for message in messages for part in message["content"] if part["type"] == "image"]
        rendered = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = {}
        if names:
            # A picture at a time: the processor wants them in one batch otherwise.
            inputs = dict(image_processor(images=[shown[n] for n in names], return_tensors="pt"))
            for grid in inputs["image_grid_thw"].tolist():
                pads = grid[0] * grid[1] * grid[2] // 4
                rendered = rendered.replace("<|image_pad|>", "<|placeholder|>" * pads, 1)
            rendered = rendered.replace("<|placeholder|>", "<|image_pad|>")
        prompt = fast(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]

        def types(ids):
            return (ids == flat["image_token_id"]).int()

        def forward(generated):
            ids = torch.cat([prompt, torch.tensor([generated], dtype=prompt.dtype)], 1) if generated else prompt
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | inputs
            if names:
                given["mm_token_type_ids"] = types(ids)
            with torch.no_grad():
                return model(**given).logits[0]

        given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)} | inputs
        if names:
            given["mm_token_type_ids"] = types(prompt)
        answer = model.generate(**given, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=vocab - 1, pad_token_id=0)
        cached = answer[0, prompt.shape[1]:].tolist()
        rows = forward([])
        out = greedy(lambda generated: forward(generated)[-1])
        assert out == cached, (scenario, out, cached)
        if names:
            positions, _ = model.model.get_rope_index(prompt, types(prompt), image_grid_thw=inputs["image_grid_thw"])
            expected[f"{scenario}.pixels"] = inputs["pixel_values"].contiguous()
            with torch.no_grad():
                features = model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
            features = getattr(features, "pooler_output", features)
            expected[f"{scenario}.features"] = torch.cat(list(features)).contiguous().clone()
        else:
            positions = torch.arange(prompt.shape[1]).expand(3, 1, -1)
        expected[f"{scenario}.positions"] = positions[:, 0].int().contiguous().clone()
        expected[f"{scenario}.logits"] = rows[-8:].contiguous().clone()
        cases[scenario] = {
            "messages": messages, "images": names, "ids": prompt[0].tolist(), "greedy": out,
            "grids": inputs["image_grid_thw"].tolist() if names else [],
        }
        print(name, scenario, prompt.shape, cases[scenario]["grids"], "logits std", float(rows.std()), out)
    save_file(expected, folder / "expected.safetensors")
    write_json(folder / "cases.json", cases)


make("qwen2_vl", 3, True)
make("qwen2_vl_untied", 6, False)
make("qwen2_5_vl", 8, True)
make("qwen2_5_vl_untied", 11, False)
