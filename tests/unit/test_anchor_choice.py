"""The choice of an anchor, on an encoder whose words mean what the test says."""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny import TinyModel, TinyNetworkModel

from unlearn.core.conditioning import Conditioning
from unlearn.core.kind import ANCHORS
from unlearn.core.record import checked
from unlearn.core.resume import Resume
from unlearn.evaluate.known import Asked
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import KeyStepSettings, key_step
from unlearn.methods.parts.anchor_pictures import Anchors
from unlearn.prompts import anchor_choice
from unlearn.prompts.anchor_choice import (
    anchored,
    chosen_anchors,
    mean_token,
    recorded,
    told,
    unlike,
)
from unlearn.prompts.sampler import PromptSampler
from unlearn.prompts.vocabulary import VOCABULARY

WIDTH = 96
ANIMALS, TOOLS = ("fox", "wolf", "lynx", "otter"), ("saw", "drill", "rasp", "chisel")
UNKNOWN = tuple(f"q{letter}x" for letter in "abcdefghij")
WORDS = (*UNKNOWN, *ANIMALS, "vixen", *TOOLS)


def vector(text: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(text.encode()))
    return torch.nn.functional.normalize(torch.randn(WIDTH, generator=generator), dim=0)


def meaning(word: str, sentence: str) -> torch.Tensor:
    """A name is mostly itself and partly its kind, a synonym almost its other name. An unknown word
    is as long, but means something else in every sentence."""
    if word in UNKNOWN:
        return vector(word + sentence)
    name = "fox" if word == "vixen" else word
    kind = "animal" if name in ANIMALS else "tool"
    more = 0.15 if name == "wolf" else 0.0  # the wolf has something of the fox
    found = 0.8 * vector(name) + 0.45 * vector(kind) + more * vector("fox")
    return torch.nn.functional.normalize(found + 0.1 * vector(word), dim=0)


class Planted:
    """Only what the choice asks of a model. Every sentence has a length of its own."""

    def __init__(self) -> None:
        self.encoded: list[list[str]] = []

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        self.encoded.append(list(prompts))
        rows, counts = [], []
        for prompt in prompts:
            word = next((w for w in prompt.replace(",", "").split() if w in WORDS), "")
            rest = prompt.replace(word, "", 1)
            own = meaning(word, rest) if word else torch.zeros(WIDTH)
            counts.append(len(prompt.split()))
            rows.append((own + vector(rest)).expand(counts[-1], -1))
        together = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=9.0)
        return Conditioning(together, tokens=torch.tensor(counts))


def choice(*concepts: str, **more) -> dict[str, str]:
    more = {"candidates": WORDS, **more}
    return chosen_anchors(Planted(), concepts, "object", **more)


def test_the_closest_of_its_kind_that_is_no_synonym() -> None:
    assert choice("fox") == {"fox": "wolf"}
    assert choice("vixen") == {"vixen": "wolf"}
    assert choice("saw")["saw"] in TOOLS


def test_words_that_mean_something_else_in_every_sentence_are_left_out() -> None:
    for word in (*ANIMALS, *TOOLS):
        assert choice(word)[word] not in UNKNOWN
    # Only they are left.
    assert choice("fox", candidates=(*UNKNOWN, "vixen")) == {"fox": "picture"}


def test_a_concept_that_the_encoder_does_not_know_gets_the_neutral_word() -> None:
    found = choice("qax", "fox")
    assert found == {"qax": "picture", "fox": "wolf"}
    said = told({"kind": "object", "anchors": found})
    assert said.startswith("The anchor was chosen: fox -> wolf. No anchor was found for qax, so")
    assert "'picture' is drawn instead" in said


def test_other_concepts_and_taken_words_are_no_anchors() -> None:
    assert choice("fox", "wolf")["fox"] in ("lynx", "otter")
    assert choice("fox", taken=["Wolf"])["fox"] in ("lynx", "otter")


def test_of_equals_the_first_is_taken() -> None:
    class Equal(Planted):
        def encode(self, prompts: Sequence[str]) -> Conditioning:
            return super().encode([p.replace("lynx", "otter") for p in prompts])

    for same in (("otter", "lynx"), ("lynx", "otter")):
        words = (*same, *TOOLS, *UNKNOWN)
        found = chosen_anchors(Equal(), ["fox"], "object", candidates=words)
        assert found == {"fox": words[0]}
        assert found == chosen_anchors(Equal(), ["fox"], "object", candidates=words)


