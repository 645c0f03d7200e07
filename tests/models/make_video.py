"""Makes tests/models/videos, and what transformers makes of videos with the checkpoints of
make_qwen2_vl.py: tests/models/NAME/video_cases.json and video_expected.safetensors.
`python tests/models/make_video.py`, with requirements.txt.
"""

import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from reference import HERE, greedy, pictures, write_json

MODELS = {
    "qwen2_vl": Qwen2VLForConditionalGeneration, "qwen2_vl_untied": Qwen2VLForConditionalGeneration,
    "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen2_5_vl_untied": Qwen2_5_VLForConditionalGeneration,
}
# Width, height, frames.
VIDEOS = {"even": (62, 90, 4), "odd": (96, 40, 5), "still": (50, 50, 1), "long": (56, 56, 8)}
text = lambda words: {"type": "text", "text": words}
image = lambda name: {"type": "image", "name": name}
video = lambda name, fps=2.0: {"type": "video", "name": name, "fps": fps}
user = lambda *parts: {"role": "user", "content": list(parts)}
SCENARIOS = {
    "even": [user(video("even"), text("How many shapes are there?"))],
    "odd": [user(video("odd"), text("How many shapes?"))],
    "slow": [user(video("odd", 0.75), text("How many shapes?"))],
    "still": [user(video("still"), text("Describe it."))],
    # Its last time is later than its rows and columns are many.
    "long": [user(text("And now"), video("long", 1.5), text("how many?"))],
    "both": [user(image("smooth"), text("The left one is red, and"), video("even"), text(" the right one?"))],
    "reversed": [user(video("even"), text("and"), image("smooth"), text(" the right one?"))],
    "messages": [
        user(video("odd"), text("What is in the picture?")),
        {"role": "assistant", "content": [text("A cat and a dog; 12 of them.")]},
        user(text("Describe it\nin a word."), video("still", 1.0), image("tall")),
    ],
}


def videos():
    """Waves that move to the right, with a dark square that moves down."""
    made = {}
    for name, (width, height, count) in VIDEOS.items():
        folder = HERE / "videos" / name
        folder.mkdir(parents=True, exist_ok=True)
        y, x = np.mgrid[0:height, 0:width]
        made[name] = []
        for i in range(count):
            wave = lambda a, b, c: 127.5 + 127.5 * np.sin(a * (x - 5 * i) / width + b * y / height + c)
            values = np.stack([wave(7, 3, 0), wave(-4, 9, 1), wave(2, -6, 2)], -1)
            values[6 * i % height:][:9, 10:25] *= 0.2
            path = folder / f"{i:02}.png"
            Image.fromarray(values.astype(np.uint8)).save(path, optimize=True)
            made[name].append(Image.open(path).convert("RGB"))
    return made


