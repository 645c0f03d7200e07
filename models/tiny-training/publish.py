"""Puts a trained folder, with the model card, in place of ../tiny: written beside it first, then
renamed.

    python publish.py run/model
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
TINY = HERE.parent / "tiny"


def main(trained):
    new, old = TINY.with_name("tiny.new"), TINY.with_name("tiny.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    shutil.copytree(trained, new)
    shutil.copy(HERE / "model-card.md", new / "README.md")
    if TINY.exists():
        TINY.rename(old)
    new.rename(TINY)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