def test_the_first_that_the_model_draws() -> None:
    asked = []

    def draws(concept: str, word: str) -> bool:
        asked.append((concept, word))
        return word == "otter"

    assert choice("fox", draws=draws) == {"fox": "otter"}
    assert asked[0] == ("fox", "wolf")
    assert asked[-1] == ("fox", "otter")
    asked.clear()
    none = {"candidates": (*ANIMALS, *TOOLS), "draws": lambda *one: bool(asked.append(one))}
    assert choice("fox", **none) == {"fox": "picture"}
    assert len(asked) == anchor_choice.TRIED


@pytest.mark.parametrize(
    ("word", "concept"),
    [
        ("fox", "foxes"),
        ("foxes", "fox"),
        ("ladies", "lady"),
        ("Fox", "red fox"),
        ("fox terrier", "fox"),
        ("eggplant", "egg"),
        ("egg", "eggplant"),
        ("fox", "Fuchs"),
        ("person", "woman"),
        ("picture", "fox"),
    ],
)
def test_another_name_of_the_concept_is_no_anchor(word: str, concept: str) -> None:
    assert unlike([word, "castle"], [concept]) == ["castle"]


def test_letters_that_a_name_happens_to_hold_do_not_matter() -> None:
    assert unlike(["ox", "wolf"], ["fox"]) == ["ox", "wolf"]


def test_a_protected_word_may_be_an_anchor() -> None:
    anchor = trained("few_shot", ["dog"], anchor="closest").record["anchors"]["dog"]
    again = trained("few_shot", ["dog"], anchor="closest", protect=(anchor,)).record
    assert again["anchors"] == {"dog": anchor}


def test_a_style_gets_a_plain_rendering_without_a_look_at_the_encoder() -> None:
    model = Planted()
    found = chosen_anchors(model, ["ink", "flat"], "style")
    assert found == {"ink": "plain", "flat": "plain"}
    assert not model.encoded
    record = {"kind": "style", "concepts": ["ink"], "anchors": {"ink": "plain"}}
    assert told(record) == "The anchor was chosen: plain."


def test_what_the_neutral_word_would_replace_itself_gets_a_sentence() -> None:
    with pytest.raises(ValueError, match="No other word was found to draw in the place of 'Plain'"):
        chosen_anchors(Planted(), ["Plain"], "style")


def test_the_mean_is_over_each_prompts_own_tokens() -> None:
    cross = torch.tensor([[[1.0], [3.0], [50.0]], [[2.0], [2.0], [5.0]]])
    padded = Conditioning(cross, tokens=torch.tensor([2, 3]))
    assert mean_token(padded).tolist() == [[2.0], [3.0]]
    assert mean_token(Conditioning(cross)).tolist() == [[18.0], [3.0]]


# In the methods


def test_each_concept_is_compared_with_its_own_anchor() -> None:
    anchors = {"fox": "wolf", "two words": "saw"}
    words = PromptSampler(["fox", "two words", "cat"], "object", random.Random(0), anchors)
    assert words.anchors == {"fox": "wolf", "two words": "saw", "cat": "picture"}
    assert words.neutral("two words", TinyModel()) == "saw saw"
    assert Asked.of("fox", "object", anchors).words[:2] == ["fox", "wolf"]
    assert "wolf" not in Asked.of("cat", "object", anchors).words


IMAGES = torch.rand(3, 8, 8, 3, generator=torch.Generator().manual_seed(0))


def trained(method: str, concepts: list[str], **changes):
    if method == "few_shot":
        settings = replace(FewShotSettings(max_steps=1), **changes)
        return few_shot(TinyModel(), concepts, IMAGES[: len(concepts)], settings)
    if method == "key_step":
        settings = replace(KeyStepSettings(steps=4, iterations=1, start=1), **changes)
        return key_step(TinyNetworkModel(), concepts, settings)
    settings = replace(DomainCorrectionSettings(iterations=1, pictures=2), **changes)
    return domain_correction(TinyNetworkModel(), concepts, settings)


METHODS = ("few_shot", "key_step", "domain_correction")
ONE_EACH: dict[str, dict] = {"few_shot": {}, "key_step": {}, "domain_correction": {"pictures": 3}}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_chooses_where_it_is_asked_to_and_its_record_says_so(method: str) -> None:
    record = trained(method, ["dog"], anchor=" Closest ").record
    anchor = record["anchors"]["dog"]
    assert anchor in VOCABULARY["object"]
    assert record["settings"]["anchor"] == anchor
    assert recorded(record) == anchor
    assert told(record) == f"The anchor was chosen: {anchor}."
    kept, unread = checked(json.loads(json.dumps(record)))
    assert (kept["anchors"], unread) == ({"dog": anchor}, [])


