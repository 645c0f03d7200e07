"""Makes tests/models/llava, a small random checkpoint in the hub's form, and what transformers
makes
of it. `python tests/models/make_llava.py`, with requirements.txt.
"""

import json

import torch
from safetensors.torch import save_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from reference import HERE, greedy, hub_names, pictures, randomize, save, sentencepiece, write_json

EDGE, PATCH = 56, 14
# LLaVA-1.5's (https://huggingface.co/llava-hf/llava-1.5-7b-hf/blob/main/chat_template.json).
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
    "{% endfor %}{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}"
    "{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
image = lambda name: {"type": "image", "name": name}
text = lambda words: {"type": "text", "text": words}
user = lambda *parts: {"role": "user", "content": list(parts)}
SCENARIOS = {
    "one": [user(image("smooth"), text("What is in the picture?"))],
    "two": [user(text("The left one is red, and"), image("wide"), image("noise"), text("the right one?"))],
    "messages": [
        user(image("smooth"), text("What is in the picture?")),
        {"role": "assistant", "content": [text("A cat and a dog; 12 of them.")]},
        user(image("tall"), text("Describe it\nin one word.")),
    ],
    "text": [user(text("größer, naïve, 图片里有什么?"))],
    "system": [{"role": "system", "content": [text("Be brief.")]}, user(image("noise"), text("How many shapes?"))],
}


def rename(name):
    """transformers' names in memory to the hub's."""
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return f"vision_tower.vision_model.{name.removeprefix('vision_tower.').removeprefix('vision_model.')}"
    return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language_model.") else name


def make(name, seed):
    folder = HERE / name
    special = [("<unk>", True), ("<s>", True), ("</s>", True)]
    tokens = sentencepiece(special, [], "<s>", True)
    from tokenizers import AddedToken
    tokens.add_special_tokens([AddedToken("<image>", normalized=False, special=True), AddedToken("<pad>", normalized=False, special=True)])
    vocab = (tokens.get_vocab_size() + 7) // 8 * 8
    config = {
        "model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "image_token_index": tokens.token_to_id("<image>"),
        "projector_hidden_act": "gelu", "vision_feature_layer": -2, "vision_feature_select_strategy": "default", "pad_token_id": 0,
        "text_config": {
            "model_type": "llama", "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": vocab, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "pad_token_id": 0,
        },
        "vision_config": {
            "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "patch_size": PATCH, "image_size": EDGE, "projection_dim": 32, "vocab_size": 100,
        },
        "torch_dtype": "bfloat16", "tie_word_embeddings": False,
    }
    full = LlavaConfig(**{k: v for k, v in json.loads(json.dumps(config)).items() if k not in ("model_type", "architectures")})
    for part in (full, full.text_config, full.vision_config):
        part._attn_implementation = "eager"
    model = randomize(LlavaForConditionalGeneration(full), seed)
    processor = {
        "image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor", "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "crop_size": {"height": EDGE, "width": EDGE},
        "size": {"shortest_edge": EDGE}, "resample": 3, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    save(folder / "model", hub_names(model.state_dict(), rename), config, processor, tokens, settings, TEMPLATE, generation)
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.chat_template = TEMPLATE
    kept = {k: v for k, v in processor.items() if k not in ("image_processor_type", "processor_class")}
    image_processor = CLIPImageProcessorPil(**kept)
    expected, cases = {}, {}
    shown = pictures()
    for scenario, messages in SCENARIOS.items():
        names = [part["name"] for message in messages for part in message["content"] if part["type"] == "image"]
        rendered = fast.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = {}
        if names:
            inputs = dict(image_processor(images=[shown[n] for n in names], return_tensors="pt"))
            rendered = rendered.replace("<image>", "<image>" * (EDGE // PATCH) ** 2)
        prompt = fast(rendered, return_tensors="pt")["input_ids"]

        def forward(generated):
            ids = torch.cat([prompt, torch.tensor([generated], dtype=prompt.dtype)], 1) if generated else prompt
            with torch.no_grad():
                return model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]

        given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)} | inputs
        answer = model.generate(**given, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=vocab - 1, pad_token_id=0)
        cached = answer[0, prompt.shape[1]:].tolist()
        rows = forward([])
        out = greedy(lambda generated: forward(generated)[-1])
        assert out == cached, (scenario, out, cached)
        if names:
            expected[f"{scenario}.pixels"] = inputs["pixel_values"].contiguous()
            with torch.no_grad():
                features = model.get_image_features(inputs["pixel_values"], vision_feature_layer=-2, vision_feature_select_strategy="default")
            features = getattr(features, "pooler_output", features)
            expected[f"{scenario}.features"] = torch.cat([f.reshape(-1, f.shape[-1]) for f in features]).contiguous().clone()
        expected[f"{scenario}.logits"] = rows[-8:].contiguous().clone()
        cases[scenario] = {"messages": messages, "images": names, "ids": prompt[0].tolist(), "greedy": out}
        print(name, scenario, prompt.shape, "logits std", float(rows.std()), out)
    save_file(expected, folder / "expected.safetensors")
    write_json(folder / "cases.json", cases)


make("llava", 5)
