"""Probe Erasure: what is left of a concept and what brings it back (unlearn/evaluate/probe.py)."""

from __future__ import annotations

import json

from comfy_api.latest import io, ui

from ..unlearn.attacks.registry import ATTACKS
from ..unlearn.evaluate.judges.original import JUDGE as ORIGINAL
from ..unlearn.evaluate.judges.registry import judge_of
from ..unlearn.evaluate.probe import Probe, ProbeSettings, check_asked, probe, settings
from ..unlearn.evaluate.probe_sheet import probe_sheet
from ..unlearn.prompts.paraphrases import NOTHING, Given
from ..unlearn.prompts.typed import split_concepts, split_words
from ..unlearn.render.sheet import page
from .backend.apply import alike, alike_clips, erased, other_base
from .backend.checks import check_clip, check_vae
from .backend.model import ComfyModel
from .backend.words import reader, typed_concepts, usable
from .base import UnlearnNode
from .progress import ProbeProgress, tell
from .sockets import (
    ErasureType,
    erased_inputs,
    judge_input,
    kind_input,
    original_inputs,
    picture_size_inputs,
    sampling_inputs,
    seed_input,
)
from .widgets import advanced

NOT_ITS_OWN = (
    "Warning: erased_model and erased_clip are not this erasure at strength 1, or more is on them. "
    "Connect the erasure alone to probe it."
)

NOTHING_ERASED = (
    "Nothing was erased, so nothing is probed: neither an erasure nor erased_clip nor erased_model "
    "is connected, or the node before them is bypassed or muted."
)


