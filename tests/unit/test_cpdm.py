"""CPDM's metric against its formulas in NumPy, Inception's features, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_inception
import torch
import torch.nn.functional as F

from unlearn.evaluate.cpdm.inception import BLOCKS, Inception, load_inception
from unlearn.evaluate.cpdm.metric import (
    AT_ONCE,
    WEIGHTS,
    Distance,
    Metric,
    Pair,
    copyright_metric,
    gram,
    normalised,
    semantic_distance,
    style_distance,
)
from unlearn.evaluate.cpdm.report import COLUMNS, Report
from unlearn.evaluate.cpdm.sheet import cpdm_sheet, fitted

SHAPES = ((3, 5, 4), (6, 3, 3), (8, 2, 1), (10, 1, 1))


def random_blocks(seed: int, count: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *shape, generator=generator) for shape in SHAPES]


# The formulas


def test_semantic_distance_is_that_of_unit_vectors() -> None:
    one, other = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    x, y = (np.asarray(e, float) for e in (one, other))
    x, y = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (x, y))
    found = semantic_distance(one, 5 * other).numpy()
    assert np.allclose(found, ((x - y) ** 2).sum(1), atol=1e-6)
    assert np.allclose(found, 2 - 2 * (x * y).sum(1), atol=1e-6)


def test_style_distance_is_the_papers() -> None:
    one, other = random_blocks(1), random_blocks(2)
    for i in range(3):
        parts = []
        for weight, shape, a, b in zip(WEIGHTS, SHAPES, one, other):
            x, y = (np.asarray(f[i], float).reshape(shape[0], -1) for f in (a, b))
            size = np.prod(shape)
            apart = x @ x.T / size - y @ y.T / size
            parts.append(weight * (apart**2).sum())
        assert style_distance(one, other)[i].item() == pytest.approx(np.mean(parts), rel=1e-4)


@pytest.mark.parametrize(("block", "weight"), [(0, 0.5), (1, 0.1), (2, 6e4), (3, 40.0)])
def test_each_block_has_the_papers_weight(block: int, weight: float) -> None:
    """Of one number a block, 2 beside 0: a Gram matrix of 4, whose square is 16, and the mean of
    four blocks."""
    nothing = [torch.zeros(1, 1, 1, 1)] * 4
    one = [torch.full((1, 1, 1, 1), 2.0 if i == block else 0.0) for i in range(4)]
    assert style_distance(one, nothing).item() == pytest.approx(weight * 16 / 4)


def test_gram_of_one_place_is_the_outer_product() -> None:
    features = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    assert torch.equal(gram(features)[0], torch.tensor([[0.5, 1.0], [1.0, 2.0]]))


def test_the_copyright_metric_by_hand() -> None:
    distances = [Distance(1.0, 1.0), Distance(1.0, 2.0), Distance(1.5, 2.0)]
    assert [one.product for one in distances] == [1.0, 2.0, 3.0]
    assert [one.released for one in distances] == [1.0, 4.0, 9.0]
    assert copyright_metric(distances) == [1.0, 0.75, 0.0]


def test_norm_of_equal_products_is_zero() -> None:
    assert normalised([2.0, 2.0]) == [0.0, 0.0]


# The pairs


def pictures(count: int, height: int = 12, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count + height)
    return torch.rand(count, height, width, 3, generator=generator)


class Looker:
    """Two small networks; notes the sizes of the batches that they are given."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.filters = [torch.randn(n, 3, 3, 3, generator=generator) for n in (4, 5, 6, 7)]
        self.seen: list[int] = []

    def blocks(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.seen.append(len(images))
        return [F.conv2d(images.movedim(-1, 1), one, padding=1) for one in self.filters]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return self.blocks(images)[3].mean((2, 3))


def some_pairs(works: int, each: int) -> list[Pair]:
    """Of two sizes, with an anchor of a third."""
    made = []
    for work in range(works):
        (anchor,) = pictures(1, 9 + work)
        for number, picture in enumerate(pictures(each, 12 + work % 2)):
            made.append(Pair(f"w{work}", f"w{work}_{number}", anchor, picture))
    return made


@pytest.mark.parametrize(("works", "each"), [(1, 1), (3, 9), (20, 1)])
def test_streaming_is_all_at_once(works: int, each: int) -> None:
    looker = Looker()
    made = some_pairs(works, each)
    found = list(Metric(looker.embed, looker.blocks).measure(iter(made)))
    for pair, one in zip(made, found, strict=True):
        x, y = pair.original[None], pair.generated[None]
        assert one.semantic == pytest.approx(
            semantic_distance(looker.embed(x), looker.embed(y)).item(), rel=1e-4
        )
        assert one.style == pytest.approx(
            style_distance(looker.blocks(x), looker.blocks(y)).item(), rel=1e-4
        )


def test_only_a_few_pairs_are_held_and_an_original_is_looked_at_once() -> None:
    looker, taken = Looker(), 0

    def endless() -> Iterator[Pair]:
        nonlocal taken
        original = pictures(1)[0]
        while True:
            taken += 1
            yield Pair("work", f"work_{taken}", original, original)

    metric = Metric(looker.embed, looker.blocks)
    found = metric.measure(endless())
    for count in range(1, 4 * AT_ONCE + 1):
        assert next(found).product == 0
        assert taken - count < AT_ONCE
    assert max(looker.seen) == AT_ONCE + 1
    assert sum(looker.seen) == 2 * (taken + 1)
    assert metric.width == 7


# Inception


@pytest.fixture(scope="module")
def fid_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_inception.write(tmp_path_factory.mktemp("inception") / "pt_inception.pth")


@pytest.fixture(scope="module")
def fid(fid_file: Path) -> Inception:
    return load_inception(fid_file)


def test_four_blocks_in_their_sizes(fid: Inception) -> None:
    found = fid(pictures(2, 64, 48))
    assert [tuple(block.shape) for block in found] == [
        (2, 64, 73, 73),
        (2, 192, 35, 35),
        (2, 768, 17, 17),
        (2, 2048, 1, 1),
    ]
    assert len(BLOCKS) == len(WEIGHTS)
    assert fid.is_fid


def test_a_pictures_mean_does_not_matter(fid: Inception) -> None:
    one = 0.5 * pictures(1, 40, 40)
    for a, b in zip(fid(one), fid(one + 0.3)):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def test_the_first_block_by_hand(fid: Inception) -> None:
    """Without a resize: 299 pixels, brought to -1..1 after the mean is taken off."""
    (picture,) = pictures(1, 299, 299)
    x = (picture - picture.mean()).movedim(-1, 0)[None] * 2 - 1
    net = fid.network
    x = F.max_pool2d(net.Conv2d_2b_3x3(net.Conv2d_2a_3x3(net.Conv2d_1a_3x3(x))), 3, 2)
    assert torch.allclose(fid(picture[None])[0], x, rtol=1e-4, atol=1e-5)


def test_poolings_of_the_fids_network(fid: Inception) -> None:
    """At the edge only the places that are there; in the last block the largest."""
    x = torch.rand(1, 192, 6, 5)
    block = fid.network.Mixed_5b
    pooled = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    conv = block.branch_pool
    wanted = F.relu(conv.bn(conv.conv(pooled)))
    assert torch.allclose(block(x)[:, -32:], wanted, rtol=1e-4, atol=1e-5)
    x = torch.rand(1, 2048, 4, 4)
    block = fid.network.Mixed_7c
    conv = block.branch_pool
    wanted = F.relu(conv.bn(conv.conv(F.max_pool2d(x, 3, 1, 1))))
    assert torch.allclose(block(x)[:, -192:], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.costly
def test_torchvisions_file_and_its_poolings(tmp_path: Path, ending: str) -> None:
    file = small_inception.write(tmp_path / f"inception_v3_google{ending}", is_fid=False)
    found = load_inception(file)
    assert not found.is_fid
    for name, tensor in small_inception.weights(is_fid=False).items():
        if not name.startswith("AuxLogits"):
            assert torch.equal(found.network.state_dict()[name], tensor), name
    x = torch.rand(1, 192, 6, 5)
    conv = found.network.Mixed_5b.branch_pool
    wanted = F.relu(conv.bn(conv.conv(F.avg_pool2d(x, 3, 1, 1))))
    assert torch.allclose(found.network.Mixed_5b(x)[:, -32:], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.costly
def test_both_kinds_of_file_are_the_same_network(fid: Inception, tmp_path: Path) -> None:
    other = load_inception(small_inception.write(tmp_path / "pt_inception.safetensors"))
    assert other.is_fid
    for name, tensor in fid.network.state_dict().items():
        assert torch.equal(tensor, other.network.state_dict()[name]), name


def test_bad_files_get_a_sentence(fid_file: Path, tmp_path: Path) -> None:
    def refused(file: Path) -> str:
        with pytest.raises(ValueError, match=r"\.$") as error:
            load_inception(file)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "There is no file" in refused(tmp_path / "gone.pth")
    assert "pt_inception-2015-12-05" in refused(tmp_path / "gone.pth")
    cut = tmp_path / "cut.pth"
    cut.write_bytes(fid_file.read_bytes()[:5000])
    assert "is cut short or cannot be read safely" in refused(cut)
    cut.rename(tmp_path / "cut.safetensors")
    assert "is cut short or cannot be read safely" in refused(tmp_path / "cut.safetensors")
    torch.save({"x": torch.ones(1)}, tmp_path / "other.pth")
    assert "the weights of another network" in refused(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "the weights of another network" in refused(tmp_path / "list.pth")
    torch.save(Path, tmp_path / "code.pth")  # what would run code is not read
    assert "is cut short or cannot be read safely" in refused(tmp_path / "code.pth")
    part = {k: t for k, t in torch.load(fid_file).items() if "Mixed_7b" not in k}
    torch.save(part, tmp_path / "part.pth")
    assert "is not a whole Inception v3: Mixed_7b" in refused(tmp_path / "part.pth")


# The report

NEAR, FAR = [Distance(1.0, 1.0), Distance(1.0, 2.0)], [Distance(2.0, 1.0), Distance(2.0, 2.0)]


def test_the_set_of_norm_is_before_and_after() -> None:
    report = Report(["a", "b"], NEAR, FAR)
    assert report.metrics() == {
        "before": pytest.approx([1.0, 1 - 1 / 9]),
        "after": pytest.approx([1 - 1 / 9, 0.0]),
    }
    assert report.means()["after"]["M_sem M_style"] == 3.0
    assert report.further() == 2


def test_sentences_say_which_figure_is_which() -> None:
    said = " ".join(Report(["a", "b"], NEAR, FAR).sentences())
    assert "Mean of 2 pairs: before M_sem 1, M_style 1.5, M_sem M_style 1.5" in said
    assert "is 3 after the erasure and 1.5 before (2.00 times as far)" in said
    assert "2 of 2 are further away than before." in said
    assert "The paper's CM = 1 - Norm(M_sem M_style)^2" in said
    assert "before and after together" in said
    assert "(M_sem M_style)^2 is the value of the authors' code" in said
    copied = " ".join(Report(["a"], [Distance(0.0, 0.0)], NEAR[:1]).sentences())
    assert "and 0 before; 1 of 1 are further" in copied
    alone = " ".join(Report(["a"], NEAR[:1]).sentences())
    assert "Mean of one pair: M_sem 1," in alone
    assert "CM has no meaning" in alone
    assert "together" not in alone


def test_what_cannot_be_compared_is_said() -> None:
    assert Report(["a", "b"], NEAR).warnings() == []
    width, file = Report(["a", "b"], NEAR, width=1024, is_fid=False).warnings()
    assert "are 1024 wide, but CLIP ViT-L/14's are 768" in width
    assert "The Inception file is torchvision's" in file


def test_table_and_record_have_every_figure() -> None:
    report = Report(["a", "b"], NEAR, FAR)
    lines = report.table().splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["a", "before"],
        ["a", "after"],
        ["b", "before"],
        ["b", "after"],
        ["mean", "before"],
        ["mean", "after"],
    ]
    record = report.record()
    assert record["pairs"][1]["after"] == dict(zip(COLUMNS, (2.0, 2.0, 4.0, 16.0, 0.0)))
    many = Report([str(i) for i in range(50)], NEAR * 25).table()
    assert "and 10 more" in many


def test_no_pairs_get_a_sentence() -> None:
    with pytest.raises(ValueError, match="There is no pair to measure"):
        Report([], [])


def test_the_picture_has_originals_left_and_generated_right() -> None:
    black, grey = torch.zeros(20, 40, 3), torch.full((40, 40, 3), 0.5)
    pairs = [Pair("a", "a_0", black, grey)]
    page = cpdm_sheet(Report(["a"], NEAR[:1]), pairs)[0]
    half = page.shape[1] // 2
    assert ((page[:, :half] - 0.0).abs().sum(-1) < 0.01).sum() > 128 * 64 * 0.95
    assert ((page[:, half:] - 0.5).abs().sum(-1) < 0.02).sum() > 128 * 128 * 0.95
    both = cpdm_sheet(Report(["a"], NEAR[:1], FAR[:1]), pairs, pairs)[0]
    assert both.shape[0] > page.shape[0] + 128


def test_a_picture_of_another_shape_is_not_stretched() -> None:
    page = fitted(torch.zeros(10, 40, 3), (40, 40))[0]
    assert page.shape == (40, 40, 3)
    assert (page.sum(-1) < 0.01).sum() == 10 * 40
    assert page[:14].min() == 1
