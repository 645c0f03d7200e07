"""Puts mistakes one could make into the reference, one at a time, and prints how far each moves
features and last-row logits.

    python sensitivity.py [NAME...]

A mistake that moves neither by more than 1e-3, twice the tolerance of the Rust tests, would go unnoticed there: the script fails.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn

from make_checkpoints import CHECKPOINTS, HERE
from reference import load_model, load_picture, load_preprocessor, read_json

TOLERANCE = 5e-4


def decoder_layers(model):
    return model.language_model.model.layers


def other_rms_eps(model, _):
    eps = 1e-6 if model.language_model.config.rms_norm_eps == 1e-5 else 1e-5
    for module in model.language_model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = eps


def no_window(model, _):
    model.language_model.config.sliding_window = None


def window(by, model, _):
    model.language_model.config.sliding_window += by


def other_theta(model, _):
    rotary = model.language_model.model.rotary_emb
    rotary.inv_freq = rotary.inv_freq ** 1.02


def traditional_rope(model, _):
    """Rotating neighbors instead of halves equals this reordering of each head's queries and keys.
    """
    for layer in decoder_layers(model):
        width = layer.self_attn.head_dim
        order = [*range(0, width, 2), *range(1, width, 2)]
        for linear in [layer.self_attn.q_proj, layer.self_attn.k_proj]:
            linear.weight.copy_(linear.weight.view(-1, width, linear.in_features)[:, order].reshape(linear.weight.shape))


def interleaved_kv_heads(model, _):
    """Query head h reads key head h % kv instead of h // (heads / kv)."""
    heads, kv = model.language_model.config.num_attention_heads, model.language_model.config.num_key_value_heads
    order = sorted(range(heads), key=lambda head: head % kv)
    for layer in decoder_layers(model):
        attention = layer.self_attn
        width = attention.head_dim
        attention.q_proj.weight.copy_(attention.q_proj.weight.unflatten(0, (heads, width))[order].flatten(0, 1))
        attention.o_proj.weight.copy_(attention.o_proj.weight.unflatten(1, (heads, width))[:, order].flatten(1, 2))


def decoder_scale(model, _):
    """As if head_dim were one more than it is."""
    for layer in decoder_layers(model):
        layer.self_attn.scaling = (layer.self_attn.head_dim + 1) ** -0.5


def picture_first(model, _):
    embed = model.embed
    model.embed = lambda ids, projected=None: embed(ids) if projected is None else torch.cat([projected, embed(ids)], dim=1)


def tower_output(change, model, _):
    model.tower_features = change


def final_norm(tower, pixels):
    return tower.get_intermediate_layers(pixels, n={len(tower.blocks) - 2}, norm=True)[0]


def last_block(tower, pixels):
    return tower.get_intermediate_layers(pixels, n={len(tower.blocks) - 1})[0]


def keep_prefix(tower, pixels):
    output = tower.get_intermediate_layers(pixels, n={len(tower.blocks) - 2}, return_prefix_tokens=True)[0]
    if not tower.num_prefix_tokens:
        return output
    patches, prefix = output
    return torch.cat([prefix, patches], dim=1)[:, : patches.shape[1]]


def tanh_gelu(number, model, _):
    for block in model.towers[number].blocks:
        block.mlp.act = nn.GELU("tanh")


def tanh_projector(model, _):
    def forward(x):
        first, *rest = model.projector.children()
        x = first(x)
        for layer in rest:
            x = layer(nn.functional.gelu(x, approximate="tanh"))
        return x

    model.projector.forward = forward


def vision_eps(model, _):
    for tower in model.towers:
        for module in tower.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5


def no_layer_scale(model, _):
    for block in model.towers[0].blocks:
        block.ls1 = block.ls2 = nn.Identity()


def vision_scale(model, _):
    """As if each head were one wider than it is."""
    for tower in model.towers:
        for block in tower.blocks:
            width = block.attn.head_dim
            for parameter in block.attn.qkv.parameters():
                parameter[: tower.embed_dim] *= (width / (width + 1)) ** 0.5


