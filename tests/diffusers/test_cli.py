"""python -m unlearn: its commands on IconCanvas as a diffusers folder, and what it says when asked
for something it cannot do."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import small_closed_form
import torch
from commands import CPU, sentence
from conftest import ROOT
from diffusers import AutoencoderTiny, DiffusionPipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

import unlearn
from testbed.host.patience import finish
from testbed.model import samples
from unlearn.__main__ import main
from unlearn.cli.output import Failure, check_space, new_folder
from unlearn.cli.program import COMMANDS, parser
from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.apply import applied
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.prompts.vocabulary import VOCABULARY
from unlearn.render.thumbnails import unpacked

pytestmark = pytest.mark.costly

PICTURES = [str(samples.FOLDER / f"mushroom_{i}.png") for i in (1, 2)]
QUICK = ["--images", *PICTURES, "--size", "64", "--steps", "2", "--no-verdict", *CPU]


@pytest.fixture(scope="module")
def folder(iconcanvas_folder: Path) -> Path:
    return iconcanvas_folder


@pytest.fixture(scope="module")
def model(folder: Path) -> DiffusersModel:
    return DiffusersModel(load_pipeline(folder), (64, 64))


@pytest.fixture(scope="module")
def full(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An erasure after two steps."""
    file = tmp_path_factory.mktemp("erasures") / "full.safetensors"
    assert main(["erase", str(folder), "mushroom", *QUICK, "-o", str(file)]) == 0
    return file


