"""The Prismatic model in PyTorch, f32 on the CPU: timm's encoders, transformers' Mistral,
torchvision's transforms on Pillow pictures.

What lies between those classes (which block the features come from, where the picture stands among the tokens, how a prompt is
written) follows the published Prismatic code. Everything the Rust library computes is compared with what this module computes.
"""

import json
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TVF
from transformers import MistralConfig, MistralForCausalLM


def read_json(path):
    return json.loads(Path(path).read_text())


class Preprocessor:
    """What PrismaticImageProcessor does with the settings of preprocessor_config.json."""

    def __init__(self, settings):
        self.strategy = settings["image_resize_strategy"]
        self.sizes = [size[-1] for size in settings["input_sizes"]]
        # tvf_* settings win over `means` and `stds`: in the published checkpoint the former are
        # rounded to bfloat16.
        default = [{"mean": mean, "std": std} for mean, std in zip(settings["means"], settings["stds"])]
        self.normalize = settings.get("tvf_normalize_params") or default
        # One fill for all encoders: the mean of the last one.
        self.fill = tuple(settings.get("tvf_letterbox_fill") or (int(mean * 255) for mean in settings["means"][-1]))

    def __call__(self, picture):
        """f32 [1, 3 per encoder, size, size] from a Pillow picture."""
        picture = picture.convert("RGB")
        if self.strategy == "letterbox":
            longer = max(picture.size)
            pad = [int((longer - side) / 2) for side in picture.size]
            picture = TVF.pad(picture, pad, fill=self.fill, padding_mode="constant")
        encoders = []
        for size, normalize in zip(self.sizes, self.normalize):
            # One number is the length of the shorter side: the aspect is kept and the longer side
            # cropped.
            edges = [size, size] if self.strategy == "resize-naive" else [size]
            resized = TVF.resize(picture, edges, InterpolationMode.BICUBIC, antialias=True)
            pixels = TVF.to_tensor(TVF.center_crop(resized, [size, size]))
            encoders.append(TVF.normalize(pixels, normalize["mean"], normalize["std"]))
        return torch.cat(encoders)[None]


class Projector(nn.Module):
    def __init__(self, vision_width, text_width, fused):
        super().__init__()
        widths = [vision_width, 4 * vision_width, text_width, text_width] if fused else [vision_width, text_width, text_width]
        for number, (wide, out) in enumerate(zip(widths, widths[1:]), start=1):
            self.add_module(f"fc{number}", nn.Linear(wide, out))

    def forward(self, x):
        first, *rest = self.children()
        x = first(x)
        for layer in rest:
            x = layer(F.gelu(x))
        return x


