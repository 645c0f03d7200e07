"""PyTorch: transformers' Mistral and timm's two vision encoders, in bfloat16, of the real size with
random numbers.
"""

import importlib.metadata

import timm
import torch
from transformers import DynamicCache, MistralConfig, MistralForCausalLM

import common

ENCODERS = ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"]


def fill(model, device):
    """Gives a model that was made without memory memory and numbers; drawing each of 8 billion
    would take longer than all the rest.
    """
    model.to_empty(device=device)
    pool = torch.randn(1 << 22, device=device, dtype=torch.float32) * 0.02
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                flat = tensor.view(-1)
                for at in range(0, flat.numel(), pool.numel()):
                    part = flat[at : at + pool.numel()]
                    part.copy_(pool[: part.numel()])
    return model.eval()


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def images(device, dtype, runs):
    """Seconds of both encoders, up to the last block but one, whose output the model takes."""
    models = []
    for name in ENCODERS:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0, img_size=224)
        models.append(fill(model.to(dtype), device))
    pixels = torch.randn(1, 3, 224, 224, device=device, dtype=dtype)

    def encode():
        for model in models:
            model.get_intermediate_layers(pixels, n={len(model.blocks) - 2})
        synchronize(device)

    return common.times(runs, encode)


def decoder(device):
    config = MistralConfig(
        hidden_size=common.HIDDEN,
        intermediate_size=common.INNER,
        num_hidden_layers=common.LAYERS,
        num_attention_heads=common.HEADS,
        num_key_value_heads=common.KV_HEADS,
        head_dim=common.HEAD,
        vocab_size=common.VOCABULARY,
        rms_norm_eps=common.RMS_NORM_EPS,
        sliding_window=None,
    )
    with torch.device("meta"):
        model = MistralForCausalLM(config).to(torch.bfloat16)
    model = fill(model, device)
    # Computed buffers, which are not in the file.
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(device)
    return model


def main():
    options = common.arguments(__doc__)
    device = "cpu" if options.device == "cpu" else "cuda"
    torch.set_num_threads(options.threads)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ["transformers", "timm", "torch"])
    with torch.inference_mode():
        if device == "cpu":
            seconds = images(device, torch.float32, options.runs)
            common.row(versions, "vision in float32", options.device, image=common.stage(1, seconds), whole=False)
        image = images(device, torch.bfloat16, options.runs)
        model = decoder(device)
        prompt = torch.arange(3, 3 + options.positions, device=device)[None]
        token = torch.tensor([[5]], device=device)
        held = {}

        def prefill():
            held["cache"] = DynamicCache()
            model(prompt, past_key_values=held["cache"], use_cache=True, logits_to_keep=1)
            synchronize(device)

        def decode():
            for _ in range(options.tokens):
                model(token, past_key_values=held["cache"], use_cache=True)
                synchronize(device)

        prefill, decode = common.times(options.runs, prefill), common.times(options.runs, decode)
    common.row(
        versions,
        "BF16",
        options.device,
        image=common.stage(1, image),
        prefill=common.stage(options.positions, prefill),
        decode=common.stage(options.tokens, decode),
    )


if __name__ == "__main__":
    main()
