"""Concept Unlearn: take a concept out of your own generative models, and know that it is gone."""

from .nodes import ConceptUnlearn

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint() -> ConceptUnlearn:
    return ConceptUnlearn()
