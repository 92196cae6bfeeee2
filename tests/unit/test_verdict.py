"""The verdict on an erasure, and on the pictures it learns from: by a model that is computed by
hand, then through a node and a command."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import small_pipelines
import torch
from commands import CPU
from tiny import TinyModel, TinyNetworkModel

from testbed.model import samples
from unlearn.__main__ import main
from unlearn.cli import erase
from unlearn.core.conditioning import Conditioning
from unlearn.core.erasure import Erasure
from unlearn.evaluate import known, verdict
from unlearn.evaluate import picture_check as pictured
from unlearn.evaluate.collateral import COMMON
from unlearn.evaluate.picture_check import check_pictures
from unlearn.methods.key_step import key_step
from unlearn.methods.parts.key_step_settings import KeyStepSettings

KNOWN = (*COMMON, "mushroom", "flower", "fox", "ink", "Zorvik")


class Drawer(TinyModel):
    """A picture is two numbers: of the thing and of the style that its prompt names.

    Naming what the picture shows takes 0.2 off the network's error where the model knows the word
    and little where it does not; naming anything else adds to it. `instead`: what is drawn where
    something else is asked for, of the first `count` prompts.
    """

    def __init__(
        self,
        instead: dict[str, str] | None = None,
        count: int = 99,
        akin: dict[tuple[str, str], float] | None = None,
        reads: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.instead, self.count = instead or {}, count
        self.reads = reads or {}
        self.akin = {(number(a), number(b)): much for (a, b), much in (akin or {}).items()}
        self.known = {number(word): 0.2 for word in KNOWN}
        self.drawn: list[str] = []
        self.rows = 0

    def token_count(self, words: str) -> int:
        return 1 if words in (*KNOWN, "bench") else 3

    def named(self, prompt: str) -> list[float]:
        """(thing, style); 0 where it names none."""
        thing, _, style = prompt.partition(",")[0].partition(" in the style of ")
        words = [self.reads.get(word, word) for word in (thing.rpartition(" ")[2], style)]
        return [number(word) for word in words]

    def encode(self, prompts: Sequence[str]) -> Conditioning:
        return Conditioning(torch.tensor([self.named(prompt) for prompt in prompts])[:, None])

    def sample(
        self, prompts: Sequence[str], seed: int, steps: int = 20, guidance: float = 7.5
    ) -> torch.Tensor:
        self.drawn += prompts
        found = []
        for i, prompt in enumerate(prompts):
            for word, other in self.instead.items():
                if i < self.count:
                    prompt = prompt.replace(word, other)
            found.append(self.named(prompt))
        return torch.tensor(found)[..., None, None]

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """The pictures' first pixel holds the number."""
        return (images[:, :1, :1, :2].movedim(-1, 1) * 1e4).round()

    def add_noise(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x0

    def target(self, x0: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x0)

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, conditioning: Conditioning
    ) -> torch.Tensor:
        self.rows += len(x_t)
        errors = []
        for shown, asked in zip(x_t.flatten(1).tolist(), conditioning.cross[:, 0].tolist()):
            error = 1.0
            for is_there, word in zip(shown, asked):
                if word and is_there == word:
                    error -= self.known.get(word, 0.03)
                elif word:
                    error += 0.05 - self.akin.get((word, is_there), 0.0)
            errors.append(error)
        return torch.tensor(errors).view(-1, 1, 1, 1).expand_as(x_t)


def number(word: str) -> float:
    return float(zlib.crc32(word.encode()) % 9973) if word else 0.0


def pictures_of(word: str, count: int = 2) -> torch.Tensor:
    images = torch.zeros(count, 2, 2, 3)
    images[:, :, :, 0] = number(word) / 1e4
    return images


def measured(
    edited: Drawer,
    concepts: str = "mushroom",
    kind: Any = "object",
    original: Drawer | None = None,
    **more: Any,
) -> dict:
    ways = (lambda one=one: nullcontext(one) for one in (original or Drawer(), edited))
    return verdict.measured(*ways, concepts.split(", "), kind, **more)


def line(found: dict) -> str:
    """As it comes out of a file."""
    return verdict.told(json.loads(json.dumps({"measured": {"verdict": found}})))


# What was reached


