"""The science: methods, edits, the artefact and the measuring. Imports torch, never ComfyUI."""
