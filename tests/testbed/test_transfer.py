"""The measure of erased encoders in video: its clips, its figures, its rows, and the real thing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from testbed.model.vocabulary import FRAMES, MOTIONS
from testbed.motion import motion
from testbed.studies import together, transfer, transfer_plan, transfer_report
from testbed.studies.transfer import clips_for
from testbed.studies.transfer_plan import Job, job_of
from unlearn.diffusers_backend.apply import applied
from unlearn.diffusers_backend.model import DiffusersModel


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A motion module that has learnt nothing and yet moves something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = motion.Motion()
        for parameter in made.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.03)
    file = tmp_path_factory.mktemp("motion") / "motion.safetensors"
    motion.save(made, file)
    return file


@pytest.fixture(scope="module")
def tools(modules: Path) -> transfer.Tools:
    return transfer.tools(modules)


# What is measured


@pytest.mark.parametrize("concepts", [("fox",), ("ink",), ("Zorvik",), transfer_plan.GROUPS[-1]])
def test_clips_name_the_concept_or_do_not(concepts: tuple[str, ...]) -> None:
    clips = clips_for(concepts)
    assert len({clip.seed for clip in clips}) == len(clips)
    for concept in concepts:
        own = [clip for clip in clips if clip.concept == concept]
        assert len(own) == transfer_plan.FULL.own
        assert all(concept in clip.prompt.text for clip in own)
        assert {clip.motion for clip in own} == set(MOTIONS)
    near = [clip for clip in clips if not clip.concept]
    assert len(near) == len(concepts) * (transfer_plan.FULL.near + transfer_plan.FULL.far)
    assert not any(concept in clip.prompt.text for concept in concepts for clip in near)
    assert all(clip.prompt.text.endswith(f", {clip.motion}") for clip in clips)


def test_a_concept_has_the_same_clips_alone_and_with_others() -> None:
    """Else one, two and four concepts in an encoder could not be compared."""
    first = transfer_plan.GROUPS[-1][0]
    together = [c.prompt for c in clips_for(transfer_plan.GROUPS[-1]) if c.concept == first]
    assert together == [c.prompt for c in clips_for((first,)) if c.concept]


def test_jobs_cover_pictures_sources_and_groups() -> None:
    wanted = transfer_plan.jobs()
    assert len(set(wanted)) == len(wanted)
    for concept in transfer_plan.SINGLES:
        settings = {(j.shots, j.source) for j in wanted if j.concepts == (concept,) and j.shots}
        assert settings == {(n, s) for n in transfer_plan.SHOTS for s in transfer_plan.SOURCES}
    for group in transfer_plan.GROUPS:
        assert {Job(group, transfer_plan.GROUP_SHOTS, s) for s in transfer_plan.SOURCES} <= set(
            wanted
        )
        for concept in group:
            assert Job((concept,), transfer_plan.GROUP_SHOTS, "real") in wanted
    assert len({j.name for j in wanted}) == len(wanted)
    # The unedited model is measured for all of them, and first.
    plain = [j for j in wanted if not j.shots]
    assert wanted[: len(plain)] == plain
    assert {j.concepts for j in plain} == {j.concepts for j in wanted}
    assert len(transfer_plan.jobs(("owl",), (2,), ())) == 1 + len(transfer_plan.SOURCES)


# Figures


def clip(concept: str, right: str, shows: str | None, text: str = "a") -> dict:
    return {
        "text": text,
        "concept": concept,
        "motion": "spin",
        "right": {"object": right},
        "shows": shows,
    }


def row(clips: list[dict], shots: int = 0, **more) -> dict:
    source = "real" if shots else ""
    named = {"concepts": ["fox"], "shots": shots, "source": source, "machine": "A, 2 cores"}
    return {**named, "clips": clips, **more}


BEFORE = row([clip("fox", "11111111", "spin"), clip("fox", "11111110", "spin", "b")])
NEAR = clip("", "11110000", "sway", "c"), clip("", "11110000", "spin", "d")


def test_figures_by_hand() -> None:
    before = row([*BEFORE["clips"], *NEAR])
    after = row(
        [
            clip("fox", "00100000", "spin"),
            clip("fox", "00100001", None, "b"),
            # One of these four is lost and four are won, two of those four lost.
            clip("", "01111111", "spin", "c"),
            clip("", "11000000", "sway", "d"),
        ],
        shots=4,
        seconds=3.0,
    )
    found = transfer_report.figures([(before, after)])
    assert found["was"] == pytest.approx(15 / 16)
    assert found["residual"] == pytest.approx(3 / 16)
    assert found["peak"] == 1.0  # the third frame
    assert found["any"] == 1.0
    assert found["neighbours"] == pytest.approx(9 / 8)
    assert found["same"] == pytest.approx(5 / 8)
    assert found["moved"] == pytest.approx(3 / 4)
    assert found["motion"] == pytest.approx(2 / 3)
    assert found["same_motion"] == pytest.approx(1 / 3)
    assert found["near_motion"] == 1.0
    same = transfer_report.figures([(before, before)])
    assert same["neighbours"] == same["same"] == same["motion"] == 1.0
    assert same["residual"] == same["was"]


def test_figures_of_different_clips_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' before is 'z' after"):
        transfer_report.figures(
            [(row([clip("fox", "1" * 8, None)]), row([clip("fox", "1" * 8, None, "z")]))]
        )


def test_rows_of_other_weights_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    transfer.write_rows(file, [{**BEFORE, "weights": "a"}, {**BEFORE, "weights": "b"}])
    assert len(file.read_text().splitlines()) == 4
    (kept,) = transfer.read_rows(file, "b")
    assert job_of(kept) == Job(("fox",))
    assert transfer.read_rows(tmp_path / "none.json", "b") == []


def test_table_compares_the_same_concepts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gone = [clip("fox", "00000000", "spin"), clip("fox", "00000000", "spin", "b"), *NEAR]
    before = row([*BEFORE["clips"], *NEAR])
    rows = [before, row(gone, 1, seconds=2.0), row(gone, 4, seconds=4.0)]
    # Of ink there is one number of pictures only, so the table by pictures leaves it out.
    rows += [{**r, "concepts": ["ink"]} for r in (before, row(before["clips"], 4, seconds=6.0))]
    transfer_report.write(rows, tmp_path)
    text = (tmp_path / "transfer.md").read_text()
    assert text.strip() == capsys.readouterr().out.strip()
    lines = {
        line.split("|")[1].strip(): line.split("|")[2:] for line in text.splitlines() if "|" in line
    }
    assert [cell.strip() for cell in lines["4 drawings"][:3]] == ["1", "0.0%", "0.0%"]
    assert lines["fox (object)"][0].strip() == "2"
    assert lines["ink (style)"][1].strip() == "93.8%"
    assert "concepts in one encoder" not in lines


# The real thing, small


@pytest.mark.slow
def test_film_is_the_pipelines_own(tools: transfer.Tools) -> None:
    clips = clips_for(("fox",))[:2]
    made = transfer.film(tools.video, clips, steps=2)
    assert made.shape == (2, FRAMES, 128, 128, 3)
    assert made.dtype == torch.float32
    # Each clip is its own prompt's and seed's, whatever it is drawn together with.
    alone = transfer.film(tools.video, clips[1:], steps=2)
    apart = (made[0] - made[1]).abs().mean()
    assert (alone - made[1:]).abs().mean() < 0.1 * apart
    with torch.inference_mode():
        exact = tools.video(
            clips[1].prompt.text,
            num_frames=FRAMES,
            height=128,
            width=128,
            num_inference_steps=2,
            guidance_scale=transfer.GUIDANCE,
            generator=torch.Generator().manual_seed(clips[1].seed),
            output_type="pt",
        ).frames
    # float32 against what the clips are drawn in.
    assert (exact.movedim(2, -1) - alone).abs().mean() < 0.2 * apart


@pytest.mark.costly
@pytest.mark.slow
def test_erased_encoder_reaches_the_clips_and_no_more(tools: transfer.Tools) -> None:
    erasure = transfer.erase(tools.image, Job(("fox",), 1, "real"), transfer_plan.QUICK)
    clips = clips_for(("fox",))[:1]
    weights = {key: value.clone() for key, value in tools.video.unet.state_dict().items()}
    before = transfer.film(tools.video, clips, steps=2)
    with applied(DiffusersModel(tools.video), erasure):
        after = transfer.film(tools.video, clips, steps=2)
    assert (after - before).abs().mean() > 1e-3
    for key, value in tools.video.unet.state_dict().items():
        assert torch.equal(value, weights[key]), key
    assert torch.equal(transfer.film(tools.video, clips, steps=2), before)


@pytest.mark.slow
def test_goes_on_where_it_was_stopped(modules: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ["--concept", "fox", "--shots", "1", "--quick", "--jobs", "1"]
    options += ["--json", str(file), "--folder", str(tmp_path), "--motion", str(modules)]
    transfer.main(options)
    first = json.loads(file.read_text())
    assert [job_of(row) for row in first] == transfer_plan.jobs(("fox",), (1,), ())
    assert [len(row["clips"]) for row in first] == [4, 4, 4]
    assert [row["steps"] for row in first[1:]] == [transfer_plan.QUICK.erasing] * 2
    # One row is lost: it alone is measured again.
    kept = [{**row, "seconds": 1e6} for row in first[:2]]
    transfer.write_rows(file, kept)
    transfer.main(options)
    again = json.loads(file.read_text())
    assert again[:2] == kept
    assert again[2]["clips"] == first[2]["clips"]
    assert "| 1 drawing | 1 |" in (tmp_path / "transfer.md").read_text()


def test_pictures_of_a_group_name_none_of_it_but_the_concept() -> None:
    group = transfer_plan.GROUPS[-1]
    for concept in group:
        prompts = together.prompts_without(concept, group, 0)
        for prompt in prompts:
            assert (prompt.object == concept) == (prompt.measure == "own")
            assert prompt.measure == "own" or prompt.object not in group
        assert {prompt.measure for prompt in prompts} == {"own", "in", "cross"}


@pytest.mark.slow
def test_several_concepts_are_scored_in_pictures(
    tools: transfer.Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An erasure that changes nothing loses nothing, one that spoils the encoder nearly all."""
    monkeypatch.setattr(together, "SEEDS", (0,))
    model = tools.image
    erasure = transfer.erase(model, Job(("fox",), 1, "real"), transfer_plan.QUICK)
    spoilt = {
        key: {"diff": torch.randn(erasure.delta(key).shape, generator=torch.manual_seed(0))}
        for key in erasure.deltas
    }
    (kept,) = together.scores(model, ("fox",), applied(model, erasure, 0.0), tools.judge, 6)
    erasure = replace(erasure, deltas=spoilt)
    (lost,) = together.scores(model, ("fox",), applied(model, erasure), tools.judge, 6)
    assert (kept["concept"], kept["seed"], kept["ira"], kept["cra"]) == ("fox", 0, 1, 1)
    assert kept["ua"] < 0.5 < lost["ua"]
    assert lost["ira"] < 0.5


