"""Concept, anchor and protect as a user types them: by hand, in the methods, and to encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import TinyModel, TinyNetworkModel

from unlearn.core.token_reading import Reading, reading
from unlearn.evaluate.probe import probe
from unlearn.methods.baselines.gradient_ascent import gradient_ascent
from unlearn.methods.baselines.weight_pruning import weight_pruning
from unlearn.methods.domain_correction import DomainCorrectionSettings, domain_correction
from unlearn.methods.few_shot import FewShotSettings, few_shot
from unlearn.methods.key_step import KeyStepSettings, key_step
from unlearn.prompts.paraphrases import Given
from unlearn.prompts.typed import cleaned, joined, one_word, split_concepts, split_words
from unlearn.prompts.vocabulary import VOCABULARY
from unlearn.prompts.word_checks import check_typed, words_read

FOX = "\U0001f98a"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


# By hand


def test_concepts_are_split_at_commas_and_lines() -> None:
    assert split_concepts(" cat, red fox\ncat ,, owl") == ["cat", "red fox", "owl"]
    assert split_concepts("\u72d0\uff0c\u5409\u4ed6\u3001\u732b") == [
        "\u72d0",
        "\u5409\u4ed6",
        "\u732b",
    ]


@pytest.mark.parametrize(
    "typed", [" ,\n", "", "\u200b", "\ufeff, \u200d", "\ufe0f", "\x00", "\u3164"]
)
def test_what_nobody_sees_names_no_concept(typed: str) -> None:
    with pytest.raises(ValueError, match="No concept is named"):
        split_concepts(typed)


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("guitar_(music)", "guitar_(music)"),
        (r"guitar_\(music\)", "guitar_(music)"),
        (r"guitar_\\(music\\)", "guitar_(music)"),
        ("asuka_(evangelion:3.0)", "asuka_(evangelion:3.0)"),
        ("(500) Days of Summer", "(500) Days of Summer"),
        ("[REC]", "[REC]"),
        (r"AC\DC", r"AC\DC"),
        ("\u72d0\uff08\u52a8\u7269\uff09", "\u72d0\uff08\u52a8\u7269\uff09"),  # wide parentheses
        ("  red \u3000\tfox\u00a0", "red fox"),
        ("mush\u200broom\ufeff", "mushroom"),
        ("cafe\u0301", "caf\u00e9"),
        ("\uff26\uff4f\uff58", "Fox"),
        (FOX, FOX),
        (FAMILY, FAMILY),
        ("\u2764\ufe0f", "\u2764\ufe0f"),
        ("C++", "C++"),
        ('"Lock, Stock and Two Smoking Barrels"', "Lock, Stock and Two Smoking Barrels"),
        ("\u201cLock, Stock\u201d", "Lock, Stock"),
        ('12" record', '12" record'),
    ],
)
def test_a_word_is_read_as_it_looks(typed: str, read: str) -> None:
    assert split_concepts(typed) == split_words(typed) == [one_word(typed)] == [read]
    assert cleaned(read) == read


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("embedding:fox", "holds a textual inversion, 'embedding:fox', but it is read as plain"),
        ("owl, Embedding:fox", "holds a textual inversion"),
        ("(embedding:fox:1.2)", "holds a textual inversion"),
        ("(fox:1.3)", "holds a weight, '(fox:1.3)', but it is read as plain words"),
        ("a red (fox:nan)", "holds a weight"),
        ("((fox:.5) owl)", "holds a weight"),
        ("(fox, owl:1.2)", "holds a weight, '(fox, owl:1.2)'"),
        ("(fox)", "'(fox)' is in parentheses"),
        ("((red fox))", "is in parentheses"),
        ("(fox, owl)", "is in parentheses"),
        (r"\(fox\)", "is in parentheses"),
        ("<lora:fox:1>", "holds a LoRA or the like, '<lora:fox:1>'"),
        ("{fox|cat}", "holds a choice, '{fox|cat}'"),
        ("[fox|cat]", "holds a choice"),
        ("[fox:cat:0.5]", "holds a change of words"),
        ("()", "'()' has no letter or number"),
        ("fox, ...", "'...' has no letter or number"),
        ("\u0301", "has no letter or number"),
        ("x" * 501, "is 501 letters long"),
    ],
)
def test_what_is_no_word_gets_a_sentence(typed: str, said: str) -> None:
    for read, what in ((split_concepts, "concept"), (split_words, "protected word")):
        with pytest.raises(ValueError, match=f"^The {what} ") as error:
            read(typed)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    "typed",
    [
        "masterpiece, best quality, a fox in the forest, highly detailed",
        "masterpiece, best quality, 1girl, red hair",
        "a photo of a fox",
        "Photo of a red fox in snow, golden hour, bokeh",
        "cinematic shot of an old man, neon lights",
        "A cat sitting on a red sofa, warm light",
        "a fox in the snow, sunset",
        "dog running on the beach, sunset, vibrant colors",
        "red fox, soft light, bokeh, national geographic",
        "old fox that ran through the whole wide forest, owl",
        "a fox that ran through the whole wide forest at night when it rained",
    ],
)
def test_a_whole_prompt_is_no_list_of_concepts(typed: str) -> None:
    with pytest.raises(ValueError, match="looks like a whole prompt") as error:
        split_concepts(typed)
    assert f"{len(typed.split(','))} concept" in str(error.value)
    assert f"'{typed.split(',')[0][:60]}" in str(error.value)
    # The way for names that look like it.
    quoted = ", ".join(f'"{part.strip()}"' for part in typed.split(","))
    assert split_concepts(quoted) == [part.strip() for part in typed.split(",")]


@pytest.mark.parametrize(
    "typed",
    [
        "Van Gogh, Monet, Picasso",
        "the Eiffel Tower at night",
        "the eiffel tower at night, the louvre",
        "Girl with a Pearl Earring, The Great Wave off Kanagawa, Caf\u00e9 Terrace at Night",
        "A Nightmare on Elm Street, Freddy Krueger",
        "The Picture of Dorian Gray, Portrait of a Lady",
        "a golden retriever puppy, a black cat",
        "fox, owl, cat, dog, horse, cow, pig, sheep, hen",
        "watercolor, photorealistic, anime",
        "Winnie the Pooh, Tom and Jerry, Alice in Wonderland, Frankenstein's monster",
        "masterpiece",
    ],
)
def test_a_list_of_names_is_one(typed: str) -> None:
    assert split_concepts(typed) == typed.split(", ")


def test_words_are_handed_on_as_they_are_typed() -> None:
    words = ["fox", "Lock, Stock", 'an "owl"', "\u72d0\u3001\u732b"]
    assert split_words(joined(words)) == words
    for kind, built_in in VOCABULARY.items():
        assert split_concepts(joined(built_in)) == list(built_in), kind
        assert [word for one in built_in for word in split_concepts(one)] == list(built_in)


def test_an_anchor_is_one_word() -> None:
    assert one_word(" \u200b") == ""
    with pytest.raises(ValueError, match=r"but 2 are typed \(dog, owl\)"):
        one_word("dog, owl")


def test_typing_without_end_takes_no_time() -> None:
    for sign in ("(", "\\", "{|", "[:1", '"', "<a:", "a ing ", "(a:", "\u200b"):
        with pytest.raises(ValueError, match="concept"):
            split_concepts(sign * 5_000)


# What is read of them


def tokenizer(pieces: list[str]) -> Callable[[str], Reading]:
    """Reads "cat" and words of these pieces, all else as <unk>; 0 begins and 1 ends a prompt."""
    known = ["<s>", "</s>", "<unk>", "\u2581", "\u2581cat", *pieces]

    def tokens(text: str) -> list[int]:
        found = [f"\u2581{word}" for word in text.split()]
        return [0, *(known.index(one) if one in known else 2 for one in found), 1]

    return lambda words: reading(words, tokens, known.__getitem__, 20)


def test_a_reading_is_the_words_own_tokens() -> None:
    read = tokenizer(["\u2581fox", "\u2581(", "\u2581\U0001f98a"])
    assert read("fox cat") == Reading((5, 4), True, 18)
    assert read("owl fox") == Reading((2, 5), True, 18)
    assert read("owl") == Reading((2,), False, 18)
    assert read("owl (") == Reading((2, 6), False, 18)
    assert read(FOX).known
    assert read("") == Reading((), False, 18)


def test_a_word_is_known_to_one_of_several_encoders() -> None:
    one, other = tokenizer(["\u2581fox"]), tokenizer(["\u2581owl"])

    def read(words: str) -> list[Reading]:
        return [one(words), other(words)]

    check_typed(["fox", "owl"], read=read)
    with pytest.raises(ValueError, match="has no token for any part of the concept 'wolf'"):
        check_typed(["fox", "wolf"], read=read)
    with pytest.raises(ValueError, match="has no token for any part of the anchor"):
        check_typed(["fox"], "wolf", read=read)
    with pytest.raises(ValueError, match="has no token for any part of the protected word"):
        check_typed(["fox"], "owl", ["wolf"], read=read)
    with pytest.raises(ValueError, match="is 4 tokens long, but a prompt of this text encoder has"):
        check_typed(["fox fox fox fox"], read=read)


def test_an_unknown_tokenizer_forbids_nothing() -> None:
    assert words_read(["fox", "Fox", "fox"], lambda word: []) == ["fox", "Fox"]
    check_typed(["\u72d0"], "owl", ["fox"], read=lambda word: [])


def test_of_words_that_are_read_alike_the_first_stays() -> None:
    read = TinyModel().readings
    assert words_read(["Fox", "owl", "fox", r"red \(x\)", "OWL"], read) == ["Fox", "owl", "red (x)"]


# The methods


def run(method: Callable, model: Any, concepts: list[str], settings: Any) -> Any:
    given = [torch.rand(4, 4, 4, 3)] if method is few_shot else []
    return method(model, concepts, *given, settings)


TYPED = {"anchor": r"owl_\(bird\)", "protect": ("a  dog", "A dog")}
METHODS = [
    (few_shot, FewShotSettings),
    (key_step, KeyStepSettings),
    (domain_correction, DomainCorrectionSettings),
]


@pytest.mark.parametrize(("method", "kind"), METHODS)
@pytest.mark.parametrize(
    ("concepts", "changes", "said"),
    [
        (["embedding:fox"], {}, "holds a textual inversion"),
        (["fox", "()"], {}, "has no letter"),
        (["\u72d0"], {}, "has no token for any part of the concept"),
        (["fox " * 70], {}, "is 70 tokens long"),
        (
            ["fox"],
            {"protect": ("owl", "Fox")},
            "'Fox' is both a concept to unlearn and a protected word",
        ),
        (["owl", "f o x"], {"protect": ("F  O x",)}, "a protected word"),
        (["fox"], {"protect": ("(owl:2)",)}, "The protected word holds a weight"),
        (["a fox"], {"anchor": " A\u00a0FOX"}, "is the concept itself"),
        (["fox"], {"anchor": "embedding:owl"}, "The anchor holds a textual inversion"),
        (["fox"], {"anchor": "!"}, "The anchor '!' has no letter"),
    ],
)
def test_every_method_refuses_alike_before_any_work(
    method: Callable, kind: type, concepts: list[str], changes: dict, said: str
) -> None:
    model = TinyNetworkModel()
    with pytest.raises(ValueError, match=r".") as error:
        run(method, model, concepts, kind(**changes))
    assert said in str(error.value)
    assert not model.encoded
    assert not model.predictions


@pytest.mark.parametrize("method", [gradient_ascent, weight_pruning])
def test_the_baselines_refuse_what_is_no_word(method: Callable) -> None:
    model = TinyNetworkModel()
    with pytest.raises(ValueError, match="holds a textual inversion"):
        method(model, ["embedding:fox"], torch.rand(4, 4, 4, 3))
    assert not model.encoded


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (
            few_shot,
            FewShotSettings(max_steps=1, anchor=r"owl_\(bird\)", protect=("a  dog", "A dog")),
        ),
        (
            key_step,
            KeyStepSettings(
                iterations=1, steps=3, anchor=r"owl_\(bird\)", protect=("a  dog", "A dog"), start=1
            ),
        ),
        (
            domain_correction,
            DomainCorrectionSettings(
                iterations=1, pictures=1, anchor=r"owl_\(bird\)", protect=("a  dog", "A dog")
            ),
        ),
    ],
)
def test_the_record_has_what_was_read(method: Callable, settings: Any) -> None:
    model = TinyNetworkModel()
    record = run(method, model, [r"fox_\(film\)", "Fox_(film)"], settings).record
    assert record["concepts"] == ["fox_(film)"]
    assert record["settings"]["anchor"] == "owl_(bird)"
    assert record["settings"]["protect"] == ("a dog",)
    prompts = " ".join(prompt for batch in model.encoded for prompt in batch)
    assert "fox_(film)" in prompts
    assert "\\" not in prompts


@pytest.mark.parametrize(
    ("concept", "given", "said"),
    [
        ("embedding:fox", Given(), "The concept holds a textual inversion"),
        ("\u72d0", Given(), "has no token for any part of the concept"),
        ("fox", Given(synonyms=("(vixen:1.2)",)), "The synonym holds a weight"),
        ("fox", Given(translations=("\u72d0",)), "has no token for any part of the translation"),
        ("fox", Given(descriptions=("a (red animal:1.2)",)), "The description holds a weight"),
    ],
)
def test_probe_refuses_before_any_work(concept: str, given: Given, said: str) -> None:
    model = TinyNetworkModel()

    class Open:
        def __enter__(self) -> TinyNetworkModel:
            return model

        def __exit__(self, *_: object) -> None:
            pass

    with pytest.raises(ValueError, match=r".") as error:
        probe(Open, Open, concept, frozenset({"denoiser"}), given=given, attacks=())
    assert said in str(error.value)
    assert not model.encoded
