"""Makes tests/models/mlx: the checkpoints of the other scripts as mlx-vlm's convert writes them,
dense, in 8 and in 4 bits, and the logits that mlx-vlm gives them.
`python tests/models/make_mlx.py [NAME ...]`, with requirements-mlx.txt.
"""

import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_vlm.convert import skip_multimodal_module
from mlx_vlm.quant_utils import quantize_model
from mlx_vlm.utils import load_model, save_config, save_weights
from safetensors.numpy import load_file, save_file

from reference import HERE, write_json

# The conversation that each model is compared in. Not idefics3: mlx-vlm ignores Llama 3.1's
# frequencies, and its positions of patches are wrong if their number on a side is not a power of two.
SCENARIOS = {
    "paligemma": "one", "qwen2_vl": "one", "qwen2_5_vl": "one", "gemma3": "one", "gemma3_text": "text", "smolvlm": "one",
}


def open_model(source):
    """Gemma 3 needs two fields that the published files have elsewhere or not at all."""
    config = json.loads((source / "config.json").read_text())
    if config["model_type"] != "gemma3":
        return load_model(source, lazy=False)
    config["hidden_size"] = config["text_config"]["hidden_size"]
    config["text_config"]["mm_tokens_per_image"] = config["mm_tokens_per_image"]
    with tempfile.TemporaryDirectory() as place:
        for file in source.iterdir():
            shutil.copy(file, place)
        write_json(Path(place) / "config.json", config)
        return load_model(Path(place), lazy=False)


def gemma3_logits(model, ids, pixels):
    """mlx-vlm masks nothing in a prompt with pictures, not even what follows. With the masks that
    transformers makes, the layers are its own."""
    language, config = model.language_model, model.config
    rows = mx.arange(ids.shape[1])
    seen = rows[None, :] <= rows[:, None]
    if pixels is None:
        x = language.model.embed_tokens(ids)
    else:
        x = model.get_input_embeddings(ids, pixels, mx.ones_like(ids)).inputs_embeds
        is_image = ids[0] == config.image_token_index
        starts = is_image & ~mx.concatenate([mx.array([False]), is_image[:-1]])
        blocks = mx.where(is_image, mx.cumsum(starts), 0)
        seen = seen | ((blocks[:, None] == blocks[None, :]) & is_image[:, None])
    text = language.config
    near = seen & (rows[None, :] > rows[:, None] - text.sliding_window)
    x = x * mx.array(text.hidden_size**0.5, mx.bfloat16).astype(x.dtype)
    for layer in language.model.layers:
        x = layer(x, near if layer.self_attn.is_sliding else seen)
    return language.lm_head(language.model.norm(x))


def logits(model, name, expected, case, scenario):
    ids = mx.array([case["ids"]])
    pixels = expected.get(f"{scenario}.pixels")
    given = {}
    if pixels is not None:
        pixels = mx.array(pixels)
    if name.startswith("gemma3"):
        return np.array(gemma3_logits(model, ids, pixels)[0].astype(mx.float32))
    if name == "smolvlm":
        # All tiles of one conversation.
        pixels, mask = pixels[None], None
    elif name.startswith("qwen"):
        given["image_grid_thw"] = mx.array(case["grids"]) if case["grids"] else None
        mask = None
    else:
        mask = mx.ones_like(ids)
    out = model(ids, pixels, mask, **given)
    return np.array(getattr(out, "logits", out)[0].astype(mx.float32))


def make(name):
    scenario = SCENARIOS[name]
    source = HERE / name / "model"
    expected = load_file(HERE / name / "expected.safetensors")
    cases = json.loads((HERE / name / "cases.json").read_text())
    config = json.loads((source / "config.json").read_text())
    found = {}
    for bits in (None, 8, 4):
        folder = HERE / "mlx" / f"{name}_{f'{bits}bit' if bits else 'dense'}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = open_model(source)
        model.update(tree_map(lambda x: x.astype(mx.float32), model.parameters()))
        written = copy.deepcopy(config)
        if bits:
            written.setdefault("vision_config", {})
            # Of the last layer more bits, so that there are exceptions by path.
            more = f"layers.{written.get('text_config', written)['num_hidden_layers'] - 1}.mlp"

            def predicate(path, module):
                if skip_multimodal_module(path) or not hasattr(module, "to_quantized") or module.weight.shape[-1] % 32:
                    return False
                return {"group_size": 32, "bits": 8} if bits == 4 and more in path else True

            model, written = quantize_model(model, written, 32, bits, mode="affine", quant_predicate=predicate)
        # As it is stored, and computed with in float32.
        stored = lambda x: x.astype(mx.bfloat16) if mx.issubdtype(x.dtype, mx.floating) else x
        wide = lambda x: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x
        model.update(tree_map(lambda x: wide(stored(x)), model.parameters()))
        rows = logits(model, name, expected, cases[scenario], scenario)
        reference = expected[f"{scenario}.logits"]
        far = np.abs(rows[-len(reference):] - reference).max()
        print(folder.name, scenario, rows.shape, "from transformers:", far)
        found[f"{folder.name}.{scenario}"] = np.ascontiguousarray(rows[-8:])
        model.update(tree_map(stored, model.parameters()))
        save_weights(folder, model, donate_weights=True)
        for file in source.glob("*.json"):
            if file.name not in ("config.json", "model.safetensors.index.json"):
                shutil.copy(file, folder)
        save_config(written, config_path=folder / "config.json")
    return found


# With names, only these; the others stay as they are.
found = load_file(HERE / "mlx" / "expected.safetensors") if sys.argv[1:] else {}
for name in sys.argv[1:] or SCENARIOS:
    found |= make(name)
save_file(found, HERE / "mlx" / "expected.safetensors")
