"""llama.cpp, through llama-cpp-python, which builds it for this machine: the decoder of the real
size with random numbers, in its own formats.
"""

import ctypes
import importlib.metadata
import os
import tempfile
import time

import gguf
import llama_cpp
import numpy

import common

Type = gguf.GGMLQuantizationType
SCHEMES = {"Q4_0": Type.Q4_0, "Q8_0": Type.Q8_0, "BF16": Type.BF16}


def matrix(scheme, rows, columns):
    """Random numbers of about the size that weights have, packed."""
    random = numpy.random.default_rng(rows * columns)
    if scheme == Type.BF16:
        wide = random.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(0.02)
        return (wide.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)
    # A block: a float16 scale, then 32 numbers of 4 or 8 bits.
    bytes_of_numbers = 16 if scheme == Type.Q4_0 else 32
    blocks = random.integers(0, 256, (rows, columns // 32, 2 + bytes_of_numbers), dtype=numpy.uint8)
    scale = numpy.array([0.004 if scheme == Type.Q4_0 else 0.0003], dtype=numpy.float16)
    blocks[:, :, :2] = scale.view(numpy.uint8)
    return blocks.reshape(rows, -1)


def write(path, scheme):
    """A GGUF file without a tokenizer. All layers have the same numbers, each its own copy in the
    file.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(common.HIDDEN)
    writer.add_block_count(common.LAYERS)
    writer.add_feed_forward_length(common.INNER)
    writer.add_head_count(common.HEADS)
    writer.add_head_count_kv(common.KV_HEADS)
    writer.add_rope_dimension_count(common.HEAD)
    writer.add_rope_freq_base(common.ROPE_THETA)
    writer.add_layer_norm_rms_eps(common.RMS_NORM_EPS)
    writer.add_vocab_size(common.VOCABULARY)
    writer.add_tokenizer_model("no_vocab")
    keys = common.KV_HEADS * common.HEAD
    queries = common.HEADS * common.HEAD
    shapes = {
        "attn_q": (queries, common.HIDDEN),
        "attn_k": (keys, common.HIDDEN),
        "attn_v": (keys, common.HIDDEN),
        "attn_output": (common.HIDDEN, queries),
        "ffn_gate": (common.INNER, common.HIDDEN),
        "ffn_up": (common.INNER, common.HIDDEN),
        "ffn_down": (common.HIDDEN, common.INNER),
    }
    table = matrix(scheme, common.VOCABULARY, common.HIDDEN)
    norm = numpy.ones(common.HIDDEN, dtype=numpy.float32)
    made = {name: matrix(scheme, *shape) for name, shape in shapes.items()}
    writer.add_tensor("token_embd.weight", table, raw_dtype=scheme)
    writer.add_tensor("output.weight", table, raw_dtype=scheme)
    writer.add_tensor("output_norm.weight", norm)
    for layer in range(common.LAYERS):
        for name, packed in made.items():
            writer.add_tensor(f"blk.{layer}.{name}.weight", packed, raw_dtype=scheme)
        for name in ["attn_norm", "ffn_norm"]:
            writer.add_tensor(f"blk.{layer}.{name}.weight", norm)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Decoder:
    def __init__(self, path, options):
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0 if options.device == "cpu" else 999
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = 1024
        parameters.n_threads = parameters.n_threads_batch = options.threads
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        assert self.model and self.context, "llama.cpp could not load its model"

    def read(self, tokens):
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        status = llama_cpp.llama_decode(self.context, llama_cpp.llama_batch_get_one(array, len(tokens)))
        assert status == 0, f"llama_decode: {status}"
        llama_cpp.llama_synchronize(self.context)

    def forget(self):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def free(self):
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)


def measure(path, name, options):
    start = time.perf_counter()
    decoder = Decoder(path, options)
    load = time.perf_counter() - start
    prompt = [3 + i for i in range(options.positions)]

    def prefill():
        decoder.forget()
        decoder.read(prompt)

    def decode():
        for _ in range(options.tokens):
            decoder.read([5])

    prefill, decode = common.times(options.runs, prefill), common.times(options.runs, decode)
    decoder.free()
    common.row(
        f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
        name,
        options.device,
        load=load,
        prefill=common.stage(options.positions, prefill),
        decode=common.stage(options.tokens, decode),
        whole=False,  # the file is mapped: what is resident says nothing
    )


def main():
    options = common.arguments(__doc__)
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, None)
    for name, scheme in SCHEMES.items():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            path = os.path.join(folder, "random.gguf")
            write(path, scheme)
            measure(path, name, options)


if __name__ == "__main__":
    main()