def test_sheet_shows_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (transfer, transfer_report):
        monkeypatch.setattr(module, "STRIPS", tmp_path)
    jobs = [Job(("fox",)), Job(("fox",), transfer_plan.GROUP_SHOTS, "real")]
    clips = clips_for(("fox",))
    for shade, job in enumerate(jobs, 1):
        transfer.save_strip(job, clips, torch.full((len(clips), FRAMES, 128, 128, 3), shade / 4))
    one = row([clip("fox", "1" * FRAMES, None), clip("", "1" * FRAMES, None)])
    pair = (one, {**one, "shots": transfer_plan.GROUP_SHOTS, "source": "real"})
    transfer_report.sheet({jobs[1]: pair}, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > FRAMES * 128
        left, right = (sheet.getpixel((x, 40)) for x in (40, sheet.width - 40))
        assert (left, right) == ((64,) * 3, (128,) * 3)


def test_says_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for options, sentence in (
        (["--concept", "unicorn"], "IconCanvas does not know 'unicorn'"),
        (["--motion", str(tmp_path / "none")], "train it with python -m testbed motion."),
    ):
        with pytest.raises(SystemExit):
            transfer.main(options)
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_concept_is_gone_from_clips_that_move() -> None:
    """The claim itself, on a few clips: erased in the image model, gone in the video model."""
    effort = transfer.Effort(own=4, near=2, far=1)
    before, after = (
        transfer.measure(job, motion.WEIGHTS, effort)
        # With two pictures: those with four are also drawn of in single pictures, at some length.
        for job in (Job(("fox",)), Job(("fox",), 2, "real"))
    )
    found = transfer_report.figures([(before, after)])
    assert found["was"] >= 0.9
    assert found["moved"] >= 0.8  # of seven clips one may fail
    assert found["residual"] <= 0.05
    assert found["peak"] <= 0.25  # a frame of four clips
    assert found["neighbours"] >= 0.85
    assert found["motion"] >= 0.8
