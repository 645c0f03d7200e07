"""The Prismatic model, built from timm's encoders and transformers' Mistral, and saved as a Hugging
Face folder.
"""

import json
import re
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from transformers import MistralConfig, MistralForCausalLM

TIMM_IDS = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]
IMAGE_SIZE = 112
PATCHES = (IMAGE_SIZE // 14) ** 2

# As in the full-size checkpoint's preprocessor_config.json: DINOv2's mean and std are ImageNet's,
# rounded to bfloat16.
MEANS = [[0.484375, 0.455078125, 0.40625], [0.5, 0.5, 0.5]]
STDS = [[0.228515625, 0.2236328125, 0.224609375], [0.5, 0.5, 0.5]]

DEPTH = 5  # blocks of each encoder
TIMM_KWARGS = [{"embed_dim": 96, "depth": DEPTH, "num_heads": 4, "mlp_ratio": 4.0}] * 2
TEXT_SIZES = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
}


class VisionBackbone(nn.Module):
    """DINOv2 and SigLIP side by side: the output of the last block but one, patches only, without
    the final norm.
    """

    def __init__(self, timm_kwargs, **initial):
        super().__init__()
        common = {"pretrained": False, "num_classes": 0, "img_size": IMAGE_SIZE}
        self.featurizer = timm.create_model(TIMM_IDS[0], **common, **timm_kwargs[0], **initial)
        self.fused_featurizer = timm.create_model(TIMM_IDS[1], **common, **timm_kwargs[1])
        self.register_buffer("mean", torch.tensor(MEANS).view(2, 1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STDS).view(2, 1, 3, 1, 1), persistent=False)

    def forward(self, pixels):
        """pixels: [batch, 3, 112, 112] in 0..255."""
        dino, siglip = (pixels[None].float() / 255 - self.mean) / self.std
        return torch.cat([self.features(self.featurizer, dino), self.features(self.fused_featurizer, siglip)], dim=2)

    @staticmethod
    def features(tower, pixels):
        x = tower._pos_embed(tower.patch_embed(pixels))
        for block in tower.blocks[:-1]:
            x = block(x)
        return x[:, tower.num_prefix_tokens:]


class Projector(nn.Module):
    def __init__(self, vision_width, text_width):
        super().__init__()
        self.fc1 = nn.Linear(vision_width, 4 * vision_width)
        self.fc2 = nn.Linear(4 * vision_width, text_width)
        self.fc3 = nn.Linear(text_width, text_width)

    def forward(self, x):
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class Prismatic(nn.Module):
    def __init__(self, config, **initial):
        """config: the content of config.json; `initial`: further timm settings of a model about to
        be trained.
        """
        super().__init__()
        self.config = config
        text = MistralConfig(**config["text_config"], attn_implementation="eager")  # which shows its attention
        self.vision_backbone = VisionBackbone(config["timm_override_kwargs"], **initial)
        vision_width = sum(kwargs["embed_dim"] for kwargs in config["timm_override_kwargs"])
        self.projector = Projector(vision_width, text.hidden_size)
        self.language_model = MistralForCausalLM(text)

    def picture(self, pixels):
        """[batch, 64, text width] from [batch, 3, 112, 112] in 0..255."""
        return self.projector(self.vision_backbone(pixels))

    def read(self, picture, ids, layer):
        """The decoder over <s>, the picture, and the rest of the text.

        Returns the final hidden states at the text positions [batch, text, width], and how much each text position
        attends to each patch in one of the layers [batch, heads, text, 64].
        """
        words = self.language_model.model.embed_tokens(ids)
        embeds = torch.cat([words[:, :1], picture, words[:, 1:]], dim=1)
        output = self.language_model.model(inputs_embeds=embeds, use_cache=False, output_attentions=True)
        text = [0, *range(1 + PATCHES, embeds.shape[1])]
        return output.last_hidden_state[:, text], output.attentions[layer][:, :, text, 1:1 + PATCHES]

    @torch.inference_mode()
    def generate(self, picture, ids, eos, most=64):
        """Greedy answer to the prompt `ids`, without the end of sequence."""
        words = self.language_model.model.embed_tokens(torch.tensor([ids]))
        embeds, cache, answer = torch.cat([words[:, :1], picture, words[:, 1:]], dim=1), None, []
        while len(answer) < most:
            output = self.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = int(output.logits[0, -1].argmax())
            if token == eos:
                break
            answer.append(token)
            embeds, cache = self.language_model.model.embed_tokens(torch.tensor([[token]])), output.past_key_values
        return answer


