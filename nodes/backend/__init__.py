"""All that touches ComfyUI's inside: ComfyModel, its memory, its patches, input checks."""
