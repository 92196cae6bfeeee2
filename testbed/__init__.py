"""IconCanvas: a small, real text-to-image model in Stable Diffusion 1.5's layout, and its judge.

All figures of this project are measured on it. Its text encoder has CLIP's architecture and
tokenizer, but it was trained here, on drawings; it is not OpenAI's CLIP.
"""

from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