def new_config(vocab_size, pad_id):
    """config.json as the full-size checkpoint has it: text_config names only what differs from
    Mistral's defaults.
    """
    rows = (vocab_size + 63) // 64 * 64
    text = {"model_type": "mistral", "pad_token_id": pad_id, "torch_dtype": "bfloat16", "vocab_size": rows}
    return {
        "arch_specifier": "no-align+fused-gelu-mlp",
        "architectures": ["PrismaticForConditionalGeneration"],
        "hf_llm_id": "tiny",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [IMAGE_SIZE, IMAGE_SIZE],
        "llm_backbone_id": "tiny-pure",
        "llm_max_length": 2048,
        "model_type": "prismatic",
        "output_projector_states": False,
        "pad_to_multiple_of": 64,
        "pad_token_id": pad_id,
        "text_config": dict(sorted({**text, **TEXT_SIZES}.items())),
        "timm_model_ids": TIMM_IDS,
        "timm_override_act_layers": [None, None],
        "timm_override_kwargs": TIMM_KWARGS,
        "torch_dtype": "bfloat16",
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }


def preprocessor_config():
    size = [3, IMAGE_SIZE, IMAGE_SIZE]
    edge = [IMAGE_SIZE, IMAGE_SIZE]
    resize = {"antialias": True, "interpolation": 3, "max_size": None, "size": edge}
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "image_resize_strategy": "resize-naive",
        "input_sizes": [size, size],
        "interpolations": ["bicubic", "bicubic"],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "processor_class": "PrismaticProcessor",
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_crop_params": [{"output_size": edge}, {"output_size": edge}],
        "tvf_do_letterbox": False,
        "tvf_letterbox_fill": None,
        "tvf_normalize_params": [{"inplace": False, "mean": mean, "std": std} for mean, std in zip(MEANS, STDS)],
        "tvf_resize_params": [resize, resize],
        "use_fused_vision_backbone": True,
    }


def save_folder(model, tokenizer, folder):
    """Writes everything but the model card."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pad = model.config["pad_token_id"]
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<PAD>", "unk_token": "<unk>"}
    added = {
        str(tokenizer.token_to_id(piece)): {
            "content": piece, "lstrip": False, "normalized": False,
            "rstrip": False, "single_word": False, "special": True,
        }
        for piece in ["<unk>", "<s>", "</s>", "<PAD>"]
    }
    write_json(folder / "config.json", model.config)
    write_json(folder / "preprocessor_config.json", preprocessor_config())
    write_json(folder / "special_tokens_map.json", special)
    write_json(folder / "generation_config.json", {
        "_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": pad,
    })
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": True, "add_eos_token": False, "added_tokens_decoder": added, **special,
        "clean_up_tokenization_spaces": False, "legacy": True, "model_max_length": 2048, "padding_side": "right",
        "processor_class": "PrismaticProcessor", "tokenizer_class": "LlamaTokenizer",
    })
    tokenizer.save(str(folder / "tokenizer.json"))
    weights = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"\.ls(\d)\.gamma$", r".ls\1.scale_factor", name)
        weights[name] = tensor.detach().to(torch.bfloat16).contiguous()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def load_folder(folder):
    """The model of a folder, its bfloat16 weights widened to f32."""
    folder = Path(folder)
    model = Prismatic(json.loads((folder / "config.json").read_text()))
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.replace(".scale_factor", ".gamma"): tensor.float() for name, tensor in weights.items()})
    return model.eval()


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")