@pytest.mark.parametrize("method", METHODS)
def test_several_concepts_get_an_anchor_each(method: str) -> None:
    record = trained(method, ["dog", "horse"], anchor="closest").record
    assert list(record["anchors"]) == ["dog", "horse"]
    assert not {"dog", "horse"} & set(record["anchors"].values())
    assert recorded(record) == record["anchors"]
    for concept, anchor in record["anchors"].items():
        assert f"{concept} -> {anchor}" in told(record)


@pytest.mark.parametrize("method", METHODS)
def test_anchors_may_be_named_for_some_and_chosen_for_others(method: str) -> None:
    named = {"dog ": " a wolf", "horse": "Closest", "owl": "neutral"}
    record = trained(method, ["dog", "horse", "owl"], anchor=named, **ONE_EACH[method]).record
    assert list(record["anchors"]) == ["horse"]
    used = {"dog": "a wolf", "horse": record["anchors"]["horse"], "owl": "picture"}
    assert record["settings"]["anchor"] == recorded(record) == used
    assert told(record) == f"The anchor was chosen: horse -> {used['horse']}."


def test_a_concept_whose_anchor_is_named_is_no_anchor_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(anchor_choice.VOCABULARY, "object", WORDS)
    alone = anchored(Planted(), ["fox"], FewShotSettings(anchor="closest"))
    assert alone[1] == {"anchors": {"fox": "wolf"}}
    named = FewShotSettings(anchor={"wolf": "saw", "fox": "closest"})
    settings, _ = anchored(Planted(), ["fox", "wolf"], named)
    assert settings.anchor["wolf"] == "saw"
    assert settings.anchor["fox"] in ("lynx", "otter")


@pytest.mark.parametrize(
    ("anchor", "sentence"),
    [
        ({"dog": "wolf", "horse": "Dog"}, "The anchor 'Dog' is the concept itself"),
        ({"dog": "(wolf:1.2)"}, "The anchor holds a weight"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_each_anchor_is_checked(method: str, anchor: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        trained(method, ["dog", "horse"], anchor=anchor)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["object", "style", "character"])
def test_neutral_is_the_neutral_word_of_the_kind(method: str, kind: str) -> None:
    record = trained(method, ["Zorvik"], kind=kind, anchor="NEUTRAL").record
    assert record["settings"]["anchor"] == ANCHORS[kind]
    assert "anchors" not in record
    assert told(record) == ""


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_chosen_where_the_anchor_is_empty(method: str) -> None:
    record = trained(method, ["cat"]).record
    assert record["settings"]["anchor"] == ""
    assert "anchors" not in record


@pytest.mark.parametrize("anchor", ["neutral", "closest"])
def test_the_papers_domain_correction_paints_some_thing_in_a_style(anchor: str) -> None:
    changes = {"mode": "paper", "kind": "style", "batch": 1}
    named = trained("domain_correction", ["Van Gogh"], anchor=anchor, **changes)
    assert named.record["settings"]["anchor"] == ""


def test_the_papers_key_step_draws_each_concept_to_its_own_anchor() -> None:
    record = trained("key_step", ["dog", "horse"], mode="paper", anchor="closest").record
    assert set(record["settings"]["anchor"]) == {"dog", "horse"}


def test_a_picture_of_an_anchor_serves_the_concept_that_has_it() -> None:
    model = TinyNetworkModel()
    anchors = {"dog": "wolf", "horse": "saw"}
    settings = DomainCorrectionSettings(pictures=5, anchor=anchors)
    with model.edit("denoiser", "cross-attention-kv") as edit:
        found = Anchors(model, edit, ["dog", "horse"], settings, Resume())
    drawn = [prompt for prompts in model.drawn for prompt in prompts]
    for picture, prompt in enumerate(drawn):
        for concept in (0, 1):
            anchored, named = found.pair(picture, concept)
            assert anchored == prompt
            word = "dog" if "wolf" in prompt else "horse"
            assert anchored.replace(anchors[word], word) == named
    assert {"wolf" in prompt for prompt in drawn} == {True, False}


def test_damaged_records_tell_nothing() -> None:
    assert told({}) == ""
    assert told({"kind": "object", "anchors": {}}) == ""
    assert told({"kind": "a kind to come", "anchors": {"fox": "wolf"}}) == ""
    for bad in (["wolf"], 3, {"fox": 3}):
        kept, unread = checked({"anchors": {"fox": 3}, "settings": {"anchor": bad}})
        assert kept["anchors"] == {}
        assert not recorded(kept)
        assert len(unread) == 2


def test_many_anchors_are_cut_short() -> None:
    anchors = {f"thing{i}": "wolf" for i in range(10)}
    said = told({"kind": "object", "anchors": anchors})
    assert said.endswith("thing5 -> wolf and 4 more.")
