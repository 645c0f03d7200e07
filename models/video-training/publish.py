"""Puts a trained folder, with the model card, in place of ../video: written beside it first, then
renamed.

    python publish.py run/model
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
TARGET = HERE.parent / "video"


def main(trained):
    new, old = TARGET.with_name("video.new"), TARGET.with_name("video.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    shutil.copytree(trained, new)
    shutil.copy(HERE / "model-card.md", new / "README.md")
    if TARGET.exists():
        TARGET.rename(old)
    new.rename(TARGET)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