@pytest.mark.parametrize(
    ("count", "word", "said"),
    [
        (4, "gone", "mushroom is gone: its own prompts show it in 0 of 4 pictures, 4 before."),
        (3, "partly", "mushroom is partly gone: its own prompts show it in 1 of 4 pictures, 4 b"),
        (2, "partly", "mushroom is partly gone: its own prompts show it in 2 of 4 pictures, 4 b"),
        (1, "not gone", "mushroom is not gone: its own prompts show it in 3 of 4 pictures, 4 b"),
        (0, "not gone", "mushroom is not gone: its own prompts show it in 4 of 4 pictures, 4 b"),
    ],
)
def test_verdict_is_by_how_many_pictures_still_show_it(count: int, word: str, said: str) -> None:
    found = measured(Drawer({"mushroom": "flower"}, count), seed=5)
    of = found["concepts"]["mushroom"]
    assert (of["verdict"], of["before"], of["after"]) == (word, 4, 4 - count)
    assert of["explained_before"] == pytest.approx(0.19)
    assert (found["prompts"], found["steps"], found["seed"]) == (4, 8, 5)
    assert line(found).startswith(said)
    assert line(found).endswith(f"The original model judged, in {found['seconds']:.1f} s.")
    advice = verdict.advice({"measured": {"verdict": found}})
    assert advice == ("" if word == "not gone" else verdict.SUPPRESSED)


def test_both_sides_draw_the_same_prompts_of_its_own() -> None:
    original, edited = Drawer(), Drawer()
    measured(edited, original=original)
    assert len(edited.drawn) == len(set(edited.drawn)) == 4
    assert original.drawn[-4:] == edited.drawn


def test_thing_is_asked_for_alone_and_in_styles() -> None:
    """It may be gone where it is asked for alone, and nowhere else."""
    edited = Drawer()
    found = measured(Drawer({"mushroom": "flower"}, count=1))
    assert found["concepts"]["mushroom"]["verdict"] == "not gone"
    measured(edited)
    assert edited.drawn[0] == "a photo of a mushroom"
    assert [prompt.partition(" mushroom, ")[2] for prompt in edited.drawn[1:]] == [
        "flat style",
        "glossy style",
        "ink style",
    ]


def test_anchor_in_its_place_is_gone_though_it_resembles_the_concept() -> None:
    """Mushrooms and flowers have much in common, flowers more with flowers."""
    akin = {("mushroom", "flower"): 0.15}
    drawn = Drawer({"mushroom": "flower"})
    alone = measured(drawn, original=Drawer(akin=akin))
    assert alone["concepts"]["mushroom"]["verdict"] == "not gone"
    beside = measured(drawn, original=Drawer(akin=akin), anchor="flower")
    assert beside["concepts"]["mushroom"]["verdict"] == "gone"


def test_faint_picture_is_not_gone() -> None:
    """A third of what the word explains of its own picture: of another thing it explains none."""
    faint = Drawer(akin={("mushroom", "sketch"): 0.1225})
    found = measured(Drawer({"mushroom": "sketch"}), original=faint)
    assert found["concepts"]["mushroom"]["explained_after"] == pytest.approx(0.071, abs=1e-3)
    assert found["concepts"]["mushroom"]["verdict"] == "not gone"


@pytest.mark.parametrize("concept", ["Blorbo", "xqzvy", "Zorvek"])
@pytest.mark.parametrize("kind", ["object", "character", "style"])
def test_of_an_unknown_word_nothing_can_be_said(concept: str, kind: str) -> None:
    """The model draws something from it, which it explains best of all words; but little."""
    edited = Drawer()
    found = measured(edited, concept, kind)
    assert found["concepts"][concept]["verdict"] == "unknown"
    assert line(found).startswith(
        f"Nothing can be said of {concept}, which is no success: the unedited model does not draw "
        "it from its own prompts (0 of 4 pictures). Check the spelling, or connect pictures of it."
    )
    assert not edited.drawn, "what is left of nothing is not drawn"
    assert verdict.advice({"measured": {"verdict": found}}) == ""
    given = measured(edited, concept, kind, given=True)
    assert "or ask Identify Concept what it calls your pictures of it." in line(given)


@pytest.mark.parametrize(
    ("concept", "meant"), [("mushrom", "mushroom"), ("umbrela", "umbrella"), ("gitar", "guitar")]
)
def test_misspelt_word_that_draws_something_else_is_no_success(concept: str, meant: str) -> None:
    original = Drawer()
    original.known[number(concept)] = 0.2  # whatever that may be
    found = measured(Drawer({concept: "flower"}), concept, original=original)
    assert found["concepts"][concept]["verdict"] == "unknown"
    assert f"does not take it for {meant}, and draws something else from it" in line(found)


