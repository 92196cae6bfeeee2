"""python -m unlearn cpdm: the set's folders, what is drawn into them, and what is measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_inception
import torch
from commands import sentence
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from unlearn.__main__ import main
from unlearn.cli.cpdm.dataset import Caption, check_same, read_captions, read_works
from unlearn.cli.cpdm.measure import load_clip, read
from unlearn.cli.output import Failure
from unlearn.core.erasure import Erasure
from unlearn.diffusers_backend.load import load_pipeline
from unlearn.diffusers_backend.model import DiffusersModel
from unlearn.evaluate.cpdm.inception import load_inception
from unlearn.evaluate.cpdm.metric import semantic_distance, style_distance

pytestmark = pytest.mark.costly

WORKS = {"fox_1": "a photo of a fox, flat style", "ink.sea": "a painting of the sea"}
CPU = torch.device("cpu")


def picture(file: Path, seed: int, size: tuple[int, int] = (40, 30)) -> None:
    file.parent.mkdir(exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(file)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A set of two works, their captions, and nothing generated."""
    lines = ["image,prompt"]
    for i, (name, prompt) in enumerate(WORKS.items()):
        picture(tmp_path / "anchors" / f"{name}.png", i)
        lines.append(f'{name}.png,"{prompt}"')
    (tmp_path / "caption.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    return tmp_path


def generate(folder: Path, name: str = "generated", seed: int = 10) -> list[str]:
    """Two pictures of each work, named as the released code does."""
    names = [f"{work}_{2 * i + k:05}" for i, work in enumerate(WORKS) for k in range(2)]
    for i, one in enumerate(names):
        picture(folder / name / f"{one}.png", seed + i, (64, 64))
    return names


# The set


def test_captions_are_read_as_the_set_has_them(folder: Path) -> None:
    captions = read_captions(folder / "caption.csv")
    assert captions == [Caption(f"{name}.png", prompt) for name, prompt in WORKS.items()]
    assert captions[1].file(9) == "ink.sea_00009.png"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no lines with the columns image and prompt"),
        ("image,prompt", "has no lines with the columns image and prompt"),
        ("image,text\na.png,a", "has no lines with the columns image and prompt"),
        ("image,prompt\na.png,a\nb.png, ", "Line 3 of .* lacks an image or a prompt"),
        ("image,prompt\na.png", "Line 2 of .* lacks an image or a prompt"),
        ("image,prompt\na.png,a\na.jpg,b", "There are 2 anchors named a in .*; rename all but one"),
    ],
)
def test_captions_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "caption.csv").write_text(text, encoding="utf-8")
    with pytest.raises(Failure, match=said):
        read_captions(tmp_path / "caption.csv")


