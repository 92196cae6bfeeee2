"""IconCanvas's data: openly licensed drawings, rendered from their vector sources.

The icon sets and DiceBear come from npm in exact versions (ATTRIBUTION.md names their licences).
Nothing else is downloaded. It needs Node.js and npm. Only a rebuild of the model uses this file.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import testbed

from .vocabulary import CHARACTERS, DRAWINGS, OBJECTS, STYLE_SETS, STYLES

SIZE = 128  # pixels a side
ICON = 116  # pixels of an icon's longer side; the white border leaves room for shifts in training
CACHE = testbed.FOLDER / "cache"
PACKAGES = [
    "@iconify-json/noto@1.2.9",
    "@iconify-json/noto-v1@1.2.5",
    "@iconify-json/twemoji@1.2.5",
    "@iconify-json/emojione@1.2.3",
    "@iconify-json/fluent-emoji@1.2.7",
    "@iconify-json/fluent-emoji-flat@1.2.6",
    "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "@dicebear/core@9.4.3",
    "@dicebear/lorelei@9.4.3",
    "@dicebear/open-peeps@9.4.3",
    "@dicebear/notionists@9.4.3",
    "@dicebear/pixel-art@9.4.3",
]


@dataclass
class Drawings:
    """Pictures as uint8 (N, 128, 128, 3), each with a name and a style (None for a character)."""

    images: np.ndarray
    names: list[str]
    styles: list[str | None]

    def __len__(self) -> int:
        return len(self.names)

    def where(self, test) -> "Drawings":
        return self.select(
            [i for i, pair in enumerate(zip(self.names, self.styles)) if test(*pair)]
        )

    def select(self, keep: list[int]) -> "Drawings":
        return Drawings(
            self.images[keep], [self.names[i] for i in keep], [self.styles[i] for i in keep]
        )


def rasterise(svg: str, icon: int = ICON) -> np.ndarray:
    """An SVG on a white square, uint8 (128, 128, 3). Its longer side has `icon` pixels."""
    import resvg_py  # installed for a rebuild only

    # Drawn at twice the size and scaled down, which keeps thin lines smooth.
    png = resvg_py.svg_to_bytes(svg_string=svg, width=2 * icon, background="white")
    picture = Image.open(BytesIO(bytes(png))).convert("RGB")
    picture.thumbnail((icon, icon), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIZE, SIZE), "white")
    canvas.paste(picture, ((SIZE - picture.width) // 2, (SIZE - picture.height) // 2))
    return np.asarray(canvas)


def icon_svg(icons: dict, name: str) -> str:
    """A standalone SVG document of one icon of an iconify set."""
    entry = icons["icons"][name]
    width = entry.get("width", icons.get("width", 16))
    height = entry.get("height", icons.get("height", 16))
    left, top = entry.get("left", 0), entry.get("top", 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}" '
        f'color="black">{entry["body"]}</svg>'
    )


def install_sources(folder: Path) -> Path:
    """Install the npm packages into `folder`, once, and return the folder.

    Raises RuntimeError with one sentence if Node.js or npm is missing or fails.
    """
    if (folder / "installed").exists():
        return folder
    if not (shutil.which("node") and shutil.which("npm")):
        raise RuntimeError("Rendering the drawings needs Node.js and npm: install them and rerun.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "package.json").write_text('{"name": "iconcanvas-data", "private": true}\n')
    command = [shutil.which("npm"), "install", "--no-audit", "--no-fund", *PACKAGES]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"npm could not install the drawings: {result.stderr.strip()[-400:]}")
    (folder / "installed").touch()
    return folder


def character_svgs(folder: Path) -> list[dict]:
    """{"name", "svg"} of every drawing of the sixteen characters."""
    script = Path(__file__).with_name("characters.mjs")
    result = subprocess.run(
        [shutil.which("node"), str(script)], cwd=folder, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"node could not draw the characters: {result.stderr.strip()[-400:]}")
    return [json.loads(line) for line in result.stdout.splitlines()]


def render(cache: Path = CACHE) -> None:
    """Render into `cache`: `drawings` (the vocabulary) and `pretraining` (all icons)."""
    if (cache / "drawings.json").exists():
        print("drawings: already rendered")
        return
    sources = install_sources(cache / "npm")
    sets = {
        style: json.loads(
            (sources / "node_modules/@iconify-json" / folder / "icons.json").read_text("utf-8")
        )
        for style, folder in STYLE_SETS.items()
    }
    images, names, styles = [], [], []
    for name in tqdm(OBJECTS, desc="objects"):
        for style in STYLES:
            images.append(rasterise(icon_svg(sets[style], DRAWINGS[name])))
            names.append(name)
            styles.append(style)
    for entry in tqdm(character_svgs(sources), desc="characters"):
        images.append(rasterise(entry["svg"], SIZE))
        names.append(entry["name"])
        styles.append(None)
    assert set(names) == {*OBJECTS, *CHARACTERS}
    common = sorted(set.intersection(*(set(icons["icons"]) for icons in sets.values())))
    pretraining = [
        rasterise(icon_svg(sets[style], name))
        for name in tqdm(common, desc="all icons")
        for style in STYLES
    ]
    np.save(cache / "pretraining.npy", np.stack(pretraining))
    (cache / "pretraining.json").write_text(json.dumps(common))
    save(Drawings(np.stack(images), names, styles), cache)


def save(drawings: Drawings, cache: Path) -> None:
    np.save(cache / "drawings.npy", drawings.images)
    labels = {"names": drawings.names, "styles": drawings.styles}
    (cache / "drawings.json").write_text(json.dumps(labels))  # last: it marks a complete cache


def load(cache: Path = CACHE) -> Drawings:
    """The rendered vocabulary. Raises FileNotFoundError if `python -m testbed data` did not run."""
    labels = json.loads((cache / "drawings.json").read_text())
    return Drawings(np.load(cache / "drawings.npy"), labels["names"], labels["styles"])
