"""Makes tests/models/gemma3 (the hub's form), gemma3_saved (as transformers 5 saves it: nested rotary
positions, a list of layers, a head, shards) and gemma3_text (the hub's form without an encoder), and
what transformers makes of them. `python tests/models/make_gemma3.py`, with requirements.txt.
"""

import copy
import json

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import (
    Gemma3Config, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Gemma3Processor, Gemma3TextConfig, PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

from reference import HERE, greedy, hub_names, pictures, randomize, save, sentencepiece, write_json

SPECIAL = [("<pad>", True), ("<eos>", True), ("<bos>", True), ("<unk>", True)]
EXTRA = ["\n\n", "\n\n\n", "\n\n\n\n", "▁▁"]
TURNS = ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"]
EDGE, PATCH, TOKENS = 42, 7, 9
# The published models' (https://huggingface.co/google/gemma-3-4b-it/blob/main/chat_template.json).
TEMPLATE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '

' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '

' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '
' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>
' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model
'}}
{%- endif -%}
"""
image = lambda name: {"type": "image", "name": name}
text = lambda words: {"type": "text", "text": words}
user = lambda *parts: {"role": "user", "content": list(parts)}
model_says = lambda words: {"role": "assistant", "content": [text(words)]}
SCENARIOS = {
    "one": [user(image("smooth"), text("What is in the picture?"))],
    "two": [user(text("The left one is red, and "), image("wide"), image("noise"), text(" the right one?"))],
    "messages": [
        user(image("smooth"), text("What is in the picture?")), model_says("A cat and a dog; 12 of them."),
        user(text("Describe it\nin one word."), image("tall")),
    ],
    "text": [user(text("größer, naïve, 图片里有什么?"))],
    "system": [{"role": "system", "content": [text("Be brief.")]}, user(image("noise"), text("How many shapes?"))],
}
TEXTS = {
    "text": SCENARIOS["text"],
    "system": [{"role": "system", "content": [text("Be brief.")]}, user(text("How many shapes are there?"))],
    "messages": [
        user(text(" What is in\n\nthe picture? ")), model_says("A cat and a dog;  12 of them."), user(text("And the second line?")),
    ],
}


def tokenizer():
    made = sentencepiece(SPECIAL, EXTRA, "<bos>", False)
    made.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in TURNS])
    return made


def rename(name):
    """transformers' names in memory to the hub's."""
    if name == "lm_head.weight":
        return None
    name = name.removeprefix("model.")
    if name.startswith("vision_tower."):
        return f"vision_tower.vision_model.{name.removeprefix('vision_tower.').removeprefix('vision_model.')}"
    return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language_model.") else name


def text_config(vocab):
    """The hub's lists only the differences from the defaults, among them the bases of rotary positions."""
    return {
        "hidden_size": 64, "intermediate_size": 80, "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 4,
        "num_key_value_heads": 2, "head_dim": 24, "vocab_size": vocab, "query_pre_attn_scalar": 40, "sliding_window": 20,
        "sliding_window_pattern": 3,
    }


def eager(config):
    for part in (config, getattr(config, "text_config", config), getattr(config, "vision_config", config)):
        part._attn_implementation = "eager"
    return config


def both(tokens, processor):
    """transformers' processor of texts and pictures."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        extra_special_tokens={"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
    )
    kept = {k: v for k, v in processor.items() if k not in ("image_processor_type", "processor_class", "image_seq_length")}
    return Gemma3Processor(Gemma3ImageProcessorPil(**kept), fast, chat_template=TEMPLATE, image_seq_length=TOKENS)


def results(name, model, talk, scenarios, stop):
    expected, cases = {}, {}
    shown = pictures()
    for scenario, messages in scenarios.items():
        names = [part["name"] for message in messages for part in message["content"] if part["type"] == "image"]
        inputs = talk(messages, [shown[n] for n in names])
        prompt = inputs["input_ids"]
        inputs = {key: inputs[key] for key in ("pixel_values", "token_type_ids") if key in inputs}

        def forward(generated):
            ids = torch.cat([prompt, torch.tensor([generated], dtype=prompt.dtype)], 1) if generated else prompt
            given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)} | inputs
            if "token_type_ids" in inputs:
                given["token_type_ids"] = torch.nn.functional.pad(inputs["token_type_ids"], (0, len(generated)))
            with torch.no_grad():
                return model(**given).logits[0]

        given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)} | inputs
        answer = model.generate(**given, max_new_tokens=24, min_new_tokens=24, do_sample=False, eos_token_id=stop, pad_token_id=0)
        cached = answer[0, prompt.shape[1]:].tolist()
        rows = forward([])
        out = greedy(lambda generated: forward(generated)[-1])
        assert out == cached, (scenario, out, cached)
        if names:
            expected[f"{scenario}.pixels"] = inputs["pixel_values"].contiguous()
            with torch.no_grad():
                features = model.get_image_features(inputs["pixel_values"]).pooler_output
            expected[f"{scenario}.features"] = features.reshape(-1, features.shape[-1]).contiguous().clone()
        expected[f"{scenario}.logits"] = rows[-8:].contiguous().clone()
        cases[scenario] = {"messages": messages, "images": names, "ids": prompt[0].tolist(), "greedy": out}
        print(name, scenario, prompt.shape, "logits std", float(rows.std()), out)
    save_file(expected, HERE / name / "expected.safetensors")
    write_json(HERE / name / "cases.json", cases)


PROCESSOR = {
    "do_convert_rgb": None, "do_normalize": True, "do_pan_and_scan": None, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3,
    "image_processor_type": "Gemma3ImageProcessor", "image_seq_length": TOKENS, "image_std": [0.5] * 3, "pan_and_scan_max_num_crops": None,
    "pan_and_scan_min_crop_size": None, "pan_and_scan_min_ratio_to_activate": None, "processor_class": "Gemma3Processor", "resample": 2,
    "rescale_factor": 0.00392156862745098, "size": {"height": EDGE, "width": EDGE},
}
SETTINGS = {
    "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
    "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>", "processor_class": "Gemma3Processor",
}


def make(name, seed, saved):
    folder = HERE / name / "model"
    tokens = tokenizer()
    vocab = (tokens.get_vocab_size() + 7) // 8 * 8
    ids = {token: tokens.token_to_id(token) for token in TURNS}
    generation = {"bos_token_id": 2, "do_sample": True, "eos_token_id": [1, ids["<end_of_turn>"]], "pad_token_id": 0, "top_k": 64, "top_p": 0.95}
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": ids["<start_of_image>"],
        "eoi_token_index": ids["<end_of_image>"], "eos_token_id": generation["eos_token_id"], "image_token_index": ids["<image_soft_token>"],
        "initializer_range": 0.02, "mm_tokens_per_image": TOKENS, "model_type": "gemma3",
        "text_config": text_config(vocab) | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}, "torch_dtype": "bfloat16",
        "vision_config": {
            "hidden_size": 48, "image_size": EDGE, "intermediate_size": 80, "model_type": "siglip_vision_model", "num_attention_heads": 4,
            "num_hidden_layers": 2, "patch_size": PATCH, "vision_use_head": False,
        },
    }
    if saved:
        # A picture is longer than the window, and what the others leave at its default differs.
        config["tie_word_embeddings"] = False
        config["vision_config"]["layer_norm_eps"] = 0.002
        config["text_config"] |= {
            "rms_norm_eps": 0.005, "sliding_window": 5, "rope_theta": 500.0, "rope_local_base_freq": 30.0, "rope_scaling": {"factor": 3.0, "rope_type": "linear"},
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "full_attention"], "tie_word_embeddings": False,
        }
    model = Gemma3ForConditionalGeneration(eager(Gemma3Config(**{k: v for k, v in copy.deepcopy(config).items() if k != "model_type"})))
    randomize(model, seed)
    processor = both(tokens, PROCESSOR)
    if saved:
        copy.deepcopy(model).bfloat16().save_pretrained(folder, max_shard_size="120KB")
        processor.save_pretrained(folder)
        write_json(folder / "generation_config.json", generation)
    else:
        model.tie_weights()
        save(folder, hub_names(model.state_dict(), rename), config, PROCESSOR, tokens, SETTINGS, TEMPLATE, generation)

    def talk(messages, images):
        rendered = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return dict(processor(images=[images] if images else None, text=[rendered], add_special_tokens=False, return_tensors="pt"))

    results(name, model, talk, SCENARIOS, vocab - 1)


def make_text(name, seed):
    folder = HERE / name / "model"
    tokens = tokenizer()
    vocab = (tokens.get_vocab_size() + 7) // 8 * 8
    stop = [1, tokens.token_to_id("<end_of_turn>")]
    config = {
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "attn_logit_softcapping": None,
        "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": stop, "final_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh", "initializer_range": 0.02, "max_position_embeddings": 4096, "pad_token_id": 0,
        "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000, "torch_dtype": "bfloat16",
        "use_cache": True,
    } | text_config(vocab)
    model = Gemma3ForCausalLM(eager(Gemma3TextConfig(**{k: v for k, v in copy.deepcopy(config).items() if k not in ("model_type", "architectures")})))
    randomize(model, seed)
    model.tie_weights()
    tensors = hub_names(model.state_dict(), lambda name: None if name == "lm_head.weight" else name)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    tokens.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", SETTINGS | {"chat_template": TEMPLATE})
    write_json(folder / "generation_config.json", {"bos_token_id": 2, "do_sample": True, "eos_token_id": stop, "pad_token_id": 0})
    fast = PreTrainedTokenizerFast(tokenizer_object=tokens, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")
    fast.chat_template = TEMPLATE

    def talk(messages, _):
        plain = [message | {"content": "".join(part["text"] for part in message["content"])} for message in messages]
        rendered = fast.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
        return {"input_ids": fast(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]}

    results(name, model, talk, TEXTS, vocab - 1)


make("gemma3", 11, False)
make("gemma3_saved", 9, True)
make_text("gemma3_text", 10)
