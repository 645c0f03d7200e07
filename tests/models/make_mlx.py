"""Makes tests/models/mlx: the checkpoints of the other scripts as mlx-vlm's convert writes them,
dense, in 8 and in 4 bits, and the logits that mlx-vlm gives them.
`python tests/models/make_mlx.py [NAME ...]`, with requirements-mlx.txt.
"""

import copy
import json
import shutil
import sys

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_vlm.convert import skip_multimodal_module
from mlx_vlm.quant_utils import quantize_model
from mlx_vlm.utils import load_model, save_config, save_weights
from safetensors.numpy import load_file, save_file

from reference import HERE, write_json

NAMES = ("paligemma", "qwen2_vl", "qwen2_5_vl")
SCENARIOS = ["one"]


def logits(model, name, expected, case, scenario):
    ids = mx.array([case["ids"]])
    pixels = expected.get(f"{scenario}.pixels")
    given = {}
    if pixels is not None:
        pixels = mx.array(pixels)
    if name.startswith("qwen"):
        given["image_grid_thw"] = mx.array(case["grids"]) if case["grids"] else None
        mask = None
    else:
        mask = mx.ones_like(ids)
    out = model(ids, pixels, mask, **given)
    return np.array(getattr(out, "logits", out)[0].astype(mx.float32))


def make(name):
    source = HERE / name / "model"
    expected = load_file(HERE / name / "expected.safetensors")
    cases = json.loads((HERE / name / "cases.json").read_text())
    config = json.loads((source / "config.json").read_text())
    found = {}
    for bits in (None, 8, 4):
        folder = HERE / "mlx" / f"{name}_{f'{bits}bit' if bits else 'dense'}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model = load_model(source, lazy=False)
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
        for scenario in SCENARIOS:
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
for name in sys.argv[1:] or NAMES:
    found |= make(name)
save_file(found, HERE / "mlx" / "expected.safetensors")
