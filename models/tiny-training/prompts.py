"""The tokenizer of the tiny checkpoint (Llama style: BPE, byte fallback, "▁" for a space) and the
pure prompt format.
"""

import json
import random

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from pictures import CHARACTERS, WORDS, random_scene
from questions import conversation

BOS, EOS = 1, 2
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def train_tokenizer():
    """Every word of the questions and answers becomes one token; digits stay single; any other text
    falls to bytes.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = llama_normalizer()
    # Keeps merges inside words. The finished tokenizer, like Llama's, needs no pre-tokenizer: it
    # has no other merges.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace("▁", prepend_scheme="never"),
        pre_tokenizers.Punctuation(),
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split("\n", "isolated"),
    ])
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=SPECIAL + BYTES,
        initial_alphabet=["▁", *CHARACTERS, *CHARACTERS.lower(), *".,:?!'"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample_text(), trainer)
    return llama_tokenizer(json.loads(tokenizer.to_str())["model"])


def llama_normalizer():
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def sample_text():
    rng = random.Random("tokenizer")
    for _ in range(3000):
        turns = conversation(random_scene(rng), rng, lambda turns: len(turns) < 8)
        yield " ".join(f"In: {turn.question}\nOut: {turn.answer}" for turn in turns)
    yield " ".join(WORDS * 50)


def llama_tokenizer(trained):
    """The trained vocabulary and merges, in the shape of Llama's tokenizer.json: a line break is a
    byte there.
    """
    pieces = [piece for piece in sorted(trained["vocab"], key=trained["vocab"].get) if piece != "\n"]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in trained["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = llama_normalizer()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", BOS)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, special=True, normalized=False) for piece in SPECIAL + ["<PAD>"]])
    return tokenizer


def prompt(turns, question):
    """The pure prompt for a question after finished turns [(question, answer)]."""
    history = "".join(f"In: {asked}\nOut: {answer}</s>" for asked, answer in turns)
    return f"{history}In: {question}\nOut:"


class TurnEncoder:
    """Token ids of single turns; a conversation is <s> and then its turns one after the other."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.known = {}

    def __call__(self, turn):
        """(ids, is_answer): the turn from "In" to "</s>", and which of the ids the model has to
        answer.
        """
        key = turn.question, turn.answer
        if key not in self.known:
            asked = len(self.tokenizer.encode(prompt([], turn.question), add_special_tokens=False).ids)
            whole = self.tokenizer.encode(f"{prompt([], turn.question)} {turn.answer}", add_special_tokens=False).ids
            self.known[key] = whole + [EOS], [False] * asked + [True] * (len(whole) + 1 - asked)
        return self.known[key]
