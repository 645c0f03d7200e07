"""What the scripts here share: small tokenizers in the published models' kinds, random weights, and
what transformers makes of a conversation.

transformers' PIL image processors are taken: torchvision's differ by a level or two.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
TEXT = [
    "What is in the picture? Describe it in one word, please.", "answer en how many shapes are there?",
    "caption en", "detect circle ; square", "The left one is red, and the right one is blue.",
    "You are a helpful assistant. Be brief.\nAnd now the second line.", "USER: hello ASSISTANT: Hi there!",
    "A picture of a cat and a dog; 12 of them, 345 more.", "größer, Überraschung, naïve, 图片里有什么?",
] * 3


def byte_pieces():
    return [f"<0x{i:02X}>" for i in range(256)]


def sentencepiece(special, extra, bos, prepend):
    """A BPE with byte fallback, as Gemma's and Llama's are: spaces are `▁`."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trained.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=160, special_tokens=[], show_progress=False))
    old = json.loads(trained.to_str())["model"]
    pieces = [token for token, _ in special] + byte_pieces() + [p for p, _ in sorted(old["vocab"].items(), key=lambda e: e[1])]
    pieces += [p for p in ["▁", "\n"] if p not in pieces]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(pair) for pair in old["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    steps = [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *steps]) if prepend else steps[0]
    undo = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(undo + [decoders.Strip(" ", 1, 0)] if prepend else undo)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token, is_special in special if is_special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in extra])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return tokenizer


def byte_level(special):
    """A BPE over bytes, as Qwen's is."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def randomize(model, seed):
    """Weights that make features and logits of size one, so that a mistake shows."""
    model.float()
    generator = torch.Generator().manual_seed(seed)
    text_config = model.config.get_text_config()
    gemma = "gemma" in str(text_config.model_type)
    text_only = model.config is text_config
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if gemma and text_config.tie_word_embeddings and name.endswith("model.norm.weight"):
                # The head is the embedding, which is small: else each token says itself again.
                parameter.copy_(6.0 + noise)
            elif parameter.ndim == 1 and name.endswith("weight"):
                in_decoder = text_only or "language_model" in name
                parameter.copy_(0.2 * noise + (0.0 if gemma and in_decoder else 1.0))
            elif parameter.ndim == 1:
                parameter.copy_(0.2 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(noise * (0.04 if gemma else 0.5))
            elif "position_embedding" in name:
                parameter.copy_(0.5 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(1.6 * noise / fan_in**0.5)
        # As the published ones are stored; what computes is float32.
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model.eval()


def hub_names(state, rename):
    tensors = {}
    for name, tensor in state.items():
        new = rename(name)
        if new is not None:
            tensors[new] = tensor.detach().bfloat16().contiguous().clone()
    return tensors


def save(folder, tensors, config, processor, tokenizer, settings, template=None, generation=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", processor)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)
    if template:
        write_json(folder / "chat_template.json", {"chat_template": template})
    if generation:
        write_json(folder / "generation_config.json", generation)


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def pictures():
    """Four pictures of other sizes: smooth, noisy, wide, tall."""
    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(7)
    sizes = {"smooth": (61, 83), "noise": (97, 70), "wide": (200, 45), "tall": (40, 150)}
    made = {}
    for name, (width, height) in sizes.items():
        y, x = np.mgrid[0:height, 0:width]
        wave = lambda a, b, c: 127.5 + 127.5 * np.sin(a * x / width + b * y / height + c)
        values = np.stack([wave(7, 3, 0), wave(-4, 9, 1), wave(2, -6, 2)], -1)
        if name == "noise":
            values = values * 0.5 + random.uniform(0, 127, values.shape)
        Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(folder / f"{name}.png", optimize=True)
        made[name] = Image.open(folder / f"{name}.png").convert("RGB")
    return made


def greedy(step, count=24):
    """Returns the greedy tokens. Each is computed from the whole sequence: there is no cache to test."""
    tokens = []
    for _ in range(count):
        tokens.append(int(step(tokens).argmax()))
    return tokens