class ProbeErasure(UnlearnNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeErasure",
            display_name="Probe Erasure",
            category="unlearn/check",
            search_aliases=[
                "attack",
                "red team",
                "safety",
                "robustness",
                "is it erased",
                "unlearn",
            ],
            description=(
                "Searches for what is left of an erased concept: with its own prompts, with other "
                f"words for it, and with attacks: {', '.join(ATTACKS)}. The original model judges "
                "the pictures, or another judge."
            ),
            inputs=[
                *original_inputs(),
                ErasureType.Input(
                    "erasure",
                    optional=True,
                    tooltip="The erasure. The figures go into its record. The node applies it to "
                    "model and clip, so erased_model and erased_clip may stay empty.",
                ),
                *erased_inputs(),
                io.String.Input(
                    "concept",
                    default="",
                    tooltip="What was erased. Separate several by commas. Empty: the concepts in "
                    "the erasure's record.",
                ),
                kind_input(),
                io.Combo.Input(
                    "level",
                    options=["quick", "full"],
                    default="quick",
                    tooltip="quick: few pictures and small attacks, meant to take a minute on a "
                    "GPU. full: more pictures and larger attacks; many times as long.",
                ),
                *advanced(
                    seed_input("The seed of the pictures and of the attacks."), *sampling_inputs()
                ),
                *picture_size_inputs(),
                io.String.Input(
                    "synonyms",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Other words for the concept, separated by commas.",
                ),
                io.String.Input(
                    "translations",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Its names in other languages, separated by commas. Empty: the "
                    "built-in names, which exist for common things.",
                ),
                io.String.Input(
                    "descriptions",
                    default="",
                    optional=True,
                    multiline=True,
                    advanced=True,
                    tooltip="Prompts that describe it without naming it, one on each line.",
                ),
                judge_input(),
            ],
            outputs=[
                io.Image.Output("picture", display_name="picture"),
                io.String.Output("report", display_name="report"),
                ErasureType.Output(
                    "probed",
                    display_name="ERASURE",
                    tooltip="The erasure with the figures in its record, for Save Erased CLIP or "
                    "Save Erased Model. Empty if no erasure is connected.",
                ),
                io.String.Output("json", display_name="JSON"),
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
        level,
        seed,
        steps,
        cfg,
        width,
        height,
        erasure=None,
        erased_model=None,
        erased_clip=None,
        synonyms="",
        translations="",
        descriptions="",
        judge=ORIGINAL.key,
    ) -> io.NodeOutput:
        node_id = cls.hidden.unique_id
        if erasure is None and erased_model is None and erased_clip is None:
            return cls._nothing()
        counted_by = judge_of(judge)
        counted_by.check()
        warning = ""
        check_clip(clip)
        if erasure is not None:
            # `erased` returns the same object for a part that the erasure does not change.
            own_model, own_clip = erased(model, clip, erasure)
            own_model = None if own_model is model else own_model
            own_clip = None if own_clip is clip else own_clip
            if erased_model is None and erased_clip is None:
                erased_model, erased_clip = own_model, own_clip
            elif not (alike(own_model, erased_model) and alike_clips(own_clip, erased_clip)):
                warning = NOT_ITS_OWN
            warning = warning or other_base(model, clip, erasure)
        said = [] if concept.strip() or erasure is None else said_by(erasure, kind)
        concepts = usable(clip, said) if said else typed_concepts(clip, concept)
        changed = {"denoiser": erased_model, "encoder": erased_clip}
        parts = frozenset(part for part, connected in changed.items() if connected is not None)
        size = height, width
        original = ComfyModel(model, clip, vae, size)
        check_vae(vae)
        original.check_encoder()
        edited = ComfyModel(erased_model or model, erased_clip or clip, vae, size)
        given = Given(
            tuple(split_words(synonyms, "synonym")),
            tuple(split_words(translations, "translation")),
            tuple(line.strip() for line in descriptions.splitlines() if line.strip()),
        )
        check_asked(concepts, given, reader(clip))
        if given != NOTHING and len(concepts) > 1:
            raise ValueError(
                f"Synonyms, translations and descriptions belong to one concept, but "
                f"{len(concepts)} are named; probe them one by one, or leave these inputs empty."
            )
        chosen = fitting(edited, settings(level, kind, seed=seed, steps=steps, guidance=cfg))
        original.checkpointing = edited.checkpointing
        original.prepare_asking()
        probes = []
        for one in concepts:
            found = probe(
                original.training,
                edited.training,
                one,
                parts,
                chosen,
                given,
                progress=ProbeProgress(node_id, one),
                counted_by=counted_by,
            )
            probes.append(found)
        records = [found.record() for found in probes]
        text, probed = report(probes), erasure
        if left := said and [one for one in erasure.concepts if one not in said]:
            text += f"\nNot probed, because they are of another kind: {', '.join(left)}."
        if erasure is not None:
            text += f"\n{warning} The figures do not go into its record." if warning else ""
            probed = erasure if warning else erasure.with_probes(records)
        tell(node_id, text)
        picture = probe_sheet(probes)
        shown = ui.PreviewImage(picture, cls=cls).as_dict() | ui.PreviewText(text).as_dict()
        return io.NodeOutput(picture, text, probed, json.dumps(records, indent=1), ui=shown)

    @classmethod
    def validate_inputs(cls, concept=None, synonyms=None, translations=None, judge=None) -> bool:
        with cls.telling():
            typed = cls.typed(
                concept=concept, synonyms=synonyms, translations=translations, judge=judge
            )
            if "judge" in typed:
                judge_of(typed["judge"]).check()
            if typed.get("concept", "").strip():  # empty: those of the erasure's record
                split_concepts(typed["concept"])
            split_words(typed.get("synonyms", ""), "synonym")
            split_words(typed.get("translations", ""), "translation")
        return True

    @classmethod
    def _nothing(cls) -> io.NodeOutput:
        """No error: the browser takes the links away where the node before is bypassed or muted."""
        tell(cls.hidden.unique_id, NOTHING_ERASED)
        shown = ui.PreviewText(NOTHING_ERASED)
        return io.NodeOutput(page([NOTHING_ERASED]), NOTHING_ERASED, None, "[]", ui=shown)


def said_by(erasure, kind: str) -> list[str]:
    """The concepts of this kind in an erasure's record.

    Raises ValueError if all of them are of another kind: they would be probed with sentences that
    the erasure was not trained on.
    """
    if erasure.concepts and kind not in erasure.kinds:
        kinds = " and ".join(sorted(erasure.kinds))
        raise ValueError(
            f"The erasure is of the kind {kinds}, and kind is {kind}: choose its own kind, or type "
            "the concept to probe it as another kind."
        )
    return erasure.concepts_of(kind)


def fitting(edited: ComfyModel, chosen: ProbeSettings) -> ProbeSettings:
    """The settings with as many prompts attacked side by side as memory allows.

    Raises MemoryError, before anything is drawn, if there is too little memory for one prompt.
    """
    for count in (4, 2, 1):
        smaller = chosen.at_once(count)
        budgets = [(attack, smaller.budget(attack)) for attack in ATTACKS.values()]
        try:
            edited.prepare_attack(
                max(attack.latents(budget) for attack, budget in budgets),
                max(chosen.prompts, *(attack.prompts(budget) for attack, budget in budgets)),
            )
        except MemoryError:
            if count == 1:
                raise
        else:
            break
    return smaller


def report(probes: list[Probe]) -> str:
    """What was found for each concept, and how long it took."""
    texts = []
    for found in probes:
        texts.append("\n".join([*found.sentences(), found.success(), found.table()]))
    seconds = sum(found.seconds for found in probes)
    level, judge = probes[0].settings.level, probes[0].counted_by.name
    return "\n\n".join([*texts, f"Counted by {judge}. {level} probe, {seconds:.1f} s."])