def patches(frames, processor, video_processor):
    """The patches of a video and its grid: those of transformers' PIL processor, two frames in each.

    Its processor for videos uses torchvision, which differs by a level or two.
    """
    frames = frames + frames[-1:] * (len(frames) % 2)
    single = processor(images=frames, return_tensors="pt", temporal_patch_size=1)
    _, rows, columns = single["image_grid_thw"][0].tolist()
    pixels = single["pixel_values"].reshape(len(frames) // 2, 2, rows * columns, 3, 14 * 14)
    pixels = pixels.permute(0, 2, 3, 1, 4).reshape(-1, 3 * 2 * 14 * 14)
    stacked = torch.stack([torch.from_numpy(np.array(frame)).permute(2, 0, 1) for frame in frames])
    other = video_processor(videos=[stacked], return_tensors="pt", do_sample_frames=False)
    grid = [len(frames) // 2, rows, columns]
    assert other["video_grid_thw"].tolist() == [grid], (other["video_grid_thw"], grid)
    far = (other["pixel_values_videos"] - pixels).abs().max()
    assert far < 0.05, far
    return pixels, grid


def place(kinds, grids, steps):
    """M-RoPE's positions as published (https://arxiv.org/abs/2409.12191, 2.1): what follows a picture
    or a video starts behind the largest position so far. transformers 5.3 to 5.24 let it start behind
    the larger side of the grid instead, which differs for a video of many frames."""
    rows, at, next_ = [], 0, 0
    grids, steps = list(grids), list(steps)
    while at < len(kinds):
        if kinds[at] == 0:
            rows.append([next_] * 3)
            at, next_ = at + 1, next_ + 1
            continue
        (t, h, w), step = grids.pop(0), steps.pop(0)
        times = (torch.arange(t) * torch.tensor(step, dtype=torch.float32)).long().tolist()
        here = [[next_ + times[i], next_ + y, next_ + x] for i in range(t) for y in range(h // 2) for x in range(w // 2)]
        rows += here
        at += len(here)
        next_ = max(max(row) for row in here) + 1
    return torch.tensor(rows).T[:, None]


def make(name):
    if sys.argv[1:] and name not in sys.argv[1:]:
        return
    folder = HERE / name
    model = MODELS[name].from_pretrained(folder / "model", dtype=torch.float32, attn_implementation="eager").eval()
    tokens = PreTrainedTokenizerFast(tokenizer_file=str(folder / "model" / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokens.chat_template = TEMPLATE
    config = model.config
    settings = {"min_pixels": 3136, "max_pixels": 12544}
    processor, video_processor = Qwen2VLImageProcessorPil(**settings), Qwen2VLVideoProcessor(**settings)
    expected, cases = {}, {}
    for scenario, messages in SCENARIOS.items():
        if "untied" in name and scenario != "both":
            continue
        media = [part for message in messages for part in message["content"] if part["type"] != "text"]
        rendered = tokens.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        made = {"image": [], "video": []}
        all_grids, steps, all_pixels = [], [], []
        for part in media:
            kind = part["type"]
            if kind == "image":
                one = processor(images=[PICTURES[part["name"]]], return_tensors="pt")
                pixels, grid = one["pixel_values"], one["image_grid_thw"][0].tolist()
                steps.append(1.0)
            else:
                pixels, grid = patches(VIDEO[part["name"]], processor, video_processor)
                per_second = getattr(config.vision_config, "tokens_per_second", None) if "2_5" in name else None
                steps.append(1.0 if per_second is None else per_second * 2 / part["fps"])
            made[kind].append((pixels, grid))
            all_grids.append(grid)
            all_pixels.append(pixels)
            rendered = rendered.replace(f"<|{kind}_pad|>", f"<|{kind}_one|>" * (grid[0] * grid[1] * grid[2] // 4), 1)
        rendered = rendered.replace("_one|>", "_pad|>")
        prompt = tokens(rendered, add_special_tokens=False, return_tensors="pt")["input_ids"]
        inputs = {}
        for kind, (pixels, grid) in {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}.items():
            if made[kind]:
                inputs[pixels] = torch.cat([one for one, _ in made[kind]])
                inputs[grid] = torch.tensor([one for _, one in made[kind]])

        def forward(generated):
            ids = torch.cat([prompt, torch.tensor([generated], dtype=prompt.dtype)], 1) if generated else prompt
            kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
            assert not kinds[0, prompt.shape[1]:].any(), "an answer with a placeholder: change the question"
            positions = place(kinds[0].tolist(), all_grids, steps)
            with torch.no_grad():
                return model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, **inputs).logits[0], positions, kinds

        rows, positions, kinds = forward([])
        if scenario != "long":
            seconds = [2 / part["fps"] for part in media if part["type"] == "video"]
            given = {"image_grid_thw": inputs.get("image_grid_thw"), "video_grid_thw": inputs["video_grid_thw"]}
            if "2_5" in name:
                given["second_per_grid_ts"] = torch.tensor(seconds)
            theirs, _ = model.model.get_rope_index(prompt, kinds, **given)
            # In seconds, the last time is late in other scenarios, too.
            assert torch.equal(theirs, positions) or "2_5" in name, scenario
        with torch.no_grad():
            features = [
                model.get_image_features(pixels, torch.tensor([grid])) if part["type"] == "image"
                else model.get_video_features(pixels, torch.tensor([grid]))
                for part, pixels, grid in zip(media, all_pixels, all_grids)
            ]
        features = [torch.cat(list(getattr(one, "pooler_output", one))) for one in features]
        out = greedy(lambda generated: forward(generated)[0][-1])
        # Each video once.
        if scenario in ("even", "odd", "still") and "untied" not in name:
            expected[f"{scenario}.pixels"] = torch.cat(all_pixels).contiguous()
        expected[f"{scenario}.features"] = torch.cat(features).contiguous().clone()
        expected[f"{scenario}.positions"] = positions[:, 0].int().contiguous().clone()
        expected[f"{scenario}.logits"] = rows[-8:].contiguous().clone()
        cases[scenario] = {
            "messages": messages, "images": [part["name"] for part in media], "ids": prompt[0].tolist(), "greedy": out, "grids": all_grids,
        }
        print(name, scenario, prompt.shape, all_grids, "logits std", float(rows.std()), out)
    save_file(expected, folder / "video_expected.safetensors")
    write_json(folder / "video_cases.json", cases)


PICTURES, VIDEO = pictures(), videos()
TEMPLATE = (HERE / "qwen2_vl_untied" / "model" / "chat_template.jinja").read_text()
for name in MODELS:
    make(name)
