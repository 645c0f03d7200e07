"""Puts a trained folder, with the model card, in place of a small model: written beside it first,
then renamed.

    python publish.py tiny tiny-training/run/model
"""

import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(name, trained):
    target = HERE / name
    new, old = target.with_name(f"{name}.new"), target.with_name(f"{name}.old")
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    shutil.copytree(trained, new)
    shutil.copy(HERE / f"{name}-training" / "model-card.md", new / "README.md")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
