"""Writes a GGUF file for llama.cpp: the decoder's sizes and the tokens of a folder's model, with
random numbers in BF16, of about the size that weights have.

    python gguf_tiny.py FOLDER OUTPUT
"""

import json
import sys
from pathlib import Path

import gguf
import numpy

folder, output = Path(sys.argv[1]), sys.argv[2]
config = json.loads((folder / "config.json").read_text())["text_config"]
tokenizer = json.loads((folder / "tokenizer.json").read_text())
hidden, inner = config["hidden_size"], config["intermediate_size"]
heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
width = hidden // heads
rows = config["vocab_size"]


def matrix(rows, columns):
    random = numpy.random.default_rng(rows * columns)
    wide = random.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(0.05)
    return (wide.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)


writer = gguf.GGUFWriter(output, "llama")
writer.add_context_length(config["max_position_embeddings"])
writer.add_embedding_length(hidden)
writer.add_block_count(config["num_hidden_layers"])
writer.add_feed_forward_length(inner)
writer.add_head_count(heads)
writer.add_head_count_kv(kv_heads)
writer.add_rope_dimension_count(width)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_vocab_size(rows)

# In the order of their ids, which is that of the merges: earlier ones score higher.
tokens = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)
tokens += [f"<unused{i}>" for i in range(rows - len(tokens))]


def kind(i, token):
    if i == 0:
        return gguf.TokenType.UNKNOWN
    if i < 3:
        return gguf.TokenType.CONTROL
    if token.startswith("<0x"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.UNUSED if token.startswith("<unused") else gguf.TokenType.NORMAL


writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([-float(i) for i in range(rows)])
writer.add_token_types([kind(i, token) for i, token in enumerate(tokens)])
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)

scheme = gguf.GGMLQuantizationType.BF16
shapes = {
    "attn_q": (hidden, hidden),
    "attn_k": (kv_heads * width, hidden),
    "attn_v": (kv_heads * width, hidden),
    "attn_output": (hidden, hidden),
    "ffn_gate": (inner, hidden),
    "ffn_up": (inner, hidden),
    "ffn_down": (hidden, inner),
}
norm = numpy.ones(hidden, dtype=numpy.float32)
for name in ["token_embd", "output"]:
    writer.add_tensor(f"{name}.weight", matrix(rows, hidden), raw_dtype=scheme)
writer.add_tensor("output_norm.weight", norm)
for layer in range(config["num_hidden_layers"]):
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.{layer}.{name}.weight", matrix(*shape), raw_dtype=scheme)
    for name in ["attn_norm", "ffn_norm"]:
        writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
