"""Scores a checkpoint folder on the held-out set: the share of answers exactly right, by kind of
question.

    python evaluate.py ../video

The processor and the model are transformers' Qwen2VLProcessor and Qwen2VLForConditionalGeneration.
Weights are the folder's bfloat16 ones, arithmetic is f32, decoding is greedy. The positions are
given to the model: the text after a video goes on after the largest position so far, as in the
released algorithm, from which some versions of transformers differ.
"""

import json
import sys
from collections import Counter

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from clips import FRAMES, SIDE
from heldout import HERE
from model import positions


class Reader:
    """A checkpoint that answers a question about one clip."""

    def __init__(self, folder):
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def answer(self, frames, question, most=40):
        """frames: [frames, 56, 56, 3] in 0..255, or None for a text alone."""
        video = [] if frames is None else [{"type": "video"}]
        messages = [{"role": "user", "content": [*video, {"type": "text", "text": question}]}]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        videos = None if frames is None else [torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)]
        inputs = dict(self.processor(text=[text], videos=videos, return_tensors="pt"))
        ids = inputs.pop("input_ids")
        inputs.pop("attention_mask")
        tokenizer, config = self.processor.tokenizer, self.model.config
        marks = (ids[0] == config.video_token_id).nonzero()
        before = int(marks[0]) if len(marks) else 0
        place = positions(len(marks) // 4, before, ids.shape[1])[:, None]
        found, cache = [], None
        while len(found) < most:
            output = self.model(input_ids=ids, position_ids=place, past_key_values=cache, use_cache=True, **inputs)
            token = int(output.logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            found.append(token)
            inputs, cache = {}, output.past_key_values
            ids, place = torch.tensor([[token]]), place[:, :, -1:] + 1
        return tokenizer.decode(found)


def main(folder):
    reader = Reader(folder)
    sheet = np.asarray(Image.open(HERE / "heldout.png").convert("RGB"))
    right, asked = Counter(), Counter()
    for line in (HERE / "heldout.jsonl").read_text().splitlines():
        item = json.loads(line)
        row = sheet[item["row"] * SIDE : (item["row"] + 1) * SIDE]
        frames = row.reshape(SIDE, FRAMES, SIDE, 3).swapaxes(0, 1)
        found = reader.answer(frames, item["question"])
        asked[item["kind"]] += 1
        right[item["kind"]] += found == item["answer"]
        if found != item["answer"]:
            print(f"row {item['row']}: {item['question']} {item['answer']!r} wanted, {found!r} found", file=sys.stderr)
    for kind in sorted(asked):
        print(f"{kind:16} {right[kind]:4} of {asked[kind]:4}  {100 * right[kind] / asked[kind]:5.1f} %")
    print(f"{'all':16} {right.total():4} of {asked.total():4}  {100 * right.total() / asked.total():5.1f} %")


if __name__ == "__main__":
    main(sys.argv[1])
