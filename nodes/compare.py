"""Compare Erasure: the same prompts and seeds before and after an erasure, in one picture."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import comfy.model_management
import comfy.samplers
import torch
from comfy_api.latest import io, ui

# ComfyUI's own `nodes`: what its KSampler calls, so that the pictures are the same as there.
from nodes import EmptyLatentImage, common_ksampler

from ..unlearn.evaluate.collateral import near_prompts
from ..unlearn.evaluate.detection import Seen
from ..unlearn.evaluate.judges.judge import Question, judged
from ..unlearn.evaluate.judges.original import JUDGE as ORIGINAL
from ..unlearn.evaluate.judges.registry import judge_of
from ..unlearn.prompts.templates import templates
from ..unlearn.prompts.typed import split_concepts
from ..unlearn.prompts.vocabulary import VOCABULARY
from ..unlearn.render.sheet import Row, sheet
from .backend.apply import alike
from .backend.checks import check_vae, check_vae_fits
from .backend.identity import without_hooks
from .backend.model import ComfyModel
from .backend.read_depth import check_read
from .backend.words import plain, typed_concepts
from .base import UnlearnNode
from .progress import RowProgress, tell
from .sockets import (
    erased_inputs,
    judge_input,
    kind_input,
    original_inputs,
    picture_size_inputs,
    sampling_inputs,
    seed_input,
)
from .widgets import advanced


class CompareErasure(UnlearnNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CompareErasure",
            display_name="Compare Erasure",
            category="unlearn/check",
            search_aliases=[
                "before after",
                "side by side",
                "difference",
                "compare erase",
                "unlearn",
            ],
            description=(
                "Draws the same prompts with the same seeds before and after an erasure: prompts "
                "of the concept and of other things. Reports what is left and what changed."
            ),
            inputs=[
                *original_inputs(),
                *erased_inputs(),
                io.String.Input(
                    "concept", default="", tooltip="What was erased. Separate several by commas."
                ),
                kind_input(),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    tooltip="Prompts of the concept, one on each line. Empty: two usual ones.",
                ),
                io.String.Input(
                    "neighbours",
                    default="",
                    multiline=True,
                    tooltip="Prompts whose pictures should not change, one on each line. Empty: "
                    "common things.",
                ),
                io.Int.Input(
                    "count",
                    default=2,
                    min=1,
                    max=8,
                    advanced=True,
                    tooltip="Pictures for each prompt. Each further picture has the next seed.",
                ),
                *advanced(
                    seed_input("The seed of each prompt's first picture, as in KSampler."),
                    *sampling_inputs(),
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=comfy.samplers.KSampler.SAMPLERS,
                    default="dpmpp_2m",
                    tooltip="As in KSampler.",
                    advanced=True,
                ),
                io.Combo.Input(
                    "scheduler",
                    options=comfy.samplers.KSampler.SCHEDULERS,
                    default="karras",
                    tooltip="As in KSampler.",
                    advanced=True,
                ),
                *picture_size_inputs(),
                judge_input(),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture"),
                io.String.Output("report", display_name="report"),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def work(
        cls,
        model,
        clip,
        vae,
        concept,
        kind,
        prompts,
        neighbours,
        count,
        seed,
        steps,
        cfg,
        sampler_name,
        scheduler,
        width,
        height,
        erased_model=None,
        erased_clip=None,
        judge=ORIGINAL.key,
    ) -> io.NodeOutput:
        counted_by = judge_of(judge)
        counted_by.check()
        concepts = typed_concepts(clip, concept)
        asked = lines(prompts) or own_prompts(concepts, kind)
        near = lines(neighbours) or near_prompts(concepts, kind)
        host = ComfyModel(model, clip, vae, (height, width))
        check_vae(vae)
        host.check_encoder()
        check_pair(erased_model or model, erased_clip or clip, vae)
        node_id = cls.hidden.unique_id
        prompted, seeds = [*asked, *near], range(seed, seed + count)
        # A typed prompt may hold weights. In a built prompt, the concept's parentheses are text.
        given = asked if lines(prompts) else [plain(clip, prompt) for prompt in asked]

        def drawn(when: str, *parts) -> list[torch.Tensor]:
            def told(prompt: str) -> None:
                comfy.model_management.throw_exception_if_processing_interrupted()
                tell(node_id, f"drawing {when}\n{prompt}")

            sampling, size = (steps, cfg, sampler_name, scheduler), (width, height)
            return draw(*parts, vae, [*given, *near], seeds, sampling, size, told)

        before = drawn("before", model, clip)
        nothing = nothing_erased(model, clip, erased_model, erased_clip)
        after = before
        if not nothing:
            after = drawn("after", erased_model or model, erased_clip or clip)
        rows = [Row(*row) for row in zip(prompted, before, after)]
        own, others = rows[: len(asked)], rows[len(asked) :]

        @contextmanager
        def original() -> Iterator[ComfyModel]:
            host.prepare_asking()
            with host.training():
                yield host

        question = Question(
            torch.cat([row.before for row in own] + [row.after for row in own]),
            concepts,
            kind,
            original,
            things=things_in(asked, concepts),
            progress=RowProgress(node_id, "judging"),
        )
        seen = judged(counted_by, question)
        figures = findings(concepts, seen, own, others, counted_by.name)
        if nothing := nothing or nothing_changed(rows, erased_model, erased_clip):
            figures.insert(0, nothing)
        text = "\n".join(figures)
        tell(node_id, text)
        picture = sheet({", ".join(concepts): own, "neighbours": others}, figures)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(picture, text, ui=shown)

    @classmethod
    def validate_inputs(cls, concept=None, judge=None) -> bool:
        with cls.telling():
            typed = cls.typed(concept=concept, judge=judge)
            if "concept" in typed:
                split_concepts(typed["concept"])
            if "judge" in typed:
                judge_of(typed["judge"]).check()
        return True


def check_pair(model, clip, vae) -> None:
    """Raises ValueError if the erased parts do not belong to the same model as the VAE."""
    check_vae_fits(vae, model.model)
    check_read(model.model, without_hooks(clip))


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def own_prompts(concepts: list[str], kind: str) -> list[str]:
    """The kind's first template for each concept; for a single concept also a middle one."""
    sentences = templates(kind)
    chosen = sentences[:1] if len(concepts) > 1 else (sentences[0], sentences[len(sentences) // 2])
    return [sentence.format(concept) for concept in concepts for sentence in chosen]


def things_in(prompts: list[str], concepts: list[str]) -> list[str]:
    """The built-in things that the prompts name beside the concepts.

    With a style these are what the pictures are likely to show.
    """

    def spaced(text: str) -> str:
        words = re.findall(r"[^\W\d_]+", text.lower())
        return f" {' '.join(words)} "

    rest = [spaced(prompt) for prompt in prompts]
    for concept in concepts:
        rest = [prompt.replace(spaced(concept), " ") for prompt in rest]
    return [thing for thing in VOCABULARY["object"] if any(f" {thing} " in one for one in rest)]


def draw(
    model,
    clip,
    vae,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: tuple[int, float, str, str],
    size: tuple[int, int],
    on_picture: Callable[[str], None],
) -> list[torch.Tensor]:
    """Pictures (seeds, H, W, 3) for each prompt, one by one, as Empty Latent Image, CLIP Text
    Encode and KSampler draw them. The negative prompt is empty.

    sampling: steps, cfg, sampler and scheduler. size: width and height. on_picture(prompt) comes
    before every picture and may raise to cancel. The host's sampler moves the progress bar.
    """

    def encoded(text: str):
        return clip.encode_from_tokens_scheduled(clip.tokenize(text))

    (empty,) = EmptyLatentImage().generate(*size)
    negative, drawn = encoded(""), []
    for prompt in prompts:
        positive, pictures = encoded(prompt), []
        for seed in seeds:
            on_picture(prompt)
            (latent,) = common_ksampler(model, seed, *sampling, positive, negative, empty)
            picture = vae.decode(latent["samples"])
            pictures.append((picture[:, 0] if picture.ndim == 5 else picture)[:1, ..., :3].cpu())
        drawn.append(torch.cat(pictures))
    return drawn


def findings(
    concepts: list[str],
    seen: list[Seen],
    own: list[Row],
    others: list[Row],
    judge: str = ORIGINAL.name,
) -> list[str]:
    """Sentences about the pictures. seen: for the concepts' pictures, first before, then after.
    judge: the name of whoever saw it."""
    half = len(seen) // 2
    before, after = seen[:half], seen[half:]
    counts = [sum(one.shown for one in side) for side in (before, after)]
    if broken := not_finite(own + others):
        return [broken]
    found = [
        f"{', '.join(concepts)}: {judge} sees it in {counts[0]} of {half} pictures before and in "
        f"{counts[1]} of {half} after.",
        *explained(before, after),
        f"Mean change of a pixel: {changed(own):.1%} of its range in the concept's pictures, "
        f"{changed(others):.1%} in the neighbours'.",
    ]
    if counts[0] <= half / 2:
        found.append(
            "The original model hardly draws the concept from these prompts: compare with others."
            if judge == ORIGINAL.name
            else f"{judge} sees little in what the original model draws: compare with others."
        )
    return found


def explained(before: list[Seen], after: list[Seen]) -> list[str]:
    """A sentence on the loss, which only the original model tells."""
    shares = []
    for side in (before, after):
        known = [one.explained for one in side if one.explained is not None]
        if len(known) < len(side):
            return []
        shares.append(sum(known) / len(known))
    return [f"The word explains {shares[0]:.1%} of the loss before, {shares[1]:.1%} after."]


def not_finite(rows: list[Row]) -> str:
    """A sentence if pictures are not finite, otherwise "". A broken model also shows no concept,
    but that is no erasure."""
    counts = [
        sum(not picture.isfinite().all() for row in rows for picture in getattr(row, side))
        for side in ("before", "after")
    ]
    if not any(counts):
        return ""
    of = sum(len(row.before) for row in rows)
    model = "the original model, its text encoder or the VAE" if counts[0] else "the erased model"
    return (
        f"{counts[0]} of {of} pictures before and {counts[1]} of {of} after are not finite (NaN or "
        f"infinite), so nothing can be said of the erasure: {model} is broken. Check its weights, "
        "their precision and the LoRAs on it."
    )


def nothing_erased(model, clip, erased_model, erased_clip) -> str:
    """A sentence if nothing that is connected was erased, otherwise ""."""
    pairs = {}
    if erased_model is not None:
        pairs["erased_model"] = model, erased_model
    if erased_clip is not None:
        pairs["erased_clip"] = clip.patcher, erased_clip.patcher
    if not pairs:
        return (
            "Nothing was erased: neither erased_clip nor erased_model is connected, or the node "
            "before them is muted."
        )
    if all(same_weights(*pair) for pair in pairs.values()):
        of, have = " and ".join(pairs), "have" if len(pairs) > 1 else "has"
        return (
            f"Nothing was erased: {of} {have} the same weights as the original. Check if the node "
            "before it is bypassed or its strength is 0."
        )
    return ""


def nothing_changed(rows: list[Row], erased_model, erased_clip) -> str:
    """A sentence if all pictures before and after are the same, otherwise ""."""
    if any(not torch.equal(row.before, row.after) for row in rows):
        return ""
    connected = {"erased_model": erased_model, "erased_clip": erased_clip}
    of = " and ".join(name for name, one in connected.items() if one is not None)
    return f"Nothing changed: every picture with {of} is the same as the original's."


def same_weights(was, now) -> bool:
    """Whether a patcher is a clone of another, with the same patches and hooks."""
    hooks = [getattr(patcher, "forced_hooks", None) for patcher in (was, now)]
    return now.model is was.model and hooks[0] is hooks[1] and alike(was, now)


def changed(rows: list[Row]) -> float:
    """Mean absolute difference of all pixel values, which lie in 0..1."""
    return torch.cat([(row.after - row.before).abs().flatten() for row in rows]).mean().item()
