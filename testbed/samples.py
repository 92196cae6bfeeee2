"""The example pictures of the shipped workflows and the demo: four drawings of a few concepts.

`dev.py` shows them in ComfyUI's input folder as iconcanvas_<name>_<number>.png. They are drawings
that IconCanvas was trained on, not pictures it drew; ATTRIBUTION.md names their makers.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from . import data

FOLDER = Path(__file__).parent / "samples"
OBJECTS = {"mushroom": ("noto", "blob", "twitter", "glossy")}
CHARACTERS = ("Zorvik",)
COUNT = 4


def write(folder: Path = FOLDER) -> list[Path]:
    """Write <concept>_1.png to <concept>_4.png into folder, from the rendered drawings.

    Raises FileNotFoundError before `python -m testbed data`.
    """
    drawings = data.load()
    chosen: dict[str, list[int]] = {
        name: [list(zip(drawings.names, drawings.styles)).index((name, style)) for style in styles]
        for name, styles in OBJECTS.items()
    }
    for name in CHARACTERS:
        own = [i for i, other in enumerate(drawings.names) if other == name]
        # Spread over all of them: neighbours in the list share their mouth.
        chosen[name] = [own[k * (len(own) - 1) // (COUNT - 1)] for k in range(COUNT)]
    folder.mkdir(exist_ok=True)
    files = []
    for name, indices in chosen.items():
        for number, index in enumerate(indices, start=1):
            file = folder / f"{name.lower()}_{number}.png"
            Image.fromarray(drawings.images[index]).save(file, optimize=True)
            files.append(file)
    return files
