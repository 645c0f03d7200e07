"""Makes tests/models/paligemma and paligemma2: small random checkpoints in the hub's form, and what
transformers makes of them. `python tests/models/make_paligemma.py`, with requirements.txt.
"""

import copy
import sys

import torch
from safetensors.torch import save_file
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor, PreTrainedTokenizerFast
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from reference import HERE, greedy, hub_names, pictures, randomize, save, sentencepiece, write_json

SPECIAL = [("<pad>", True), ("<eos>", True), ("<bos>", True), ("<unk>", True)]
EXTRA = [f"<loc{i:04}>" for i in (0, 1, 2, 3, 512, 1023)] + [f"<seg{i:03}>" for i in range(4)]
EDGE, PATCH = 56, 14

SCENARIOS = {
    "one": (["smooth"], "answer en how many shapes are there?"),
    "two": (["noise", "wide"], "detect circle ; square <loc0512>\nand größer"),
    "text": ([], "caption en"),
}
LONG = (["tall"], "The left one is red, and the right one is blue. " * 3)


def tokenizer():
    made = sentencepiece(SPECIAL, EXTRA, "<bos>", False)
    from tokenizers import AddedToken
    made.add_special_tokens([AddedToken("<image>", normalized=False, special=True)])
    return made


def text_config(kind, vocab):
    config = {
        "model_type": kind, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 1 if kind == "gemma" else 2, "head_dim": 16 if kind == "gemma" else 24, "vocab_size": vocab, "num_image_tokens": (EDGE // PATCH) ** 2,
    }
    if kind == "gemma2":
        config |= {"query_pre_attn_scalar": 40, "sliding_window": 24}
    return config


def rename(name):
    """transformers' names in memory to the hub's."""
    if name == "lm_head.weight":
        return None
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        rest = name.removeprefix("vision_tower.").removeprefix("vision_model.")
        return f"vision_tower.vision_model.{rest}"
    return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language_model.") else name


def make(name, kind, seed, scenarios):
    folder = HERE / name
    tokens = tokenizer()
    vocab = (tokens.get_vocab_size() + 7) // 8 * 8
    image_id = tokens.token_to_id("<image>")
    config = {
        "model_type": "paligemma", "architectures": ["PaliGemmaForConditionalGeneration"], "image_token_index": image_id, "hidden_size": 64,
        "projection_dim": 64, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": vocab,
        "text_config": text_config(kind, vocab),
        "vision_config": {
            "model_type": "siglip_vision_model", "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "patch_size": PATCH, "image_size": EDGE, "projection_dim": 64, "vision_use_head": False,
        },
    }
    full = PaliGemmaConfig(**copy.deepcopy({k: v for k, v in config.items() if k != "model_type"}))
    full._attn_implementation = "eager"
    full.text_config._attn_implementation = "eager"
    full.vision_config._attn_implementation = "eager"
    model = randomize(PaliGemmaForConditionalGeneration(full), seed)
    model.tie_weights()
    processor = {
        "image_processor_type": "SiglipImageProcessor", "processor_class": "PaliGemmaProcessor", "do_convert_rgb": None, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "image_seq_length": (EDGE // PATCH) ** 2,
        "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"height": EDGE, "width": EDGE},
    }
    settings = {
        "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
        "add_bos_token": True, "processor_class": "PaliGemmaProcessor",
    }
    save(folder / "model", hub_names(model.state_dict(), rename), config, processor, tokens, settings)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    image_processor = SiglipImageProcessorPil(**{k: v for k, v in processor.items() if k not in ("image_processor_type", "processor_class")})
    both = PaliGemmaProcessor(image_processor, fast)
    expected, cases = {}, {}
    shown = pictures()
    for scenario, (names, text) in scenarios.items():
        images = [shown[n] for n in names]
        if images:
            inputs = both(images=[images], text=["<image>" * len(images) + text], return_tensors="pt")
        else:
            ids = fast(f"<bos>{text}\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
            inputs = {"input_ids": ids, "token_type_ids": torch.zeros_like(ids)}
        inputs = {key: inputs[key] for key in ("input_ids", "token_type_ids", "pixel_values") if key in inputs}
        prompt = inputs["input_ids"]

        def logits(generated):
            """All rows: the prompt is a prefix of type 0, what is generated is causal."""
            ids = torch.cat([prompt, torch.tensor([generated], dtype=prompt.dtype)], 1) if generated else prompt
            # transformers' training masks: type 1 is causal, type 0 sees all of type 0.
            types = torch.cat([torch.zeros_like(prompt), torch.ones(1, len(generated), dtype=prompt.dtype)], 1)
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types}
            if "pixel_values" in inputs:
                given["pixel_values"] = inputs["pixel_values"]
            with torch.no_grad():
                return model(**given, labels=ids).logits[0]

        given = dict(inputs)
        answer = model.generate(**given, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=vocab - 1, pad_token_id=0)
        cached = answer[0, prompt.shape[1]:].tolist()
        rows = logits([])
        tokens_out = greedy(lambda generated: logits(generated)[-1])
        assert tokens_out == cached, (scenario, tokens_out, cached)
        expected[f"{scenario}.logits"] = rows[-8:].contiguous().clone()
        if images:
            expected[f"{scenario}.pixels"] = inputs["pixel_values"].contiguous()
            with torch.no_grad():
                features = model.get_image_features(inputs["pixel_values"])
            features = getattr(features, "pooler_output", features)
            expected[f"{scenario}.features"] = features.reshape(-1, features.shape[-1]).contiguous().clone()
        cases[scenario] = {"images": names, "text": text, "ids": prompt[0].tolist(), "greedy": tokens_out}
        print(name, scenario, prompt.shape, "logits std", float(rows.std()), tokens_out)
    save_file(expected, folder / "expected.safetensors")
    write_json(folder / "cases.json", cases)


make("paligemma", "gemma", 1, SCENARIOS)
make("paligemma2", "gemma2", 2, SCENARIOS | {"long": LONG})
