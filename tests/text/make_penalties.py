"""Writes penalties.json: logits after the penalties of mlx-lm, for tokens that an answer contains.

    pip install "mlx[cpu]" mlx-lm numpy
    python make_penalties.py
"""
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.sample_utils import make_logits_processors

# frequency penalty, presence penalty, repetition penalty, the answer so far
SETTINGS = [
    (0.5, 0, 1.0, [3, 7, 3, 3, 9]),
    (0, 1.25, 1.0, [3, 7, 3, 3, 9]),
    (1.5, -2, 1.0, [0, 0, 39, 12]),
    (-1, 0.25, 1.0, [5]),
    (0.7, 0.3, 1.3, [1, 2, 1]),
    (2, 2, 1.0, []),
]


def penalized(logits, frequency, presence, repetition, answer):
    processors = make_logits_processors(
        repetition_penalty=repetition if repetition != 1 else None,
        repetition_context_size=100,
        presence_penalty=presence or None,
        presence_context_size=100,
        frequency_penalty=frequency or None,
        frequency_context_size=100,
    )
    scores = mx.array(logits)[None]
    for processor in processors if answer else []:
        scores = processor(mx.array(answer), scores)
    return np.array(scores)[0].tolist()


def main():
    logits = np.random.default_rng(5).normal(0, 3, 40).astype(np.float32)
    cases = [
        {"frequency": f, "presence": p, "repetition": r, "answer": answer,
         "penalized": penalized(logits, f, p, r, answer)}
        for f, p, r, answer in SETTINGS
    ]
    path = Path(__file__).with_name("penalties.json")
    path.write_text(json.dumps({"logits": logits.tolist(), "cases": cases}) + "\n")


if __name__ == "__main__":
    main()
