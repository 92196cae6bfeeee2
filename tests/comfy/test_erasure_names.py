"""Under which names training nodes keep erasures, and how they find them again."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_erasures import few_shot_that, of_the_encoder

pytestmark = pytest.mark.usefixtures("node_body")

KEY = "0123456789abcdef"


@pytest.fixture
def output(pack: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


def place(pack: ModuleType, prefix: str, *concepts: str, key: str = KEY) -> tuple[str, bool]:
    file, is_own = pack.nodes.cache.erasure_file(prefix, list(concepts), "closed_form", key)
    return str(file.relative_to(pack.nodes.cache.output_file(""))), is_own


def kept(pack: ModuleType, parts: tuple, file: Path, key: str) -> None:
    of_the_encoder(pack, parts[1], key=key).save(file)


def test_a_name_says_what_and_how_and_gets_a_number_when_taken(
    pack: ModuleType, parts: tuple, output: Path
) -> None:
    folder = output / "loras" / "erased"
    assert place(pack, "loras/erased", "fox") == ("loras/erased/fox.closed_form.safetensors", False)
    assert place(pack, "a", "Van Gogh", "fox")[0] == "a/Van_Gogh-fox.closed_form.safetensors"
    kept(pack, parts, folder / "fox.closed_form.safetensors", "other")
    second = "loras/erased/fox.closed_form.2.safetensors"
    assert place(pack, "loras/erased", "fox") == (second, False)
    kept(pack, parts, output / second, KEY)
    assert place(pack, "loras/erased", "fox") == (second, True)
    assert place(pack, "loras/erased", "fox", key="new")[0].endswith(
        "fox.closed_form.3.safetensors"
    )
    # Where the first was deleted its place is free, and the second is still found.
    (folder / "fox.closed_form.safetensors").unlink()
    assert place(pack, "loras/erased", "fox") == (second, True)


def test_a_file_by_its_older_name_is_found(pack: ModuleType, parts: tuple, output: Path) -> None:
    older = f"loras/erased/fox_{KEY[:8]}.safetensors"
    kept(pack, parts, output / older, KEY)
    assert place(pack, "loras/erased", "fox") == (older, True)
    # A copy that a Save node wrote is somebody's own.
    (output / older).rename(output / "loras" / "erased" / "mine.safetensors")
    assert place(pack, "loras/erased", "fox")[0].endswith("/fox.closed_form.safetensors")


def test_a_prefix_may_name_the_file(pack: ModuleType, parts: tuple, output: Path) -> None:
    assert place(pack, "loras/no foxes.safetensors", "fox")[0] == "loras/no foxes.safetensors"
    kept(pack, parts, output / "loras" / "no foxes.safetensors", "other")
    assert place(pack, "loras/no foxes.safetensors", "fox")[0] == "loras/no foxes.2.safetensors"
    state = pack.nodes.cache.state_file("loras/no foxes.safetensors", ["fox"], KEY)
    assert state == output / "loras" / f"fox_{KEY[:8]}.resume"


def run_of(pack: ModuleType, parts: tuple, train: Any, seed: int) -> tuple:
    model, clip, vae = parts
    training = pack.nodes.training.TrainingRun(
        method=few_shot_that(pack, train),
        concepts=["fox"],
        settings=pack.unlearn.methods.few_shot.FewShotSettings(seed=seed),
        model=model,
        clip=clip,
        vae=vae,
        size=64,
        prefix="kept",
        verdict=False,
    )
    return training.run(None)


def test_other_inputs_get_another_file_and_the_same_ones_theirs(
    pack: ModuleType, parts: tuple, output: Path
) -> None:
    record = {"steps": 1, "loss": [1.0], "settings": {"mode": "balanced"}}
    learnt = [of_the_encoder(pack, parts[1], "fox", layer, **record) for layer in (0, 1)]
    files = [run_of(pack, parts, lambda *_, one=one: one, i)[1] for i, one in enumerate(learnt)]
    assert [file.name for file in files] == [
        "fox.few_shot.safetensors",
        "fox.few_shot.2.safetensors",
    ]
    load = pack.unlearn.core.erasure.Erasure.load
    assert [set(load(file).deltas) for file in files] == [set(one.deltas) for one in learnt]
    assert load(files[0]).record["architecture"] == "IconCanvas, text encoder IconCanvasClip"
    for i in (1, 0):
        _, again, said = run_of(pack, parts, lambda *_: pytest.fail("it began"), i)
        assert again == files[i]
        assert said.startswith("Trained before")


def test_a_name_that_another_process_takes_meanwhile_is_left_to_it(
    pack: ModuleType, parts: tuple, output: Path
) -> None:
    mine, theirs = (of_the_encoder(pack, parts[1], one) for one in ("fox", "owl"))
    names = [output / "a.safetensors", output / "a.2.safetensors"]
    theirs.save(names[0])
    found = iter(names)
    file, lost = pack.nodes.cache.save_found(mine, lambda: (next(found), False))
    assert (file, lost) == (names[1], "")
    load = pack.unlearn.core.erasure.Erasure.load
    assert [load(name).concepts for name in names] == [["owl"], ["fox"]]


def test_a_file_is_not_written_over_one_that_came_meanwhile(
    pack: ModuleType, parts: tuple, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With links, and on a file system without."""
    writing, file = pack.unlearn.files.writing, output / "a.safetensors"
    erasure = of_the_encoder(pack, parts[1])
    erasure.save(file)
    load, before = pack.unlearn.core.erasure.Erasure.load, file.read_bytes()
    for _ in range(2):
        with pytest.raises(FileExistsError):
            erasure.save(file, torch.float32, over=False)
        erasure.save(output / "b.safetensors", over=False)
        assert load(output / "b.safetensors").concepts == ["fox"]
        (output / "b.safetensors").unlink()
        monkeypatch.setattr(writing.os, "link", no_links)
    assert file.read_bytes() == before
    assert sorted(path.name for path in output.iterdir()) == ["a.safetensors"]


def no_links(*_: Any) -> None:
    raise PermissionError(1, "Operation not permitted")
