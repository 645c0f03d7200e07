"""Tests caption.py with two servers on loopback: MOXIN_SERVER MODEL_FOLDER.

Every picture must be in the output exactly once: after a run in which one server is killed in the
middle, after a run with nothing left to do, and after a run whose own process was killed.
"""
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

SERVER, MODEL = sys.argv[1:3]
COUNT = 60


def check(name, condition, details=""):
    if not condition:
        sys.exit(f"FAILED: {name} {details}")
    print(f"ok: {name}", flush=True)


def start():
    process = subprocess.Popen(
        [SERVER, "--model", MODEL, "--port", "0", "--cpu"], stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL,
    )
    return process, process.stdout.readline().strip()


def draw(folder):
    for i in range(COUNT):
        picture = Image.new("RGB", (96, 96), "white")
        shape = [10 + i % 30, 10 + i // 2, 60 + i % 30, 60 + i // 2]
        ImageDraw.Draw(picture).ellipse(shape, fill=(4 * i, 255 - 4 * i, 128))
        path = folder / f"{i % 3}" / f"{i:03}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    (folder / "broken.png").write_bytes(b"no picture")


def caption(folder, output, servers):
    command = [sys.executable, str(Path(__file__).with_name("caption.py")), str(folder)]
    for server in servers:
        command += ["--server", server]
    command += ["--output", str(output), "--concurrency", "2", "--max-tokens", "16"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def follow(process, line):
    """Reads the output of a run up to a line that starts with this."""
    for text in process.stdout:
        if text.startswith(line):
            return
    sys.exit(f"FAILED: the run ended before {line!r}: {process.wait()}")


def rows(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


def check_once(name, output):
    found = Counter(row["path"] for row in rows(output))
    check(name, len(found) == COUNT + 1 and set(found.values()) == {1}, found)
    errors = [row["path"] for row in rows(output) if "error" in row]
    check(f"{name}: only the broken file has an error", errors == ["broken.png"], errors)


with tempfile.TemporaryDirectory() as scratch:
    folder, output = Path(scratch) / "pictures", Path(scratch) / "captions.jsonl"
    folder.mkdir()
    draw(folder)
    (first, first_url), (second, second_url) = start(), start()
    try:
        run = caption(folder, output, [first_url, second_url])
        follow(run, "10 of")
        first.kill()
        run.communicate()
        check("a run ends well without one of its servers", run.returncode == 0)
        check_once("every picture once", output)
        asked = {row["server"] for row in rows(output) if "server" in row}
        check("both servers worked", asked == {first_url, second_url}, asked)

        run = caption(folder, output, [second_url])
        text, _ = run.communicate()
        check("nothing is done twice", f"{COUNT + 1} done before" in text, text)
        check_once("every picture still once", output)

        output.unlink()
        run = caption(folder, output, [second_url])
        follow(run, "10 of")
        run.send_signal(signal.SIGKILL)
        run.wait()
        time.sleep(1)
        with output.open("a") as file:
            file.write('{"path": "0/0')
        before = len(output.read_text().splitlines()) - 1
        check("a killed run leaves its lines", before >= 10, before)
        run = caption(folder, output, [second_url])
        text, _ = run.communicate()
        check("it goes on where it stopped", f"{before} done before" in text, text)
        check_once("every picture once after that", output)
    finally:
        first.kill()
        second.kill()