def test_misspelt_word_that_the_model_understands_is_measured() -> None:
    reads = {"mushrom": "mushroom"}
    found = measured(Drawer({"mushrom": "flower"}), "mushrom", original=Drawer(reads=reads))
    assert found["concepts"]["mushrom"]["verdict"] == "gone"


def test_word_with_a_token_of_its_own_is_not_misspelt() -> None:
    assert known.spelt_like(Drawer(), "bench") == ""
    assert known.spelt_like(Drawer(), "Zorvik") == ""
    assert known.spelt_like(Drawer(), "red mushrom") == "red mushroom"


def test_style_is_asked_for_beside_things_and_by_its_own_sentence() -> None:
    edited = Drawer({"ink": "noto"})
    found = measured(edited, "ink", "style")
    assert found["concepts"]["ink"]["verdict"] == "gone"
    assert edited.drawn == [f"a picture of a {thing} in the style of ink" for thing in COMMON[:4]]
    assert measured(Drawer(), "ink", "style")["concepts"]["ink"]["verdict"] == "not gone"


def test_each_of_several_concepts_has_its_own_verdict_and_some_are_left_out() -> None:
    found = measured(Drawer({"fox": "cat"}), "mushroom, fox, mushrom, flower, car, house")
    words = {concept: of["verdict"] for concept, of in found["concepts"].items()}
    assert words == {
        "mushroom": "not gone",
        "fox": "gone",
        "mushrom": "unknown",
        "flower": "not gone",
    }
    assert " 2 more concepts were not measured. " in line(found)
    assert verdict.advice({"measured": {"verdict": found}}) == verdict.SUPPRESSED


def test_picture_is_judged_with_more_draws_where_the_first_do_not_tell() -> None:
    clear, doubtful = Drawer(), Drawer(akin={("mushroom", "mushroom"): 0.0})
    measured(Drawer(), original=clear)
    jitter = torch.Generator().manual_seed(0)
    own = doubtful.predict

    def predict(*given: Any) -> torch.Tensor:
        found = own(*given)
        return found + 0.2 * torch.randn(len(found), 1, 1, 1, generator=jitter)

    doubtful.predict = predict
    measured(Drawer(), original=doubtful)
    assert clear.rows < doubtful.rows <= 3 * clear.rows


def test_picture_of_something_else_is_weighed_against_no_rivals() -> None:
    """That it says too little of it is enough."""
    shown, gone = Drawer(), Drawer()
    measured(Drawer(), original=shown)
    measured(Drawer({"mushroom": "flower"}), original=gone)
    rivals = known.RIVALS * known.DRAWS[0] * known.PICTURES
    assert shown.rows - gone.rows == rivals


def test_model_that_is_broken_has_erased_nothing() -> None:
    broken = Drawer()
    broken.sample = lambda prompts, *_: torch.full((len(prompts), 2, 1, 1), torch.nan)
    with pytest.raises(ValueError, match="draws NaN or infinite values") as error:
        measured(broken)
    assert isinstance(error.value, verdict.NOT_MEASURED)
    said = verdict.not_measured(error.value)
    assert "so it is broken, not erased" in said
    assert said.endswith("The erasure is kept.")


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"measured": None},
        {"measured": {"verdict": []}},
        {"measured": {"verdict": {"concepts": {}, "of": 0, "seconds": 1}}},
        {"measured": {"verdict": {"concepts": {"fox": None}, "of": 1, "seconds": 1}}},
        {"measured": {"verdict": {"concepts": {"fox": {"verdict": "splendid", "before": 4}}}}},
        {"measured": {"verdict": {"concepts": {"fox": {"verdict": "gone"}}, "of": 1e999}}},
        {"measured": {"verdict": {"concepts": [["fox", "gone"]], "of": 1, "seconds": 1}}},
    ],
)
def test_record_of_another_make_tells_nothing(record: dict) -> None:
    assert verdict.told(record) == ""
    assert verdict.doubts(record) == []
    assert verdict.advice(record) == verdict.UNMEASURED


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried")])
def test_lack_of_memory_is_said_plainly(error: Exception) -> None:
    assert verdict.not_measured(error) == (
        "Not measured: there was too little memory for it. The erasure is kept."
    )


