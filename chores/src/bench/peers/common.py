"""What the peers have in common: the decoder's sizes (Moxin-7B:
https://huggingface.co/moxin-org/Moxin-7B-LLM), the clock, and the row that each
prints for `cargo xtask bench`."""

import argparse
import json
import resource
import time

LAYERS = 36
HIDDEN = 4096
INNER = 14336
HEADS = 32
KV_HEADS = 8
HEAD = 128
VOCABULARY = 32064
ROPE_THETA = 10000.0
RMS_NORM_EPS = 1e-5


def arguments(description):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--positions", type=int, default=290, help="positions of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens that are decoded")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default=".", help="where large files may go for the time")
    return parser.parse_args()


def times(runs, work):
    """The seconds that each run takes, after one that warms up. What takes a minute is run once,
    and cold.
    """
    start = time.perf_counter()
    work()
    first = time.perf_counter() - start
    if first > 60:
        return [first]
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def stage(count, seconds, extrapolated=None):
    return {"count": count, "seconds": seconds, "extrapolated": extrapolated}


def row(program, scheme, device, *, image=None, prefill=None, decode=None, load=None, whole=True):
    """Prints a result. `whole`: all of the model was in memory, so that the peak means something.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if whole else None
    result = {"program": program, "scheme": scheme, "device": device, "load": load, "resident_peak": peak}
    print(json.dumps(result | {"image": image, "prefill": prefill, "decode": decode}), flush=True)
