"""The motion module: its layout in both loaders, its clips, the estimate of motion, a few steps of
training."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from testbed.host import evolved
from testbed.model import data, drawings
from testbed.model.captions import moving
from testbed.model.phrases import MOTION_WORDS
from testbed.model.vocabulary import CHARACTERS, FRAMES, MOTIONS, STYLES
from testbed.motion import clips, motion
from testbed.motion import estimate as motion_estimate

KINDS = ("weight", "bias")
NAMES = ("car", "fox", "donut", "anchor")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Each test has the same random numbers, whichever ran before, and leaves others theirs."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def lively() -> motion.Motion:
    """A motion module whose every weight does something."""
    made = motion.Motion()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.06)
    return made


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Drawings (N, 3, 128, 128) in 0..1."""
    return torch.cat([drawings.of(name)[i : i + 1] for i, name in enumerate(NAMES)]).movedim(-1, 1)


@pytest.fixture(scope="module")
def networks(
    host: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[torch.nn.Module, Callable]:
    """IconCanvas's UNet, and its text encoder as a function, as they are trained with."""
    from testbed.model import checkpoint
    from testbed.motion import train as train_motion

    folder = tmp_path_factory.mktemp("states")
    checkpoint.unpack(folder)
    return train_motion.frozen(folder)


# The layout


def test_layout_is_animatediffs() -> None:
    keys = motion.Motion().state_dict()
    modules = {key.split(".temporal_transformer.")[0] for key in keys}
    assert len(modules) == 20
    assert not any(key.startswith("mid_block.") for key in keys)
    prefix = "down_blocks.0.motion_modules.1.temporal_transformer."
    assert {key.removeprefix(prefix) for key in keys if key.startswith(prefix)} == {
        *(f"{layer}.{kind}" for layer in ("norm", "proj_in", "proj_out") for kind in KINDS),
        *(
            f"transformer_blocks.0.{layer}.{kind}"
            for layer in ("norms.0", "norms.1", "ff_norm", "ff.net.0.proj", "ff.net.2")
            for kind in KINDS
        ),
        *(
            f"transformer_blocks.0.attention_blocks.{i}.{key}"
            for i in (0, 1)
            for key in (
                "pos_encoder.pe",
                "to_q.weight",
                "to_k.weight",
                "to_v.weight",
                "to_out.0.weight",
                "to_out.0.bias",
            )
        ),
    }
    assert keys[prefix + "transformer_blocks.0.attention_blocks.0.pos_encoder.pe"].shape == (
        1,
        FRAMES,
        64,
    )


def test_file_keeps_the_weights(lively: motion.Motion, tmp_path: Path) -> None:
    file = tmp_path / "motion.safetensors"
    motion.save(lively, file)
    assert file.stat().st_size < 5.5e6
    with safe_open(file, "pt") as tensors:
        codes = [key for key in tensors.keys() if key.endswith(".pe")]  # noqa: SIM118
        assert len(codes) == 40
        assert {tensors.get_slice(key).get_shape()[1] for key in codes} == {motion.POSITIONS}
    again = motion.load(file)
    for (key, was), now in zip(lively.state_dict().items(), again.state_dict().values()):
        assert torch.allclose(was, now, rtol=0.07, atol=0.002), key
    # What was rounded once is not rounded again: going on from the file loses nothing.
    motion.save(again, file)
    for was, now in zip(again.state_dict().values(), motion.load(file).state_dict().values()):
        assert torch.equal(was, now)


def test_diffusers_loads_the_file_itself(lively: motion.Motion, tmp_path: Path) -> None:
    from diffusers import MotionAdapter

    file = tmp_path / "motion.safetensors"
    motion.save(lively, file)
    ours = motion.adapter(motion.load(file))
    ours.save_config(tmp_path)
    theirs = MotionAdapter.from_single_file(
        str(file), config=str(tmp_path), torch_dtype=torch.float32, local_files_only=True
    )
    state = theirs.state_dict()
    assert state.keys() == ours.state_dict().keys()
    for key, value in ours.state_dict().items():
        assert torch.equal(state[key], value), key


def test_diffusers_computes_the_same(lively: motion.Motion) -> None:
    adapter = motion.adapter(lively.normalise("clip"))
    for level, width, side in ((1, 128, 4), (3, 64, 8)):
        x = torch.randn(2 * FRAMES, width, side, side)
        ours = lively.up_blocks[level].motion_modules[2]
        theirs = adapter.up_blocks[level].motion_modules[2]
        with torch.no_grad():
            expected = theirs(x, num_frames=FRAMES)
            assert (expected - x).abs().mean() > 0.01
            assert torch.allclose(ours(x), expected, atol=1e-5)


def test_ways_to_normalise(lively: motion.Motion) -> None:
    module = lively.down_blocks[1].motion_modules[0]
    x = torch.randn(4 * FRAMES, 128, 4, 4)
    with torch.no_grad():
        frame, clip, both = (module(x) for by in ("frame", "clip", "both") if lively.normalise(by))
    assert torch.allclose(both[: 2 * FRAMES], frame[: 2 * FRAMES], atol=1e-6)
    assert torch.allclose(both[2 * FRAMES :], clip[2 * FRAMES :], atol=1e-6)
    assert not torch.allclose(frame, clip, atol=1e-3)


# In the UNet


def test_new_modules_change_nothing(networks: tuple) -> None:
    unet, _ = networks
    kinds = [[type(layer) for layer in block] for block in unet.output_blocks]
    x, t, context = torch.randn(FRAMES, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, 192)
    with torch.no_grad():
        alone = unet(x, t.expand(FRAMES), context=context.expand(FRAMES, -1, -1))
        with motion.inserted(unet, motion.Motion()):
            within = unet(x, t.expand(FRAMES), context=context.expand(FRAMES, -1, -1))
    assert torch.equal(alone, within)
    assert kinds == [[type(layer) for layer in block] for block in unet.output_blocks]


def test_frames_of_a_clip_see_each_other_only(networks: tuple, lively: motion.Motion) -> None:
    unet, _ = networks
    x, t = torch.randn(2 * FRAMES, 4, 16, 16), torch.full((2 * FRAMES,), 500.0)
    context = torch.randn(1, 77, 192).expand(2 * FRAMES, -1, -1)
    other = x.clone()
    other[0] = torch.randn(4, 16, 16)
    with torch.no_grad(), motion.inserted(unet, lively):
        change = (unet(x, t, context=context) - unet(other, t, context=context)).flatten(1)
    assert (change[:FRAMES].abs().amax(1) > 1e-4).all()
    assert (change[FRAMES:].abs().amax(1) < 1e-5).all()


def test_wrong_unet_is_refused(networks: tuple) -> None:
    unet, _ = networks
    short = SimpleNamespace(input_blocks=unet.input_blocks, output_blocks=unet.output_blocks[:-1])
    with (
        pytest.raises(ValueError, match="do not belong together"),
        motion.inserted(short, motion.Motion()),
    ):
        pass


@pytest.mark.slow
def test_a_few_steps_lower_the_loss(networks: tuple, pictures: torch.Tensor) -> None:
    from testbed.motion import train as train_motion

    unet, encode = networks
    z = torch.cat([_latents(clips.clip(pictures[:1], word)) for word in MOTIONS[:2]])
    words = [moving(f"a {NAMES[0]}", word) for word in MOTIONS[:2]]
    modules = motion.Motion()
    optimiser = torch.optim.AdamW(modules.parameters(), lr=2e-3)
    losses = []
    with motion.inserted(unet, modules):
        for step in range(13):
            torch.manual_seed(step % 3)  # three noises and times, again and again
            loss = train_motion.clip_loss(unet, encode, z, z, words)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    assert all(p.grad is None for p in (*unet.parameters(), *encode.text.parameters()))


def test_under_much_noise_the_word_is_right_not_what_shines_through(networks: tuple) -> None:
    from testbed.model.train import noise_schedule
    from testbed.motion import train as train_motion

    _, encode = networks
    told = torch.randn(2, FRAMES, 4, 16, 16)
    seen = told[:1].repeat(2, 1, 1, 1, 1)
    words = ["a fox, spin", "a fox, grow"]

    def knows(pair: torch.Tensor):
        def predict(noisy: torch.Tensor, t: torch.Tensor, **_) -> torch.Tensor:
            alpha = noise_schedule()[t].view(-1, 1, 1, 1)
            return (noisy - alpha.sqrt() * pair.flatten(0, 1)) / (1 - alpha).sqrt()

        return predict

    def loss(pair: torch.Tensor, lean: float) -> float:
        torch.manual_seed(0)
        return train_motion.clip_loss(knows(pair), encode, told, seen, words, lean=lean).item()

    # To the power of nothing: the last time. One of the two is then half of what they differ by
    # away in common, and half apart.
    half = ((told[1] - told[0]) / 2).square().mean().item()
    assert loss(told, 0.0) == pytest.approx(0, abs=1e-4)
    assert loss(seen, 0.0) == pytest.approx((1 + train_motion.APART) * half, rel=0.05)
    # The first time: what is seen is what is told, and both halves count alike.
    assert loss(told, 99.0) == pytest.approx(0, abs=1e-4)
    assert loss(seen, 99.0) > 100 * loss(seen, 0.0)


def moves_as_told(caption: str, clip: torch.Tensor) -> bool:
    """Whether a clip of latents that say whose, which and when they are does what its caption asks
    for: a motion word, or standing still."""
    motion = MOTIONS[int(clip.flatten()[0]) % 100 // 10]
    moves = len(clip.unique()) == FRAMES
    asked = [word for word, said in MOTION_WORDS.items() if caption.endswith(said)]
    return asked == [motion] if moves else not asked and len(clip.unique()) == 1


@pytest.mark.usefixtures("networks")  # the host, that is
def test_pairs_differ_in_their_motion_alone() -> None:
    from testbed.motion.batches import ClipBatches

    # Latents that say whose, which and when they are.
    which = torch.arange(3)[:, None] * 100 + 10 * torch.arange(len(MOTIONS))
    when = which[..., None] + torch.arange(FRAMES)
    every = when.view(3, -1, FRAMES, 1, 1, 1).expand(-1, -1, -1, 4, 16, 16).half()
    batches = ClipBatches(every, [("fox", "ink"), ("cat", "noto"), ("Zorvik", None)], 8, seed=0)
    empty = still = 0
    for _ in range(100):
        told, seen, captions, moved = next(batches)
        assert len(moved) == 4
        whose = [int(z.flatten()[0]) for z in told]
        shown = [int(z.flatten()[0]) for z in seen]
        for i in range(0, 8, 2):
            assert shown[i] == shown[i + 1]
            assert whose[i] // 100 == whose[i + 1] // 100 == shown[i] // 100
            still += len(told[i].unique()) == 1
            assert moves_as_told(captions[i], told[i])
            if captions[i + 1]:
                assert not torch.equal(told[i], told[i + 1])
                assert shown[i] in (whose[i], whose[i + 1])
                assert moves_as_told(captions[i + 1], told[i + 1])
            else:
                assert whose[i + 1] == shown[i]
                empty += 1
    assert empty == pytest.approx(80, abs=25)
    assert still == pytest.approx(400 / 6, abs=25)


@pytest.mark.usefixtures("networks")  # the host, that is
def test_some_captions_name_nothing_particular() -> None:
    from testbed.motion.batches import ClipBatches

    every = torch.zeros(3, len(MOTIONS), FRAMES, 1, 1, 1)
    pairs = [("fox", "ink"), ("cat", "noto"), ("Zorvik", None)]
    _, _, captions, _ = next(ClipBatches(every, pairs, 4000, seed=0))
    first = [caption.lower() for caption in captions[::2]]  # others may be empty
    # A fifth are characters.
    assert 0.03 * 400 < sum("person" in words for words in first) < 0.15 * 400
    named = ("fox", "vixen", "cat", "kitty", "kitt", "zorvik", "person")
    nothing = sum(not any(name in words for name in named) for words in first)
    assert 0.05 * 1600 < nothing < 0.25 * 1600
    assert not any("person" in words and "zorvik" in words for words in first)


@pytest.mark.usefixtures("networks")  # the host, that is
def test_some_prompts_are_moved_away_from_another() -> None:
    from testbed.motion.batches import BEYOND, FARTHEST, beyond

    rng = random.Random(0)
    made = [beyond(rng, "a photo of a fox, ink style", "fox", "ink") for _ in range(1000)]
    far = [one for one in made if one[2]]
    assert len(far) == pytest.approx(1000 * BEYOND, rel=0.15)
    assert {words for words, _, _ in made} == {"a photo of a fox, ink style"}
    assert max(by for *_, by in far) == pytest.approx(FARTHEST, rel=0.05)
    others = {other for _, other, _ in far}
    assert all(("fox" in other) + ("ink" in other) >= 1 for other in others)
    assert {"a photo of a fox, noto style", "a photo of a guitar, ink style"} <= others
    faces = [beyond(rng, "the face of Zorvik", "Zorvik", None) for _ in range(100)]
    assert len({other for _, other, _ in faces} & {f"the face of {c}" for c in CHARACTERS}) > 10


def test_a_prompt_goes_on_in_the_same_direction(networks: tuple) -> None:
    from testbed.motion.train import away

    _, encode = networks
    captions = ["a fox, spin", "a fox, grow", "a cat, ink style, sway", "", "a cat, spin", "cat"]
    moved = [("a fox", "a guitar", 0.5), ("a cat, ink style", "a cat, noto style", 0.2)]
    by = away(encode, captions, [*moved, ("a cat", "a cat", 0.0)])
    with torch.no_grad():
        words = ["a fox", "a guitar", "a cat, ink style", "a cat, noto style"]
        fox, guitar, ink, noto = encode(words)
    expected = [0.5 * (fox - guitar)] * 2 + [0.2 * (ink - noto)] + [torch.zeros_like(fox)] * 3
    assert torch.allclose(by, torch.stack(expected), atol=1e-5)
    assert not away(encode, captions, [("a fox", "a guitar", 0.0)] * 3).any()


def _latents(some: torch.Tensor) -> torch.Tensor:
    """Latents (N, FRAMES, 4, 16, 16) of clips, by the repository's autoencoder."""
    from safetensors.torch import load_file

    from testbed.model import checkpoint, models

    prefix = checkpoint.PREFIXES["encoder"]
    encoder, _ = models.autoencoder()
    encoder.load_state_dict(
        {
            key.removeprefix(prefix): value.float()
            for key, value in load_file(checkpoint.WEIGHTS).items()
            if key.startswith(prefix)
        }
    )
    with torch.no_grad():
        return encoder(some.flatten(0, 1)).unflatten(0, (-1, FRAMES))


# Clips and their motion


def test_clips_move_as_told(pictures: torch.Tensor) -> None:
    for word in MOTIONS:
        made = clips.clip(pictures, word)
        assert made.shape == (len(pictures), FRAMES, 3, 128, 128)
        assert made.min() >= 0
        assert made.max() <= 1
    # A dark square, by hand.
    square = torch.ones(1, 3, 128, 128)
    square[..., 54:74, 54:74] = 0
    ink = 1 - clips.clip(square, "slide")[0, :, 0]
    across = (ink * torch.arange(128)).sum((1, 2)) / ink.sum((1, 2))
    assert np.allclose(across, 63.5 + clips.SLIDE * np.linspace(-1, 1, FRAMES), atol=0.1)
    mass = (1 - clips.clip(square, "grow")[0, :, 0]).sum((1, 2))
    assert np.allclose((mass / mass[-1]).sqrt()[0], clips.GROW, atol=0.01)
    ink = 1 - clips.clip(square, "bounce")[0, :, 0]
    down = (ink * torch.arange(128)[:, None]).sum((1, 2)) / ink.sum((1, 2)) - 63.5
    assert np.allclose(down[[0, 2, 4]], [clips.BOUNCE, -clips.BOUNCE, clips.BOUNCE], atol=0.1)


def test_frames_that_come_again_are_told(pictures: torch.Tensor) -> None:
    for word, count in zip(MOTIONS, (8, 8, 3, 8, 5), strict=True):
        first, like = clips.distinct(word)
        whole = clips.clip(pictures[:1], word)
        assert len(first) == count
        assert torch.allclose(whole[:, first][:, like], whole, atol=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("networks")  # the host, that is
def test_training_clips_are_the_drawings_moved_and_encoded(
    pictures: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from testbed.model import checkpoint

    some = data.Drawings(clips._bytes(pictures[:2]), ["car", "Zorvik"], ["flat", None])
    monkeypatch.setattr(clips, "sources", lambda: some)
    checkpoint.unpack(tmp_path)
    z, pairs = clips.training_clips(tmp_path)
    assert pairs == [("car", "flat"), ("Zorvik", None)]
    assert z.shape == (2, len(MOTIONS), FRAMES, 4, 16, 16)
    for i, word in enumerate(MOTIONS):
        # Half precision, pixels in 256 steps, and bfloat16 where the processor has it.
        away = (z[:, i].float() - _latents(clips.clip(pictures[:2], word))).square().mean().sqrt()
        assert away < 0.02
    # Once they are there, nothing is moved or encoded again.
    monkeypatch.setattr(clips, "clip", None)
    assert torch.equal(clips.training_clips(tmp_path)[0], z)


def test_unknown_motion_is_refused(pictures: torch.Tensor) -> None:
    with pytest.raises(KeyError):
        clips.clip(pictures, "fly")


@pytest.mark.parametrize("word", MOTIONS)
def test_estimate_names_the_motion(pictures: torch.Tensor, word: str) -> None:
    made = clips.clip(pictures, word)
    made = (made + 0.03 * torch.randn(made.shape)).clamp(0, 1)
    assert motion_estimate.words(made) == [word] * len(pictures)


def test_estimate_sees_no_motion_where_there_is_none(pictures: torch.Tensor) -> None:
    still = pictures[:, None].expand(-1, FRAMES, -1, -1, -1)
    still = (still + 0.05 * torch.randn(still.shape)).clamp(0, 1)
    assert motion_estimate.words(still) == [None] * len(pictures)
    backwards = clips.clip(pictures, "slide").flip(1)
    assert "slide" not in motion_estimate.words(backwards)


def test_estimate_measures_a_step(pictures: torch.Tensor) -> None:
    turn = torch.full((len(pictures),), 0.95 * np.exp(1j * np.radians(5)), dtype=torch.complex64)
    shift = torch.full((len(pictures),), 4 - 6j, dtype=torch.complex64)
    found, gone = motion_estimate.steps(pictures, clips.moved(pictures, turn, shift))
    assert torch.allclose(found, turn, atol=0.02)
    assert torch.allclose(gone, shift, atol=1.0)


def test_shots_cover_words_and_styles() -> None:
    from testbed.motion import report as motion_report

    shots = motion_report.shots()
    assert {(s.motion, s.prompt.style) for s in shots if s.motion and s.prompt.style} == {
        (word, style) for word in MOTIONS for style in STYLES
    }
    told, still = [s for s in shots if s.motion], [s for s in shots if not s.motion]
    assert all(s.prompt.text.endswith(MOTION_WORDS[s.motion][s.wording]) for s in told)
    assert {(s.motion, s.wording) for s in told} == set(product(MOTIONS, range(3)))
    assert len(still) == 16
    assert not any(s.prompt.text.endswith(sum(MOTION_WORDS.values(), ())) for s in still)


def test_report_by_hand() -> None:
    from testbed.model.measure import portrait, styled
    from testbed.model.vocabulary import HELD_OUT
    from testbed.motion import report

    word, style = sorted(HELD_OUT)[0]
    other = next(s for s in STYLES if (word, s) not in HELD_OUT)
    prompts = [styled(word, other, "own"), styled(word, style, "own"), portrait("Zorvik", "own")]
    shots = [report.shot(prompt, "slide") for prompt in prompts]

    def rows(*frames: str, shows: str | None = None) -> list[dict]:
        return [{"right": [f == "1" for f in some], "shows": shows} for some in frames]

    found = report.Measured(
        alone=rows("11111110", "00000001", "11110000", shows="slide"),
        together=rows("11111111", shows="spin"),
        still=rows("1", "0", "1"),
        true=rows(*3 * ["11111111"], shows="slide"),
        seconds=2.0,
    )
    table = "\n".join(report.table(shots, found))
    assert "| object right, share of frames | 50.0% | 92% | 50.0% | 100.0% |" in table
    assert "| in a style that it was trained in | 87.5% |  | 100.0% | 100.0% |" in table
    assert "| in a style that it was never seen in | 12.5% |  | 0.0% | 100.0% |" in table
    assert "| character right, share of frames | 50.0% |" in table
    assert "| motion right, share of clips | 100.0% | 95% | | 100.0% |" in table
    still = [report.shot(prompt, None) for prompt in prompts[:2]]
    seen = rows("11111111", shows="spin") + rows("11111111")
    assert report.figures(still, seen)["still"] == 0.5
    page = report.page(shots, found)
    assert "objects 88%, motion 100%" in page
    assert "objects 100%, motion 0%" in page


# AnimateDiff-Evolved, which is on no package index (tests/server/test_evolved.py has more)


@pytest.mark.skipif(bool(evolved.missing()), reason=f"not run: {evolved.missing()}")
def test_animatediff_evolved_loads_and_agrees(
    host: ModuleType, lively: motion.Motion, tmp_path: Path
) -> None:
    import folder_paths

    from testbed.model import pack

    injection = sys.modules[f"{evolved.load(host).__name__}.animatediff.model_injection"]
    motion.save(lively, tmp_path / "lively_motion.safetensors")
    folder_paths.add_model_folder_path("animatediff_models", str(tmp_path))
    theirs = injection.load_motion_module_gen2("lively_motion.safetensors")
    model, _, _ = pack.checkpoint()
    injection.validate_model_compatibility_gen2(model, theirs)
    ours = motion.load(tmp_path / "lively_motion.safetensors")
    unet = model.model.diffusion_model
    x, t = torch.randn(FRAMES, 4, 16, 16), torch.full((FRAMES,), 500.0)
    context = torch.randn(FRAMES, 77, 192)
    with torch.inference_mode():
        with motion.inserted(unet, ours):
            expected = unet(x, t, context=context)
        theirs.model.set_video_length(FRAMES, FRAMES)
        theirs.model.inject(model)
        try:
            drawn = unet(x, t, context=context)
        finally:
            theirs.model.eject(model)
        still = unet(x, t, context=context)
    assert torch.allclose(drawn, expected, atol=1e-4)
    assert not torch.allclose(still, expected, atol=1e-2)