def qkv_by_head(model, _):
    """Packed [heads, 3, head_dim] instead of [3, heads, head_dim]."""
    for tower in model.towers:
        for block in tower.blocks:
            for parameter in block.attn.qkv.parameters():
                parameter.copy_(parameter.unflatten(0, (block.attn.num_heads, 3, -1)).transpose(0, 1).flatten(0, 2))


def transposed_grid(model, _):
    for tower in model.towers:
        side = int(tower.pos_embed.shape[1] ** 0.5)
        tower.pos_embed.copy_(tower.pos_embed.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2))


def prefix_position(model, _):
    """The first position added to the class token too."""
    model.towers[0].cls_token += model.towers[0].pos_embed[:, :1]


def swapped_towers(model, _):
    model.project = lambda features: model.projector(torch.cat(features[::-1], dim=2))


def unrounded_normalization(_, preprocess):
    preprocess.normalize = [{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}, *preprocess.normalize[1:]]


def fill_of_first(_, preprocess):
    preprocess.fill = (123, 116, 103)


ALWAYS = {
    "RMSNorm eps 1e-5 for 1e-6, or the other way round": other_rms_eps,
    "RoPE over neighbors (traditional)": traditional_rope,
    "RoPE theta 2 % off in its logarithm": other_theta,
    "key heads interleaved among query heads": interleaved_kv_heads,
    "decoder: softmax scale of head_dim + 1": decoder_scale,
    "picture before <s>": picture_first,
    "encoders: final norm applied": partial(tower_output, final_norm),
    "encoders: last block used": partial(tower_output, last_block),
    "encoders: LayerNorm eps 1e-5": vision_eps,
    "encoders: softmax scale of head_dim + 1": vision_scale,
    "encoders: qkv packed by head": qkv_by_head,
    "encoders: patch grid transposed": transposed_grid,
    "SigLIP with tanh GELU": partial(tanh_gelu, -1),
    "projector with tanh GELU": tanh_projector,
}
WITH_DINO = {
    "DINOv2 with tanh GELU": partial(tanh_gelu, 0),
    "LayerScale left out": no_layer_scale,
    "class and register tokens kept, as many patches dropped": partial(tower_output, keep_prefix),
    "position added to the class token": prefix_position,
    "encoders concatenated in the wrong order": swapped_towers,
    "mean and std not rounded to bfloat16": unrounded_normalization,
}
WITH_WINDOW = {"window ignored": no_window, "window one longer": partial(window, 1), "window one shorter": partial(window, -1)}
WITH_LETTERBOX = {"letterbox filled with DINOv2's mean": fill_of_first}


def mistakes_for(recipe):
    return (
        ALWAYS
        | (WITH_DINO if len(recipe["towers"]) == 2 else {})
        | (WITH_WINDOW if recipe["text"].get("sliding_window") else {})
        | (WITH_LETTERBOX if recipe["strategy"] == "letterbox" else {})
    )


def outputs(folder, mistake=None):
    """(features, last-row logits) of every case."""
    model, preprocess = load_model(folder / "model"), load_preprocessor(folder / "model")
    if mistake:
        mistake(model, preprocess)
    features, projected = {}, {None: None}
    for path in sorted((HERE / "pictures").glob("*.png")):
        features[path.stem] = model.features(preprocess(load_picture(path)))
        projected[path.stem] = model.project(features[path.stem])
    cases = read_json(folder / "expected.json")["cases"]
    logits = [model.logits(case["ids"], projected[case["picture"]]) for case in cases]
    return [tensor for tensors in features.values() for tensor in tensors], logits


def distance(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


def main(names):
    unseen = []
    for name in names or CHECKPOINTS:
        folder = Path(HERE / name)
        right = outputs(folder)
        print(f"{name:58} features    logits")
        for title, mistake in mistakes_for(CHECKPOINTS[name]).items():
            moved = [distance(a, b) for a, b in zip(right, outputs(folder, mistake))]
            print(f"  {title:55} {moved[0]:9.2e} {moved[1]:9.2e}", flush=True)
            if max(moved) <= 2 * TOLERANCE:
                unseen.append(f"{name}: {title}")
    if unseen:
        sys.exit("not to be seen at twice the tolerance:\n  " + "\n  ".join(unseen))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        main(sys.argv[1:])
