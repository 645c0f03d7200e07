"""Loads a folder with mlx-vlm and compares its logits with those that `examples/stages` wrote of
it:
`python tests/models/check_with_mlx_vlm.py FOLDER stages.safetensors`, with requirements-mlx.txt.
"""

import sys

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map
from mlx_vlm.utils import load_model
from pathlib import Path
from safetensors.numpy import load_file

model = load_model(Path(sys.argv[1]), lazy=False)
model.update(tree_map(lambda x: x.astype(mx.float32) if mx.issubdtype(x.dtype, mx.floating) else x, model.parameters()))
stages = load_file(sys.argv[2])
ids = mx.array(stages["input_ids"][None].astype(np.int32))
kind, pixels = model.config.model_type, mx.array(stages["pixels"])
given = {"image_grid_thw": mx.array(stages["grids"])} if kind == "qwen2_vl" else {}
mask = mx.ones_like(ids) if kind == "paligemma" else None
# Tiles are those of one conversation.
pixels = pixels[None] if kind == "smolvlm" else pixels
out = model(ids, pixels, mask, **given)
theirs = np.array(getattr(out, "logits", out)[0].astype(mx.float32))
far = float(np.abs(theirs - stages["logits"]).max())
print(f"{sys.argv[1]}: logits {theirs.shape}, furthest {far:.2e}, of up to {np.abs(theirs).max():.1f}")
sys.exit(far > 5e-4)