# Pictures that were given


def test_pictures_of_another_thing_are_refused_by_its_name() -> None:
    model = Drawer()
    with pytest.raises(ValueError, match="do not show 'cat' but 'mushroom'") as error:
        check_pictures(
            model,
            ["fox", "cat"],
            torch.cat([*map(pictures_of, ("fox", "mushroom"))]),
            "object",
            "leave it",
        )
    assert "or leave it to train anyway." in str(error.value)
    assert "\n" not in str(error.value)


def test_pictures_of_the_concept_are_looked_at_quickly() -> None:
    model = Drawer()
    assert check_pictures(model, ["fox"], pictures_of("fox"), "object", "") == []
    assert model.rows == 2 * 2 * pictured.DRAWS


def test_misspelt_concept_with_pictures_is_refused_by_the_word_they_look_like() -> None:
    with pytest.raises(ValueError, match="do not show 'mushrom' but 'mushroom'"):
        check_pictures(Drawer(), ["mushrom"], pictures_of("mushroom"), "object", "")


@pytest.mark.parametrize("kind", ["object", "character"])
def test_somebody_whom_the_model_does_not_know_is_doubtful_and_goes_on(kind: Any) -> None:
    model = Drawer()
    (said,) = check_pictures(model, ["Blorbo"], pictures_of("nobody of these"), kind, "")
    assert said.startswith("Warning: to this model 'Blorbo' does not describe the given pictures")
    assert "there is nothing to unlearn" in said


def test_pictures_in_a_style_are_not_asked() -> None:
    model = Drawer()
    assert check_pictures(model, ["ink"], pictures_of("mushroom"), "style", "") == []
    assert model.rows == 0


# A kind's own sentence


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("object", "a photo of a fox"),
        ("style", "a painting in the style of fox"),
        ("instance", "a photo of fox"),
    ],
)
def test_movement_in_the_network_is_measured_by_the_kinds_sentence(
    task: Any, sentence: str
) -> None:
    model = TinyNetworkModel()
    settings = KeyStepSettings(mode="paper", task=task, iterations=1, steps=4, start=3)
    assert settings.kind == key_step(model, ["fox"], settings).record["kind"]
    assert [sentence, ""] in model.encoded


# The command


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_pipelines.write(small_pipelines.sd1, tmp_path_factory.mktemp("model") / "sd1")


def command(small: Path, file: Path, *more: str) -> list[str]:
    options = ["--shots", "1", "--steps", "1", "--size", "64", *CPU, *more]
    return ["erase", str(small), "fox", *options, "-o", str(file)]


@pytest.mark.costly
def test_command_ends_with_the_verdict_and_records_it(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.safetensors"
    assert main(command(small, file)) == 0
    record = Erasure.load(file).record
    said = " ".join(filter(None, (verdict.told(record), verdict.advice(record))))
    assert "fox" in said
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_command_without_a_verdict_says_so(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "a.safetensors"
    monkeypatch.setattr(verdict, "measured", lambda *_: pytest.fail("it is off"))
    assert main(command(small, file, "--no-verdict")) == 0
    assert capsys.readouterr().out.splitlines()[-1] == verdict.UNMEASURED
    assert "verdict" not in Erasure.load(file).record["measured"]


def test_command_interrupted_while_it_measures_has_written_its_file(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "a.safetensors"
    monkeypatch.setattr(verdict, "measured", interrupted)
    with pytest.raises(SystemExit) as end:
        main(command(small, file))
    assert end.value.code == 130
    assert f"{file} is written, and what is left was not measured." in capsys.readouterr().err
    assert Erasure.load(file).concepts == ["fox"]


def test_command_refuses_pictures_of_another_thing_in_one_sentence(
    small: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(model: Any, concepts: list, images: Any, kind: str, way_out: str, *_: Any) -> None:
        assert (concepts, len(images), kind) == (["fox"], 1, "object")
        raise ValueError(f"They look like 'mushroom': {way_out}.")

    monkeypatch.setattr(erase, "check_pictures", refused)
    file = tmp_path / "a.safetensors"
    options = ["--images", str(samples.FOLDER / "mushroom_1.png"), "--steps", "1", *CPU]
    assert main(["erase", str(small), "fox", *options, "-o", str(file)]) == 1
    assert capsys.readouterr().err == "They look like 'mushroom': add --no-verdict.\n"
    assert not file.exists()