def test_captions_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"There is no .*caption.csv; write it"):
        read_captions(tmp_path / "caption.csv")
    (tmp_path / "caption.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(Failure, match="is not a CSV table in UTF-8"):
        read_captions(tmp_path / "caption.csv")


def test_generated_pictures_find_their_anchor(folder: Path) -> None:
    names = generate(folder)
    (folder / "generated" / "drawn.json").write_text("{}")
    works = read_works(folder / "anchors", folder / "generated")
    assert [work.name for work in works] == list(WORKS)
    assert [file.stem for work in works for file in work.generated] == names


def test_folders_that_cannot_be_used(folder: Path) -> None:
    anchors, generated = folder / "anchors", folder / "generated"
    with pytest.raises(Failure, match="There is no folder"):
        read_works(anchors, generated)
    generated.mkdir()
    with pytest.raises(Failure, match="holds no pictures"):
        read_works(anchors, generated)
    picture(generated / "owl_00001.png", 0)
    with pytest.raises(Failure, match=r"owl_00001.png in .* belongs to no anchor"):
        read_works(anchors, generated)
    (generated / "owl_00001.png").rename(generated / "fox_1.png")
    with pytest.raises(Failure, match="belongs to no anchor"):  # no number behind
        read_works(anchors, generated)
    picture(anchors / "fox_1.jpg", 0)
    with pytest.raises(Failure, match="There are 2 anchors named fox_1"):
        read_works(anchors, generated)


def test_both_sides_must_have_the_same(folder: Path) -> None:
    generate(folder)
    generate(folder, "erased")
    (folder / "erased" / "fox_1_00001.png").unlink()
    works = [read_works(folder / "anchors", folder / side) for side in ("generated", "erased")]
    with pytest.raises(Failure, match="fox_1_00001 was drawn only before or only after"):
        check_same(*works)


# measure


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's image encoder, small and random, as transformers writes it."""
    folder = tmp_path_factory.mktemp("clip")
    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        projection_dim=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_inception.write(tmp_path_factory.mktemp("inception") / "fid.safetensors")


def test_measured_is_the_formula(
    folder: Path, clip: Path, inception: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = generate(folder)
    networks = ["--clip", str(clip), "--inception", str(inception)]
    assert main(["cpdm", "measure", str(folder), *networks, "--json", "--device", "cpu"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["embedding"], record["inception"]) == (16, "fid")
    assert [pair["name"] for pair in record["pairs"]] == names
    embed, blocks = load_clip(clip, CPU), load_inception(inception)
    x = read(folder / "anchors" / "ink.sea.png")[None]
    y = read(folder / "generated" / "ink.sea_00003.png")[None]
    with torch.no_grad():
        semantic, style = (
            semantic_distance(embed(x), embed(y)),
            style_distance(blocks(x), blocks(y)),
        )
    found = record["pairs"][3]["now"]
    assert found["M_sem"] == pytest.approx(semantic.item(), rel=1e-3)
    assert found["M_style"] == pytest.approx(style.item(), rel=1e-3)
    cms = [pair["now"]["CM"] for pair in record["pairs"]]
    assert (min(cms), max(cms)) == (0, 1)


@pytest.mark.slow
def test_an_original_is_at_no_distance_from_itself(
    folder: Path, clip: Path, inception: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After an erasure that did nothing, and of a model that copies."""
    generate(folder)
    copy = (folder / "anchors" / "fox_1.png").read_bytes()
    (folder / "generated" / "fox_1_00000.png").write_bytes(copy)
    (folder / "generated").rename(folder / "same")
    page = folder / "pairs.png"
    more = ["--generated", "same", "--after", "same", "--picture", str(page), "--device", "cpu"]
    networks = ["--clip", str(clip), "--inception", str(inception)]
    assert main(["cpdm", "measure", str(folder), *networks, *more]) == 0
    said = capsys.readouterr().out
    row = next(line for line in said.splitlines() if line.startswith("fox_1_00000 after"))
    assert float(row.split()[-1]) == pytest.approx(1, abs=1e-6)
    assert "(1.00 times as far); 0 of 4 are further" in said
    assert "are 16 wide, but CLIP ViT-L/14's are 768" in said
    assert Image.open(page).width > 500


def test_works_of_which_nothing_was_generated_are_counted(
    folder: Path, clip: Path, inception: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(folder)
    for file in (folder / "generated").glob("ink*"):
        file.unlink()
    networks = ["--clip", str(clip), "--inception", str(inception), "--device", "cpu"]
    assert main(["cpdm", "measure", str(folder), *networks]) == 0
    assert "1 of the 2 works have no generated pictures" in capsys.readouterr().out


def test_networks_that_are_not_there_get_a_sentence(
    folder: Path, clip: Path, inception: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(folder)
    measure = ["cpdm", "measure", folder, "--device", "cpu"]
    said = sentence([*measure, "--clip", folder, "--inception", inception], capsys)
    assert "has no config.json; name a folder of CLIP's image encoder" in said
    said = sentence([*measure, "--clip", clip, "--inception", folder / "a.pth"], capsys)
    assert "There is no file" in said
    networks = ["--clip", clip, "--inception", inception]
    said = sentence([*measure, *networks, "--picture", "a.jpg"], capsys)
    assert "does not end in .png" in said
    said = sentence([*measure, *networks, "--after", "erased"], capsys)
    assert "There is no folder" in said
    wrong = folder / "text"
    wrong.mkdir()
    (wrong / "config.json").write_text('{"model_type": "t5"}')
    said = sentence([*measure, "--clip", wrong, "--inception", inception], capsys)
    assert "is not CLIP's image encoder" in said


# build


@pytest.fixture(scope="module")
def model(iconcanvas_folder: Path) -> Path:
    return iconcanvas_folder


QUICK = ["--steps", "3", "--count", "2", "--size", "64", "--device", "cpu"]


def test_build_draws_what_the_model_draws_and_goes_on(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = ["cpdm", "build", str(model), str(folder), *QUICK]
    assert main(build) == 0
    assert "2 prompts, 2 pictures each, 4 of them new; 3 steps" in capsys.readouterr().out
    generated = folder / "generated"
    works = read_works(folder / "anchors", generated)
    names = [file.name for work in works for file in work.generated]
    assert names == [
        "fox_1_00000.png",
        "fox_1_00001.png",
        "ink.sea_00002.png",
        "ink.sea_00003.png",
    ]
    own = DiffusersModel(load_pipeline(model), size=(64, 64))
    wanted = own.decode_latents(own.sample([WORKS["ink.sea"]] * 2, 23, 3, 9.0))[1]
    assert (read(generated / names[3]) - wanted).abs().max() < 0.01
    before = {name: (generated / name).read_bytes() for name in names}
    (generated / names[3]).unlink()
    assert main(build) == 0
    assert "2 of them new" in capsys.readouterr().out
    assert {name: (generated / name).read_bytes() for name in names} == before
    said = sentence([*build, "--seed", "4"], capsys)
    assert "were drawn with other seed; name another --generated" in said
    captions = folder / "caption.csv"
    captions.write_text(captions.read_text("utf-8").replace("fox", "red fox", 2), encoding="utf-8")
    assert "were drawn with other captions; name another" in sentence(build, capsys)


@pytest.mark.slow
def test_build_after_an_erasure_is_another_model(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = DiffusersModel(load_pipeline(model))
    key = next(key for key in own.weights if key.endswith("attn2.to_v.weight"))
    erasure = Erasure({key: {"diff": -own.weights[key].detach()}}, {"concepts": ["fox"]})
    erasure.save(folder / "fox.safetensors")
    build = ["cpdm", "build", str(model), str(folder), *QUICK]
    erased = [*build, "--erasure", str(folder / "fox.safetensors")]
    assert main(build) == 0
    assert main([*erased, "--generated", "erased"]) == 0
    assert main([*erased, "--strength", "0", "--generated", "same"]) == 0
    one, two, same = (
        (folder / side / "fox_1_00000.png").read_bytes() for side in ("generated", "erased", "same")
    )
    assert one != two
    assert one == same
    assert "were drawn with other weights" in sentence(erased, capsys)


def test_build_leaves_other_pictures_alone(
    folder: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(folder)
    said = sentence(["cpdm", "build", model, folder, *QUICK], capsys)
    assert "holds files that this program did not write" in said
    other = folder / "other.safetensors"
    save_file({"x": torch.ones(1)}, other)
    said = sentence(["cpdm", "build", model, folder, *QUICK, "--erasure", other], capsys)
    assert "is not an erasure of this pack" in said
    said = sentence(["cpdm", "build", "nowhere", folder, *QUICK], capsys)
    assert "There is no file or folder nowhere" in said


def test_no_task_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    said = sentence(["cpdm"], capsys, code=2)
    assert "the following arguments are required: TASK" in said