class Prismatic(nn.Module):
    """Module and parameter names are those of the checkpoint, but for LayerScale's (see
    `checkpoint_name`).
    """

    def __init__(self, config):
        super().__init__()
        fused = config["use_fused_vision_backbone"]
        names = ["featurizer", "fused_featurizer"] if fused else ["featurizer"]
        acts = config.get("timm_override_act_layers") or [None] * len(names)
        overrides = config.get("timm_override_kwargs") or [{}] * len(names)
        self.vision_backbone = nn.ModuleDict({
            name: timm.create_model(timm_id, pretrained=False, num_classes=0, img_size=size, act_layer=act, **kwargs)
            for name, timm_id, size, act, kwargs in zip(
                names, config["timm_model_ids"], config["image_sizes"], acts, overrides, strict=True
            )
        })
        # As in the published code, text_config lists what differs from the defaults of
        # transformers' MistralConfig.
        text = MistralConfig(**config["text_config"], attn_implementation="eager")
        self.projector = Projector(sum(tower.embed_dim for tower in self.towers), text.hidden_size, fused)
        self.language_model = MistralForCausalLM(text)
        self.eval().requires_grad_(False)

    @property
    def towers(self):
        return list(self.vision_backbone.values())

    def tower_features(self, tower, pixels):
        """[1, patches, width]: the output of the last block but one, without prefix tokens and
        without the final norm.
        """
        return tower.get_intermediate_layers(pixels, n={len(tower.blocks) - 2})[0]

    def features(self, pixels):
        """One [1, patches, width] per encoder."""
        return [self.tower_features(tower, part) for tower, part in zip(self.towers, pixels.split(3, dim=1))]

    def project(self, features):
        """[1, patches, text width]"""
        return self.projector(torch.cat(features, dim=2))

    def embed(self, ids, projected=None):
        """[1, patches + ids, text width]: the picture stands right after <s>."""
        words = self.language_model.model.embed_tokens(torch.tensor([ids]))
        return words if projected is None else torch.cat([words[:, :1], projected, words[:, 1:]], dim=1)

    def hidden(self, ids, projected):
        """[positions, text width] after the final norm, computed from the whole sequence at once.
        """
        return self.language_model.model(inputs_embeds=self.embed(ids, projected), use_cache=False).last_hidden_state[0]

    def logits(self, ids, projected=None):
        """[vocabulary] after the last token."""
        return self.language_model.lm_head(self.hidden(ids, projected)[-1])

    def logits_of_all(self, ids, projected=None):
        """[positions, vocabulary]"""
        return self.language_model.lm_head(self.hidden(ids, projected))

    def greedy(self, ids, projected=None, steps=24):
        """The answer's ids, their log-probabilities and, per step, how far the best logit is above
        the second; without a cache.
        """
        answer, logprobs, gaps = [], [], []
        for _ in range(steps):
            row = self.logits(ids + answer, projected)
            best, second = row.topk(2).values
            answer.append(int(row.argmax()))
            logprobs.append(float(row.log_softmax(0)[answer[-1]]))
            gaps.append(float(best - second))
            if answer[-1] == self.language_model.config.eos_token_id:
                break
        return answer, logprobs, gaps

    def hf_generate(self, ids, projected=None, steps=24):
        """The same by transformers' own loop, with its KV cache."""
        embeds = self.embed(ids, projected)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long)
        output = self.language_model.generate(inputs_embeds=embeds, attention_mask=mask, do_sample=False, max_new_tokens=steps)
        return output[0].tolist()


def tower_names(model):
    """What the features of each encoder are called in fixtures and in the output of
    `examples/stages.rs`: DINOv2 has a class token.
    """
    return ["dino_features" if tower.has_class_token else "siglip_features" for tower in model.towers]


def checkpoint_name(name):
    """The converter of the published checkpoint renames LayerScale: transformers rewrites names
    that contain "gamma".
    """
    return name.replace(".ls1.gamma", ".ls1.scale_factor").replace(".ls2.gamma", ".ls2.scale_factor")


def load_model(folder):
    """The model of a checkpoint folder, widened to f32."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    files = sorted(set(read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    weights = {name: tensor.float() for file in files for name, tensor in load_file(folder / file).items()}
    model = Prismatic(read_json(folder / "config.json"))
    state = {name: weights.pop(name if name in weights else checkpoint_name(name)) for name in model.state_dict()}
    assert not weights, f"tensors the model does not know: {sorted(weights)}"
    model.load_state_dict(state)
    return model


def load_preprocessor(folder):
    return Preprocessor(read_json(Path(folder) / "preprocessor_config.json"))


def load_tokenizer(folder):
    return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def load_picture(path):
    """EXIF orientation is not applied."""
    return Image.open(path).convert("RGB")


def prompt_text(turns):
    """PurePromptBuilder: `turns` alternate between a question and its answer and end with a
    question.
    """
    text = ""
    for number, message in enumerate(turns):
        message = message.replace("<image>", "").strip()
        text += f"In: {message}\nOut: " if number % 2 == 0 else f"{message or ' '}</s>"
    return text.rstrip()


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True).strip()
