"""Captions a folder of pictures with Ray Data, over one or more servers.

    python caption.py PICTURES --server http://127.0.0.1:8080 --server http://127.0.0.1:8081

Writes one line of JSON per picture to captions.jsonl: {"path", "sha256", "caption", "tokens",
"server"}, or {"path", "sha256", "error"} for a file that the server cannot read. Run it again after
an interruption: pictures in the output are not sent again. A server that stops is left out; the
others do its work.
"""
import argparse
import base64
import hashlib
import json
import logging
import os
import random
import time
from pathlib import Path

import httpx
import ray

KINDS = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Captioner:
    """Asks the servers about pictures. Ray keeps several of these, each in a process of its own."""

    def __init__(self, options):
        self.options = options
        # Each process begins with another server, and each picture goes to the next.
        self.turn = random.randrange(len(options.server))
        key = os.environ.get("MOXIN_API_KEY")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.client = httpx.Client(timeout=options.timeout, headers=headers, trust_env=False)

    def __call__(self, row):
        content = (Path(self.options.pictures) / row["path"]).read_bytes()
        body = {
            "image": "data:;base64," + base64.b64encode(content).decode(),
            "prompt": self.options.prompt,
            "max_tokens": self.options.max_tokens,
            "model": self.options.model,
        }
        found = {"path": row["path"], "sha256": row["sha256"]}
        found |= self.ask({name: value for name, value in body.items() if value is not None})
        # One column of text: rows with and without an error have the same schema.
        return {"line": json.dumps(found, ensure_ascii=False)}

    def ask(self, body):
        """Asks one server after the other until one answers, with growing pauses between rounds."""
        servers = self.options.server
        self.turn += 1
        why = ""
        for attempt in range(self.options.retries * len(servers)):
            server = servers[self.turn % len(servers)]
            rounds, place = divmod(attempt, len(servers))
            is_last = place == len(servers) - 1
            try:
                response = self.client.post(f"{server}/v1/describe", json=body)
            except httpx.TransportError as error:
                why = f"{server}: {error!r}"
                self.turn += 1
                if is_last:
                    self.pause(rounds)
                continue
            if response.status_code == 200:
                answer = response.json()
                return {
                    "caption": answer["description"], "tokens": answer["tokens"], "server": server,
                }
            why = f"{server}: {response.status_code} {response.text}"
            if response.status_code in (429, 500, 503):
                self.turn += 1
                if is_last:
                    self.pause(rounds, response.headers.get("Retry-After"))
                continue
            # The picture is the reason, and another try would fail too.
            message = response.json()["error"]["message"]
            if response.json()["error"]["param"] == "image":
                return {"error": message}
            raise RuntimeError(f"{body['prompt']!r} was refused by {server}: {message}")
        raise RuntimeError(f"no server answered in {self.options.retries} rounds; {why}")

    @staticmethod
    def pause(rounds, seconds=None):
        wait = float(seconds) if seconds else min(0.1 * 2**rounds, 10)
        time.sleep(wait * random.uniform(0.5, 1))


def pictures(folder):
    """Returns the pictures below a folder with their hashes, in the order of their names."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in KINDS)
    return [
        {
            "path": path.relative_to(folder).as_posix(),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in paths
    ]


def captioned(output):
    """Returns what the output has already, and removes a last line that was not completed."""
    if not output.exists():
        return set()
    content = output.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with output.open("r+b") as file:
            file.truncate(len(whole))
    rows = (json.loads(line) for line in whole.splitlines())
    return {(row["path"], row["sha256"]) for row in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", help="the folder; pictures in folders below it count")
    parser.add_argument("--server", action="append", required=True, help="may be given several times")
    parser.add_argument("--model", help="the name of the model; the server's first by default")
    parser.add_argument("--prompt", help="the question; the model's own by default")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, default=Path("captions.jsonl"))
    parser.add_argument("--concurrency", type=int, default=8, help="pictures sent at the same time")
    parser.add_argument("--retries", type=int, default=12, help="rounds of all servers for one picture")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one try")
    options = parser.parse_args()

    done = captioned(options.output)
    everything = pictures(Path(options.pictures))
    rows = [row for row in everything if (row["path"], row["sha256"]) not in done]
    print(f"{len(everything)} pictures, {len(everything) - len(rows)} done before")
    if not rows:
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # The servers compute; these processes only wait for them.
    ray.init(
        num_cpus=options.concurrency, include_dashboard=False, log_to_driver=False,
        logging_level="error",
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        Captioner,
        fn_constructor_args=(options,),
        compute=ray.data.ActorPoolStrategy(size=options.concurrency),
        num_cpus=1,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.open("a", encoding="utf-8") as file:
        for i, row in enumerate(answers.iter_rows(), 1):
            # One write per line: an interruption leaves at most the last line incomplete.
            file.write(row["line"] + "\n")
            file.flush()
            print(f"{i} of {len(rows)}", flush=True)


if __name__ == "__main__":
    main()