@pytest.fixture(scope="module")
def low_rank(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("erasures") / "low_rank.safetensors"
    options = ["--rank", "4", "--precision", "float32", "-o", str(file)]
    assert main(["erase", str(folder), "mushroom", *QUICK, *options]) == 0
    return file


def conditioning(pipeline: StableDiffusionPipeline, prompt: str = "a mushroom") -> torch.Tensor:
    with torch.no_grad():
        return pipeline.encode_prompt(prompt, "cpu", 1, False)[0]


def erased_conditioning(model: DiffusersModel, file: Path, strength: float = 1.0) -> torch.Tensor:
    with applied(model, Erasure.load(file), strength):
        return conditioning(model.pipeline)


def read(folder: Path) -> StableDiffusionPipeline:
    """By diffusers' own loader."""
    return DiffusionPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# The program


def start(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """From the pack's folder, as docs/command-line.md says."""
    return subprocess.run(
        [sys.executable, "-m", "unlearn", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_program_needs_no_comfyui_and_no_diffusers_to_explain_itself() -> None:
    """Importing either would be seen in Python's own list of imports."""
    result = start("--help", PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0
    assert "python -m unlearn erase MODEL CONCEPT" in result.stdout
    imported = {
        line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()
    }
    assert "torch" in imported
    assert not imported & {"comfy", "comfy_api", "folder_paths", "diffusers", "transformers"}


def test_program_ends_with_two_on_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence(["erase", "model"], capsys, code=2) == (
        "the following arguments are required: CONCEPT, -o/--output. See python -m unlearn erase "
        "--help\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert f"python -m unlearn {command} " in said.partition("examples:")[2]


def promised() -> list[str]:
    """Every command line that a help text, the README or a page gives."""
    pages = [ROOT / "README.md", ROOT / "docs" / "command-line.md"]
    texts = [command.EXAMPLES.replace("\\\n", "") for command in COMMANDS.values()]
    texts += [page.read_text(encoding="utf-8") for page in pages]
    shown = [re.findall(r"(?:^ +|`)python -m unlearn ([^`\n]+)", text, re.M) for text in texts]
    assert all(shown), "none is without"
    return [line for lines in shown for line in lines]


@pytest.mark.parametrize("line", promised())
def test_what_is_promised_can_be_understood(line: str) -> None:
    words = shlex.split(line)
    assert parser().parse_args(words).command == words[0]


# erase


def test_erase_writes_an_erasure_that_says_where_it_came_from(full: Path) -> None:
    erasure = Erasure.load(full)
    record = erasure.record
    assert erasure.concepts == ["mushroom"]
    assert (record["method"], record["kind"], record["steps"]) == ("few_shot", "object", 2)
    assert record["settings"]["max_steps"] == 2
    assert record["images"]["count"] == 2
    assert set(record["base"]) == set(erasure.deltas)
    assert record["measured"]["seconds"] > 0
    assert record["measured"]["peak_mb"] > 100  # PyTorch alone takes more
    assert record["measured"]["recomputed"] is False
    assert erasure.norm() > 0
    assert not list(full.parent.glob(".*")), "nothing half written is left behind"


def test_erase_is_the_method_itself(model: DiffusersModel, low_rank: Path) -> None:
    from unlearn.cli.pictures import batch, read_pictures
    from unlearn.methods.few_shot import FewShotSettings, few_shot

    images = batch(read_pictures([Path(name) for name in PICTURES]), model.size)
    settings = FewShotSettings(max_steps=2, rank=4)
    wanted, found = few_shot(model, ["mushroom"], images, settings), Erasure.load(low_rank)
    assert set(found.deltas) == set(wanted.deltas)
    for key in wanted.deltas:
        assert torch.allclose(found.delta(key), wanted.delta(key), rtol=1e-4, atol=1e-7), key


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("key_step", ["--mode", "paper", "--start", "0"]),
        pytest.param(
            "domain_correction",
            ["--mode", "paper", "--shots", "1", "--batch", "1"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_erase_by_the_networks_methods(
    folder: Path, tmp_path: Path, method: str, options: list[str]
) -> None:
    file = tmp_path / "a.safetensors"
    more = ["--method", method, "--kind", "character", "--steps", "2", "--rank", "2"]
    options = [*options, "--no-verdict"]
    assert main(["erase", str(folder), "Zorvik", *more, *options, *CPU, "-o", str(file)]) == 0
    erasure = Erasure.load(file)
    assert erasure.record["method"] == method
    assert erasure.record["kind"] == "character"
    assert all(key.startswith("diffusion_model.") for key in erasure.deltas)
    assert inside(tmp_path) == ["a.safetensors"], "the state for resuming is gone"


def test_erase_in_closed_form(
    folder: Path,
    model: DiffusersModel,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from unlearn.methods.registry import METHODS

    monkeypatch.setitem(METHODS, "closed_form", small_closed_form.few(unlearn))
    file = tmp_path / "closed.safetensors"
    arguments = ["erase", str(folder), "fox", "--method", "closed_form", "--anchor", "koala"]
    assert main([*arguments, "--no-verdict", *CPU, "-o", str(file)]) == 0
    assert "4 layers" in capsys.readouterr().out
    erasure = Erasure.load(file)
    assert erasure.record["settings"]["anchor"] == "koala"
    koala = conditioning(model.pipeline, "a photo of a koala")
    before = conditioning(model.pipeline, "a photo of a fox")
    with applied(model, erasure):
        now = conditioning(model.pipeline, "a photo of a fox")
    assert (now - koala).norm() < 0.4 * (before - koala).norm()
    said = sentence([*arguments, "--steps", "3", *CPU, "-o", str(file)], capsys)
    assert "closed_form has no setting --steps" in said
    words = tmp_path / "words.txt"
    words.write_text("fox -> koala\n\nowl -> penguin\n", encoding="utf-8")
    arguments = ["erase", str(folder), f"@{words}", "--method", "closed_form", "--no-verdict"]
    assert main([*arguments, *CPU, "--force", "-o", str(file)]) == 0
    record = Erasure.load(file).record
    assert record["concepts"] == ["fox", "owl"]
    assert record["settings"]["anchor"] == {"fox": "koala", "owl": "penguin"}


def test_what_the_verdict_drew_is_kept_in_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But of nudity nothing is, since the file may be sent on."""
    from unlearn.evaluate import verdict
    from unlearn.evaluate.thumbnails import may_be_shown
    from unlearn.methods.key_step import KeyStepSettings
    from unlearn.methods.registry import METHODS

    def measured(original, edited, concepts, *given, keep) -> dict:
        with original() as model:
            noise = [model.noise(3, torch.Generator().manual_seed(seed)) for seed in (0, 1)]
            keep(model, concepts[0], *noise)
        return {}

    monkeypatch.setattr(verdict, "measured", measured)
    monkeypatch.setitem(METHODS, "closed_form", small_closed_form.few(unlearn))
    file = tmp_path / "closed.safetensors"
    arguments = ["erase", str(folder), "fox", "--method", "closed_form", "--anchor", "koala"]
    assert main([*arguments, *CPU, "-o", str(file)]) == 0
    erasure = Erasure.load(file)
    before, after = (unpacked(erasure.pictures["fox"][name]) for name in ("before", "after"))
    assert before.shape == after.shape == (2, *before.shape[1:])
    assert not torch.equal(before, after)
    assert erasure.record["architecture"] == "StableDiffusionPipeline"
    assert [may_be_shown(KeyStepSettings(kind=kind)) for kind in ("object", "nudity")] == [1, 0]


def test_a_list_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(["erase", "model", "@nowhere.txt", "-o", "a.safetensors"], capsys, 2)
    assert "nowhere.txt cannot be read as a list of words" in said


def test_erase_lets_the_model_draw_where_there_are_no_pictures(
    folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    options = ["--shots", "1", "--steps", "1", "--size", "64", "--no-verdict", *CPU]
    options += ["-o", str(file)]
    assert main(["erase", str(folder), "cat", *options]) == 0
    assert Erasure.load(file).record["images"] == {
        "count": 1,
        "drawn_by_model": True,
        "hash": None,
    }


def test_erase_shows_its_progress_and_interrupted_writes_nothing(
    folder: Path, tmp_path: Path
) -> None:
    """On a terminal, for which a pseudo-terminal stands; stopped as Ctrl-C stops it."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # lines, columns
    # What a shell starts in the background is deaf to Ctrl-C, and so would be what it starts.
    hearing = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"import runpy, signal; {hearing}; runpy.run_module('unlearn', run_name='__main__')"
    command = [sys.executable, "-c", program, "erase", str(folder), "mushroom", "--images"]
    options = [*PICTURES, "--size", "64", "--batch", "1", "--no-verdict", *CPU]
    options += ["-o", str(tmp_path / "a.safetensors")]
    process = subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=slave
    )
    os.close(slave)
    said, asked = "", False
    try:
        while part := os.read(master, 1000).decode():
            said += part
            if "loss=" in said and not asked:
                process.send_signal(signal.SIGINT)
                asked = True
    except OSError:  # how Linux says that the other end of a terminal was closed
        pass
    finally:
        os.close(master)
    finish(process)
    assert process.returncode == 130, said
    assert "unlearning mushroom" in said
    assert "/120" in said
    assert said.strip().endswith("Interrupted; nothing was written.")
    assert inside(tmp_path) == []


# Models


def test_a_checkpoint_file_is_the_same_model(folder: Path, full: Path, tmp_path: Path) -> None:
    """IconCanvas's own file, with the folder for its configuration."""
    checkpoint = ROOT / "testbed" / "weights" / "iconcanvas.safetensors"
    options = ["--base", str(checkpoint), "--config", str(folder)]
    assert main(["show", str(full), *options]) == 0
    single = DiffusersModel(load_pipeline(checkpoint, folder))
    assert isinstance(single.vae, AutoencoderTiny)
    assert single.fingerprints(single.weights) == DiffusersModel(
        load_pipeline(folder)
    ).fingerprints(single.weights)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "There is no file or folder"),
        (lambda path: path.mkdir(), "no readable model_index.json"),
        (
            lambda path: (
                path.mkdir(),
                (path / "model_index.json").write_text('{"_class_name": 1}'),
            ),
            "no readable model_index.json",
        ),
        (
            lambda path: (
                path.mkdir(),
                (path / "model_index.json").write_text(
                    json.dumps({"_class_name": "FluxPipeline", "transformer": []})
                ),
            ),
            "is a FluxPipeline, which is not supported; supported are Stable Diffusion",
        ),
        (lambda path: path.write_bytes(b"nothing"), "cannot be read safely as a checkpoint"),
    ],
    ids=["missing", "empty folder", "broken index", "another kind", "another file"],
)
def test_what_is_no_model_gets_a_sentence(
    make, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model"
    make(path)
    output = tmp_path / "a.safetensors"
    assert said in sentence(["erase", path, "cat", "-o", output], capsys)
    assert not output.exists()


def test_checkpoint_files_that_are_none_get_a_sentence(
    folder: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((ROOT / "testbed" / "weights" / "iconcanvas.safetensors").read_bytes()[:9999])
    more = ["cat", "-o", tmp_path / "a.safetensors"]
    assert "cut short or not a safetensors file" in sentence(["erase", cut, *more], capsys)
    assert "it has no denoiser weights" in sentence(["erase", full, *more], capsys)
    refiner = tmp_path / "refiner.safetensors"
    names = ("model.diffusion_model.x", "conditioner.embedders.0.model.x")
    save_file({name: torch.zeros(1) for name in names}, refiner)
    assert "XL's refiner" in sentence(["erase", refiner, *more], capsys)
    config = ["--config", tmp_path / "nowhere"]
    assert "it has no model_index.json" in sentence(["erase", full, *more, *config], capsys)


def test_checkpoint_file_without_its_configuration_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tests run offline, so nothing can be fetched."""
    checkpoint = ROOT / "testbed" / "weights" / "iconcanvas.safetensors"
    said = sentence(["erase", checkpoint, "cat", "-o", tmp_path / "a.safetensors"], capsys)
    assert "cannot be downloaded; name a diffusers folder of the same kind" in said


def test_a_folder_with_a_part_missing_gets_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    said = sentence(["erase", broken, "cat", "-o", tmp_path / "a.safetensors"], capsys)
    assert "unet is incomplete: it holds no weights (.safetensors or .bin)" in said


# Bad input and bad usage


def test_erase_tells_the_anchor_that_it_chose(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among a few words: how one is chosen is tests/unit/test_anchor_choice.py's."""
    monkeypatch.setitem(VOCABULARY, "object", VOCABULARY["object"][:32])
    file = tmp_path / "erasure.safetensors"
    options = [*QUICK, "--anchor", "closest", "-o", str(file)]
    assert main(["erase", str(folder), "mushroom", *options]) == 0
    anchor = Erasure.load(file).record["anchors"]["mushroom"]
    assert f"\nThe anchor was chosen: {anchor}. " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "nowhere"], "There is no picture or folder nowhere"),
        (["--images", "{tmp}"], "holds no pictures"),
        (["--images", __file__], "cannot be read as a picture"),
        (["--images", *PICTURES, PICTURES[0]], "3 images cannot be shared evenly among 2 concepts"),
        (["--method", "key_step", "--images", *PICTURES], "key_step takes no pictures"),
        (["--method", "key_step", "--shots", "2"], "key_step has no setting --shots"),
        (["--method", "key_step", "--anchor", "cat"], "The anchor 'cat' is the concept itself"),
        (["--method", "key_step", "--start", "99"], "The first key step is 99"),
        (["--epochs", "2"], "--epochs is a setting of mode paper"),
        (["--mode", "paper", "--steps", "2"], "--steps is a setting of mode balanced"),
        (["--mode", "paper", "--harden"], "--harden is a setting of mode balanced"),
        (
            ["--method", "key_step", "--mode", "paper", "--protect", "owl"],
            "--protect is a setting of mode balanced",
        ),
        (["--trainable", "cross-attention"], "few_shot takes one of mlp-final-attn, mlp"),
    ],
)
def test_bad_input_gets_a_sentence_before_any_work(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model does not even exist."""
    filled = [option.replace("{tmp}", str(tmp_path)) for option in options]
    output = tmp_path / "a.safetensors"
    arguments = ["erase", "no_model", "cat, dog", *filled, "-o", output]
    assert said in sentence(arguments, capsys)
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["model", " ,", "-o", "a.safetensors"], "No concept is named: type the word"),
        (["model", "cat"], "the following arguments are required: -o/--output"),
        (["model", "cat", "-o", "a", "--rank", "x"], "it must be a whole number, at least 0"),
        (
            ["model", "cat", "-o", "a", "--size", "100"],
            "at least 64 and a multiple of 8, not '100'",
        ),
        (["model", "cat", "-o", "a", "--start", "soon"], "it must be a whole number, at least 0"),
        (["model", "cat", "-o", "a", "--kind", "noise"], "invalid choice: 'noise'"),
    ],
)
def test_bad_usage_gets_a_sentence_and_two(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in sentence(["erase", *options], capsys, code=2)


def test_a_loss_that_is_never_finite_keeps_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    (file,) = (broken / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias"] = torch.full_like(weights["conv_out.bias"], torch.nan)
    save_file(weights, file, {"format": "pt"})
    output = tmp_path / "a.safetensors"
    said = sentence(["erase", broken, "mushroom", *QUICK, "-o", output], capsys)
    assert "Nothing was learnt, so nothing is kept" in said
    assert not list(tmp_path.glob("*.safetensors"))


def test_output_that_is_there_stays(
    folder: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.safetensors"
    save_file({"x": torch.ones(1)}, mine)
    before = mine.read_bytes()
    erase = ["erase", "no_model", "cat", "-o"]
    assert "already exists; name another --output, or add --force" in sentence(
        [*erase, full], capsys
    )
    assert "was not written by this program, so --force does not" in sentence(
        [*erase, mine, "--force"], capsys
    )
    for name in ("a", ".safetensors"):
        assert "must end in .safetensors, with a name before it" in sentence(
            [*erase, tmp_path / name], capsys
        )
    apply = ["apply", folder, full, "--force", "-o"]
    assert "was not written by this program" in sentence([*apply, folder], capsys)
    assert "was not written by this program" in sentence([*apply, tmp_path], capsys)
    assert mine.read_bytes() == before
    assert (folder / "model_index.json").is_file()


def test_an_output_that_cannot_be_written_is_told_before_any_work(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = full / "a.safetensors"  # of a file, as if it were a folder
    assert "cannot be written (Not a directory" in sentence(
        ["erase", "no_model", "cat", "-o", inside], capsys
    )
    chart = ["identify", "no_model", *PICTURES, "--chart", full / "a.png"]
    assert "cannot be written (Not a directory" in sentence(chart, capsys)
    for form, found in (("peft", full), ("lora", tmp_path)):
        export = ["export", "no_model", full, "--as", form, "--force", "-o"]
        target = found if form == "peft" else tmp_path / "a.safetensors"
        if form == "lora":
            target.mkdir()
        assert "; name another --output." in sentence([*export, target], capsys)


def test_a_damaged_picture_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = bytearray(Path(PICTURES[0]).read_bytes())
    at = whole.index(b"IDAT")
    whole[at : at + 4] = b"I\0\0T"
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(whole)
    said = sentence(["identify", "no_model", damaged, "--words", "cat, dog"], capsys)
    assert "damaged.png cannot be read as a picture" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["apply", "m", "a", "-o", "b", "--strength", "nan"], "it must be a number, not 'nan'"),
        (["probe", "m", "a", "--guidance", "inf"], "it must be a number, not 'inf'"),
        (["erase", "m", "cat", "-o", "b", "--harden", "inf"], "it must be a number of seconds"),
        (["erase", "m", "cat", "-o", "b", "--seed", str(2**64)], "it must be at most 9223372036"),
    ],
)
def test_numbers_that_are_none_are_refused(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err


def test_a_clip_skip_beyond_the_layers_gets_a_sentence(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["erase", folder, "mushroom", "--clip-skip", "4", "-o", tmp_path / "a.safetensors"]
    assert "but this text encoder has 4 layers; use at most 3." in sentence(arguments, capsys)


def test_force_replaces_what_an_earlier_run_wrote(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    erase = ["erase", str(folder), "mushroom", *QUICK, "-o", str(file)]
    assert main([*erase, "--steps", "1"]) == 0
    assert main([*erase, "--force"]) == 0
    assert Erasure.load(file).record["steps"] == 2


def test_too_little_disk_gets_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"needs 1152921504\.61 GB, but only \d+\.\d+ GB are free"):
        check_space(tmp_path / "new" / "a.safetensors", 2**60)
    check_space(tmp_path / "new" / "a.safetensors", 1)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with new_folder(target, {"a": 1}) as new:
        (new / "x").write_text("old")

    def broken() -> None:
        with new_folder(target, {"a": 2}) as new:
            (new / "x").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        broken()
    assert (target / "x").read_text() == "old"
    assert inside(tmp_path) == ["out"]
    with new_folder(target, {"a": 3}) as new:
        (new / "x").write_text("new")
    assert (target / "x").read_text() == "new"
    assert json.loads((target / "concept_unlearn.json").read_text()) == {"a": 3}
    assert inside(tmp_path) == ["out"]


# show


def test_show_tells_what_it_is_and_where_it_came_from(
    full: Path, low_rank: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(full)]) == 0
    said = capsys.readouterr().out
    for text in (
        "mushroom (object)",
        "few_shot, 20",
        "24 weights of the text encoder, full, norm",
        "full.safetensors, ",
        "at first",
        '"count": 2',
        "balanced",
        "seconds",
    ):
        assert text in said, text
    assert main(["show", str(low_rank)]) == 0
    assert "24 weights of the text encoder, rank 4, norm" in capsys.readouterr().out
    assert main(["show", str(full), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == Erasure.load(full).record


def test_show_knows_the_base(
    folder: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(full), "--base", str(folder)]) == 0
    assert "is its base: all 24 recorded fingerprints match" in capsys.readouterr().out
    other = tmp_path / "other"
    assert main(["apply", str(folder), str(full), "-o", str(other)]) == 0
    assert main(["show", str(full), "--base", str(other)]) == 1
    assert "24 of 24 weights differ" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "apply", "export"])
def test_a_file_that_is_no_erasure_gets_a_sentence(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"x": torch.ones(1)}, other)

    def arguments(file: Path) -> list:
        if command == "show":
            return ["show", file]
        return [command, "no_model", file, "-o", tmp_path / "out"]

    assert "is not an erasure of this pack" in sentence(arguments(other), capsys)
    other.write_bytes(b"nothing")
    assert "is cut short or not a safetensors file" in sentence(arguments(other), capsys)
    assert "There is no file gone.safetensors" in sentence(
        arguments(tmp_path / "gone.safetensors"), capsys
    )
    assert not (tmp_path / "out").exists()


# apply and export


def test_apply_writes_a_model_with_the_erasure_in_it(
    folder: Path, model: DiffusersModel, full: Path, low_rank: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    arguments = ["apply", str(folder), str(full), str(low_rank), "-o", str(target)]
    assert main([*arguments, "--strength", "1", "-0.5"]) == 0
    first = Erasure.load(full)
    with applied(model, first), applied(model, Erasure.load(low_rank), -0.5):
        wanted = conditioning(model.pipeline)
    assert torch.allclose(conditioning(read(target)), wanted, atol=1e-5)
    assert not torch.allclose(wanted, conditioning(model.pipeline), atol=1e-3)
    receipt = json.loads((target / "concept_unlearn.json").read_text())
    assert receipt["strengths"] == [1, -0.5]
    assert [part["concepts"] for part in receipt["parts"]] == [["mushroom"]] * 2


@pytest.mark.slow
def test_apply_undone_is_the_original(folder: Path, full: Path, tmp_path: Path) -> None:
    for source, strength, target in ((folder, "1", "there"), (tmp_path / "there", "-1", "back")):
        arguments = ["apply", str(source), str(full), "--strength", strength]
        assert main([*arguments, "-o", str(tmp_path / target)]) == 0
    original, back = conditioning(read(folder)), conditioning(read(tmp_path / "back"))
    assert torch.allclose(back, original, atol=1e-5)


def test_a_checkpoint_file_is_applied_and_exported_as_a_folder_is(
    folder: Path, model: DiffusersModel, full: Path, tmp_path: Path
) -> None:
    checkpoint = ROOT / "testbed" / "weights" / "iconcanvas.safetensors"
    wanted = erased_conditioning(model, full)
    for command in ("apply", "export"):
        target = tmp_path / command
        arguments = [command, str(checkpoint), str(full), "-o", str(target)]
        assert main([*arguments, "--config", str(folder)]) == 0
        own = read(target if command == "apply" else folder)
        own.text_encoder = CLIPTextModel.from_pretrained(target, subfolder="text_encoder")
        own.text_encoder.float()
        assert torch.allclose(conditioning(own), wanted, atol=1e-5)


@pytest.mark.parametrize("precision", ["float16", pytest.param("float32", marks=pytest.mark.slow)])
def test_exported_text_encoder_loads_everywhere(
    folder: Path, model: DiffusersModel, full: Path, precision: str, tmp_path: Path
) -> None:
    arguments = ["export", str(folder), str(full), "-o", str(tmp_path / "out")]
    assert main([*arguments, "--precision", precision]) == 0
    written = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in written)
    assert {tensor.dtype for tensor in written.values()} == {getattr(torch, precision)}
    encoder = CLIPTextModel.from_pretrained(
        tmp_path / "out", subfolder="text_encoder", dtype=torch.float32
    )
    own = read(folder)
    own.text_encoder = encoder
    wanted = erased_conditioning(model, full)
    near = 1e-6 if precision == "float32" else 1e-2
    assert (conditioning(own) - wanted).norm() < near * wanted.norm()


def test_exported_lora_loads_through_diffusers(
    folder: Path, model: DiffusersModel, low_rank: Path, tmp_path: Path
) -> None:
    file = tmp_path / "lora.safetensors"
    arguments = ["export", str(folder), str(low_rank), "--as", "lora", "-o", str(file)]
    assert main([*arguments, "--strength", "0.5"]) == 0
    own = read(folder)
    own.load_lora_weights(tmp_path, weight_name=file.name)
    wanted = erased_conditioning(model, low_rank, 0.5)
    assert torch.allclose(conditioning(own), wanted, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")
def test_exported_adapter_loads_through_peft(
    folder: Path, model: DiffusersModel, full: Path, tmp_path: Path
) -> None:
    """Of a full erasure, at the rank that keeps nearly all of it."""
    from peft import PeftModel

    arguments = ["export", str(folder), str(full), "--as", "peft", "-o", str(tmp_path / "out")]
    assert main(arguments) == 0
    own = read(folder)
    adapted = PeftModel.from_pretrained(own.text_encoder, str(tmp_path / "out" / "text_encoder"))
    own.text_encoder = adapted.merge_and_unload()
    original, wanted = conditioning(model.pipeline), erased_conditioning(model, full)
    assert (conditioning(own) - wanted).norm() < 0.02 * (wanted - original).norm()


def test_an_erasure_of_the_network_is_no_text_encoder(
    folder: Path, model: DiffusersModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = next(key for key in model.weights if "attn2.to_k" in key)
    file = tmp_path / "a.safetensors"
    Erasure({key: {"diff": torch.zeros_like(model.weights[key])}}, {"concepts": ["cat"]}).save(file)
    said = sentence(["export", folder, file, "-o", tmp_path / "out"], capsys)
    assert "1 of 1 changed weights are the denoiser's" in said


def test_strengths_must_fit_the_erasures(
    folder: Path, full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strengths = ["--strength", "1", "2"]
    said = sentence(["apply", folder, full, *strengths, "-o", tmp_path / "out"], capsys)
    assert "There are 1 erasures but 2 strengths; give one strength for all" in said
