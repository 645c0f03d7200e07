"""Makes tests/models/smolvlm (the hub's form) and idefics3 (as transformers 5 saves it), and what
transformers makes of them. `python tests/models/make_smolvlm.py`, with requirements.txt.
"""

import copy
import json

import torch
from safetensors.torch import save_file
from tokenizers import processors
from transformers import (
    Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor, PreTrainedTokenizerFast, SmolVLMConfig,
    SmolVLMForConditionalGeneration, SmolVLMProcessor, SmolVLMVideoProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from reference import HERE, byte_level, greedy, hub_names, pictures, randomize, save, write_json

# The published models' (https://huggingface.co/HuggingFaceTB/SmolVLM2-500M-Video-Instruct/blob/main/chat_template.json,
# https://huggingface.co/HuggingFaceM4/Idefics3-8B-Llama3/blob/main/chat_template.json), after the first token.
TEMPLATE = (
    "{% for message in messages %}{{message['role'] | capitalize}}{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}"
    "{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}{% elif line['type'] == 'image' %}"
    "{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
image = lambda name: {"type": "image", "name": name}
text = lambda words: {"type": "text", "text": words}
user = lambda *parts: {"role": "user", "content": list(parts)}
SCENARIOS = {
    "one": [user(image("smooth"), text("What is in the picture?"))],
    "two": [user(text("The left one is red, and"), image("wide"), text(" the right one?"), image("tall"))],
    "messages": [
        user(image("tall"), text("What is in the picture?")),
        {"role": "assistant", "content": [text("A cat and a dog; 12 of them.")]},
        user(text("Describe it\nin one word."), image("wide")),
    ],
    "text": [user(text("größer, naïve, 图片里有什么?"))],
    "fewer": [{"role": "system", "content": [text("Be brief.")]}, user(image("wide"), text("How many shapes?"))],
    "whole": [user(image("noise"), text("What is in the picture?"))],
}
# The library's budgets, and what makes transformers' processor do the same: 15 features are those
# of three tiles.
BUDGETS = {"fewer": {"max_tokens": 15}, "whole": {"tiles": False}}

SMOLVLM = {
    "tokens": ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"]
    + [f"<row_{r}_col_{c}>" for r in range(1, 4) for c in range(1, 4)],
    "bos": "<|im_start|>",
    "scale": 2,
    "edge": 28,
    "longest": 84,
    # As on the hub, without what equals the defaults.
    "vision": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "patch_size": 7},
    "text": {"num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 100000},
}
# Llama 3 has no tokens for rows and columns, which are text. The last two rows and columns of
# a tile's pixels are in no patch, as the last six in tiles of 384 pixels.
IDEFICS3 = {
    "tokens": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"],
    "bos": "<|begin_of_text|>",
    "scale": 3,
    "edge": 26,
    "longest": 68,
    "vision": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4},
    "text": {
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24, "rope_theta": 500000,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    },
}


def make(name, seed, made, classes):
    config_class, model_class = classes
    folder = HERE / name
    tokens = byte_level(made["tokens"])
    if name == "idefics3":
        begin = processors.TemplateProcessing(single=f"{made['bos']} $A", special_tokens=[(made["bos"], tokens.token_to_id(made["bos"]))])
        tokens.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    vocab = (tokens.get_vocab_size() + 7) // 8 * 8
    end = tokens.token_to_id("<end_of_utterance>")
    config = {
        "model_type": name, "architectures": [model_class.__name__], "image_token_id": tokens.token_to_id("<image>"),
        "scale_factor": made["scale"], "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": vocab,
        "text_config": made["text"] | {
            "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "vocab_size": vocab, "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048, "pad_token_id": 2, "eos_token_id": end,
        },
        "vision_config": made["vision"] | {"model_type": f"{name}_vision", "image_size": made["edge"]},
    }
    full = config_class(**{k: v for k, v in copy.deepcopy(config).items() if k not in ("model_type", "architectures")})
    for part in (full, full.text_config, full.vision_config):
        part._attn_implementation = "eager"
    model = randomize(model_class(full), seed)
    # Nothing ends an answer.
    model.generation_config.eos_token_id = None
    processor = {
        "image_processor_type": f"{'SmolVLM' if name == 'smolvlm' else 'Idefics3'}ImageProcessor", "do_convert_rgb": True,
        "do_image_splitting": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "max_image_size": {"longest_edge": made["edge"]}, "resample": 1,
        "rescale_factor": 0.00392156862745098, "size": {"longest_edge": made["longest"]},
    }
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": made["bos"], "eos_token": "<end_of_utterance>", "pad_token": made["tokens"][2]}
    template = made["bos"] + TEMPLATE
    generation = {"bos_token_id": tokens.token_to_id(made["bos"]), "eos_token_id": end, "pad_token_id": 2}
    fast = PreTrainedTokenizerFast(tokenizer_object=copy.deepcopy(tokens), bos_token=made["bos"], eos_token="<end_of_utterance>", pad_token=made["tokens"][2])
    per_tile = (made["edge"] // made["vision"]["patch_size"] // made["scale"]) ** 2
    kept = {k: v for k, v in processor.items() if k != "image_processor_type"}
    if name == "smolvlm":
        both = SmolVLMProcessor(SmolVLMImageProcessorPil(**kept), fast, SmolVLMVideoProcessor(), image_seq_len=per_tile, chat_template=template)
        processor["processor_class"] = "SmolVLMProcessor"
        save(folder / "model", hub_names(model.state_dict(), lambda name: name), config, processor, tokens, settings, template, generation)
        write_json(folder / "model" / "processor_config.json", {"image_seq_len": per_tile, "processor_class": "SmolVLMProcessor"})
    else:
        both = Idefics3Processor(Idefics3ImageProcessorPil(**kept), fast, image_seq_len=per_tile, chat_template=template)
        copy.deepcopy(model).bfloat16().save_pretrained(folder / "model")
        both.save_pretrained(folder / "model")
        write_json(folder / "model" / "generation_config.json", generation)
        written = json.loads((folder / "model" / "config.json").read_text())
        print(name, sorted(p.name for p in (folder / "model").glob("*")), written["text_config"].get("rope_parameters"))
    expected, cases = {}, {}
    shown = pictures()
    for scenario, messages in SCENARIOS.items():
        names = [part["name"] for message in messages for part in message["content"] if part["type"] == "image"]
        rendered = both.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        # The template has the first token already, as apply_chat_template knows when it tokenizes.
        given = {"text": rendered, "add_special_tokens": False, "return_tensors": "pt"}
        if names:
            given |= {"images": [[shown[n] for n in names]]}
            if scenario == "fewer":
                given["size"] = {"longest_edge": 2 * made["edge"]}
            given["do_image_splitting"] = scenario != "whole"
        inputs = {key: value for key, value in both(**given).items() if key in ("input_ids", "pixel_values", "pixel_attention_mask")}
        prompt = inputs.pop("input_ids")

        def forward(generated):
            ids = torch.cat([prompt, torch.tensor([generated], dtype=prompt.dtype)], 1) if generated else prompt
            with torch.no_grad():
                return model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]

        given = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)} | inputs
        answer = model.generate(**given, max_new_tokens=24, do_sample=False, pad_token_id=0)
        cached = answer[0, prompt.shape[1]:].tolist()
        rows = forward([])
        out = greedy(lambda generated: forward(generated)[-1])
        assert out == cached, (scenario, out, cached)
        tiles = 0
        if names:
            pixels = inputs["pixel_values"][0]
            tiles = len(pixels)
            expected[f"{scenario}.pixels"] = pixels.contiguous().clone()
            with torch.no_grad():
                features = model.model.get_image_features(**inputs).pooler_output
            expected[f"{scenario}.features"] = torch.cat(list(features)).contiguous().clone()
        expected[f"{scenario}.logits"] = rows[-8:].contiguous().clone()
        patches = made["edge"] // made["vision"]["patch_size"]
        cases[scenario] = {
            "messages": messages, "images": names, "ids": prompt[0].tolist(), "greedy": out, "grids": [[1, patches, patches]] * tiles,
        } | ({"budget": BUDGETS[scenario]} if scenario in BUDGETS else {})
        print(name, scenario, prompt.shape, tiles, "tiles, logits std", float(rows.std()), out)
    save_file(expected, folder / "expected.safetensors")
    write_json(folder / "cases.json", cases)


make("smolvlm", 8, SMOLVLM, (SmolVLMConfig, SmolVLMForConditionalGeneration))
make("idefics3", 9, IDEFICS3, (Idefics3Config, Idefics3ForConditionalGeneration))
