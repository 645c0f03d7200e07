"""mlx-lm's Mistral on MLX's own Python package. On the CPU a whole model would take hours: a few
layers are measured, and the rest is extrapolated.
"""

import importlib.metadata

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import cache, llama

import common

# Bits (None: dense), and the dtype of activations, scales and biases. bfloat16 is what mlx-lm
# loads; float32 is faster on the CPU.
SCHEMES = [(None, mx.bfloat16), (8, mx.float32), (4, mx.float32), (4, mx.bfloat16)]


def build(layers, bits, dtype):
    model = llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=common.HIDDEN,
            num_hidden_layers=layers,
            intermediate_size=common.INNER,
            num_attention_heads=common.HEADS,
            num_key_value_heads=common.KV_HEADS,
            head_dim=common.HEAD,
            rms_norm_eps=common.RMS_NORM_EPS,
            vocab_size=common.VOCABULARY,
            rope_theta=common.ROPE_THETA,
            tie_word_embeddings=False,
        )
    )
    model.set_dtype(dtype)
    if bits:
        nn.quantize(model, group_size=64, bits=bits)
    mx.eval(model.parameters())
    return model


def measure(model, positions, tokens, runs):
    """Returns the seconds for a prompt, and for so many tokens after it."""
    prompt = mx.arange(positions)[None] + 3
    token = mx.array([[5]])
    held = []

    def prefill():
        held[:] = cache.make_prompt_cache(model)
        mx.eval(model(prompt, cache=held)[:, -1])

    def decode():
        for _ in range(tokens):
            mx.eval(model(token, cache=held))

    return common.times(runs, prefill), common.times(runs, decode)


def median(values):
    return sorted(values)[len(values) // 2]


def extrapolated(few, many, difference):
    """The seconds of all layers, from those with one layer and with `difference` more."""
    layer = (median(many) - median(few)) / difference
    return median(few) + (common.LAYERS - 1) * layer


def short(bits, dtype, options):
    """One layer and three, 16 positions, 3 tokens."""
    positions, tokens = 16, 3
    few = measure(build(1, bits, dtype), positions, tokens, options.runs)
    many = measure(build(3, bits, dtype), positions, tokens, options.runs)
    prefill = extrapolated(few[0], many[0], 2) * options.positions / positions
    decode = extrapolated(few[1], many[1], 2)
    by_layers = f"from 1 and 3 of {common.LAYERS} layers"
    return (
        common.stage(options.positions, [prefill], f"{by_layers} and {positions} of {options.positions} positions"),
        common.stage(tokens, [decode], by_layers),
    )


def main():
    options = common.arguments(__doc__)
    mx.set_default_device(mx.cpu if options.device == "cpu" else mx.gpu)
    program = f"mlx-lm {importlib.metadata.version('mlx-lm')}, MLX {mx.__version__}"
    for bits, dtype in SCHEMES:
        if options.device == "gpu" and dtype == mx.float32:
            continue
        if options.device == "cpu":
            prefill, decode = short(bits, dtype, options)
        else:
            model = build(common.LAYERS, bits, dtype)
            prefill, decode = measure(model, options.positions, options.tokens, options.runs)
            prefill, decode = common.stage(options.positions, prefill), common.stage(options.tokens, decode)
        name = {None: "BF16", 8: "INT8", 4: "INT4"}[bits]
        if bits:
            name += ", float32 activations" if dtype == mx.float32 else ", bfloat16 activations"
        common.row(program, name, options.device, prefill=prefill, decode=decode, whole=options.device == "gpu")


if __name__ == "__main__":
    main()
