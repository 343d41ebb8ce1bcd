"""``python -m tests.tutorial``: write down what the tutorial's commands show now, and its pictures.

What still fits stays as it is. Look at the difference before you keep it.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from tests.tutorial.transcript import chapters, pictures, played


def main() -> None:
    """Type everything once."""
    with tempfile.TemporaryDirectory(prefix="tutorial-") as folder:
        for chapter in chapters():
            text = made = chapter.read_text(encoding="utf-8")
            for shown, said in played(text, Path(folder)):
                if not shown.fits(said):
                    print(f"{chapter.name}: $ {shown.command}\n{said}", flush=True)
                    made = made.replace(f"$ {shown.command}\n{shown.text}", f"$ {shown.command}\n{said}", 1)
            for file, name in pictures(text):
                shutil.copyfile(Path(folder) / name, file)
            chapter.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
