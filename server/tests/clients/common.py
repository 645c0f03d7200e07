"""What the client tests share: the arguments, the pictures, and checks that print their names."""
import base64
import json
import os
import sys
from pathlib import Path

BASE, MODEL, PICTURE = sys.argv[1:4]
KEY = os.environ.get("MOXIN_API_KEY", "none")
QUESTION = "How many shapes are there?"


def check(name, condition, details=""):
    if not condition:
        sys.exit(f"FAILED: {name} {details}")
    print(f"ok: {name}")


def data_url(path, kind="image/png", broken=False):
    text = base64.b64encode(Path(path).read_bytes()).decode()
    if broken:
        text = "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    return f"data:{kind};base64,{text}"


def picture(url=None, **fields):
    return {"type": "image_url", "image_url": {"url": url or data_url(PICTURE), **fields}}


def text(words):
    return {"type": "text", "text": words}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def refused(name, call, error, param=None):
    """Checks that a call fails with this class of the client, and names the field."""
    try:
        call()
    except error as caught:
        found = (getattr(caught, "body", None) or {}).get("param")
        check(name, param is None or found == param, f"{found}: {caught}")
        return caught
    sys.exit(f"FAILED: {name}: nothing was refused")


def conversations():
    """Returns the conversations whose answers are known from the C example, if there are any."""
    if len(sys.argv) < 5:
        return []
    return json.loads(Path(sys.argv[4]).read_text())


def messages_of(parts):
    """Turns parts such as {"image": path}, {"text": …} and {"assistant": …} into messages."""
    messages = []
    for part in parts:
        role = "assistant" if "assistant" in part else "user"
        content = picture(data_url(part["image"])) if "image" in part else text(next(iter(part.values())))
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"].append(content)
        else:
            messages.append({"role": role, "content": [content]})
    return messages
