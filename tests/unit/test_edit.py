"""Edit: the trainable deltas of a model that is itself never written to."""

from __future__ import annotations

import pytest
import torch
from tiny import TinyModel

from unlearn.core.conditioning import Conditioning
from unlearn.core.edit import Diverged, Edit, scale_gradient, spectral_scale, trained_values


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"fc.weight": torch.randn(6, 4, generator=generator), "fc.bias": torch.ones(6)}


def test_new_edit_changes_nothing() -> None:
    for rank in (0, 2):
        edit = Edit(weights(), rank)
        for key, weight in edit.weights.items():
            assert torch.equal(edit.changed(key, weight), weight)


def test_changed_is_the_weight_plus_its_delta() -> None:
    edit = Edit(weights(), rank=0)
    edit.deltas["fc.bias"].full.data.fill_(0.5)
    assert torch.equal(edit.changed("fc.bias", torch.ones(6)), torch.full((6,), 1.5))


def test_changed_keeps_the_weights_dtype() -> None:
    edit = Edit(weights(), rank=0)
    assert edit.changed("fc.weight", torch.ones(6, 4).half()).dtype == torch.float16


def test_off_is_the_original_without_gradients() -> None:
    edit = Edit(weights(), rank=0)
    edit.deltas["fc.bias"].full.data.fill_(0.5)
    with edit.off():
        assert edit.changed("fc.bias", edit.weights["fc.bias"]) is edit.weights["fc.bias"]
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert edit.changed("fc.bias", torch.ones(6)).mean() == 1.5


def test_off_ends_also_after_an_error() -> None:
    edit = Edit(weights(), rank=0)
    edit.deltas["fc.bias"].full.data.fill_(0.5)
    with pytest.raises(ZeroDivisionError), edit.off():
        raise ZeroDivisionError
    assert edit.changed("fc.bias", torch.ones(6)).mean() == 1.5


def test_a_delta_gets_its_weights_gradient_and_the_weight_itself_stays() -> None:
    plain = TinyModel()
    plain.encoder.requires_grad_(True)
    plain.encode(["a cat"]).cross.square().sum().backward()
    model = TinyModel()
    with model.edit("encoder", "mlp") as edit:
        loss = model.encode(["a cat"]).cross.square().sum()
        edit.step(torch.optim.SGD(edit.parameters(), lr=0.1), loss)
    assert len(edit.deltas) == 8
    for key, delta in edit.deltas.items():
        wanted = plain.original(key)
        assert wanted.grad.any(), key
        assert torch.allclose(delta.full.grad, wanted.grad, atol=1e-6), key
        assert torch.allclose(delta.full, -0.1 * wanted.grad, atol=1e-6), key
        assert torch.equal(model.original(key), wanted), key


def test_weights_that_are_not_read_get_no_delta() -> None:
    edit = Edit(weights(), rank=0)
    (edit.changed("fc.weight", edit.weights["fc.weight"]) ** 2).sum().backward()
    assert set(edit.tensors()) == {"fc.weight"}


def test_tensors_are_copies() -> None:
    edit = Edit(weights(), rank=0)
    edit.changed("fc.bias", edit.weights["fc.bias"]).sum().backward()
    kept = edit.tensors()["fc.bias"]["diff"]
    edit.deltas["fc.bias"].full.data.fill_(9.0)
    assert not kept.any()
    assert not kept.requires_grad


def test_low_rank_delta_is_the_product_of_two_thin_matrices() -> None:
    edit = Edit(weights(), rank=2)
    delta = edit.deltas["fc.weight"]
    delta.up.data.normal_(generator=torch.Generator().manual_seed(1))
    assert (delta.up.shape, delta.down.shape) == ((6, 2), (2, 4))
    assert torch.equal(delta.value(), delta.up @ delta.down)
    assert torch.linalg.matrix_rank(delta.value()) == 2


def test_bias_and_small_weights_stay_full_where_a_rank_is_asked() -> None:
    edit = Edit(weights(), rank=4)
    assert all(delta.full is not None for delta in edit.deltas.values())


def test_rank_of_a_convolution_counts_all_its_inputs() -> None:
    delta = Edit({"conv.weight": torch.ones(8, 4, 3, 3)}, rank=3).deltas["conv.weight"]
    assert (delta.up.shape, delta.down.shape) == ((8, 3), (3, 36))
    assert delta.value().shape == (8, 4, 3, 3)


@pytest.mark.parametrize("rank", [0, 2])
def test_of_a_weight_that_is_trained_in_part_only_its_rows_change(rank: int) -> None:
    own = weights()
    rows = {"fc.weight": slice(1, 4), "fc.bias": slice(1, 4)}
    edit = Edit(own, rank, rows=rows)
    optimiser = torch.optim.SGD(edit.parameters(), lr=0.1)
    for _ in range(2):  # the first step of a low-rank delta moves `up` alone
        loss = sum(edit.changed(key, own[key]).square().sum() for key in own)
        edit.step(optimiser, loss)
    for key, weight in own.items():
        change = edit.changed(key, weight) - weight
        assert change[1:4].abs().min() > 0
        assert not change[[0, 4, 5]].any()
        parts = edit.tensors()[key]
        stored = parts["diff"] if "diff" in parts else parts["lora_up"] @ parts["lora_down"]
        assert torch.allclose(stored, change, atol=1e-6)
    count = 3 * 2 + 2 * 4 if rank else 3 * 4
    assert trained_values(own, rank, rows) == count + 3
    assert trained_values(own, rank, rows) == sum(p.numel() for p in edit.parameters())


def test_rows_are_trained_as_a_weight_of_their_own_would_be() -> None:
    own = weights()["fc.weight"]
    part, whole = Edit({"w": own[2:5]}, rank=0), Edit({"w": own}, rank=0, rows={"w": slice(2, 5)})
    for edit in (part, whole):
        (optimiser,) = (edit.adam((0.9, 0.98), 1e-12, relative_rate=0.1),)
        for _ in range(3):
            edit.shrink(0.01)
            changed = edit.changed("w", edit.weights["w"])
            rows = changed if edit is part else changed[2:5]
            edit.step(optimiser, rows.pow(3).sum(), weight_decay=0.1)
    assert torch.allclose(whole.deltas["w"].value()[2:5], part.deltas["w"].value(), atol=1e-7)
    value = torch.arange(24.0).view(6, 4)
    whole.deltas["w"].assign(value)
    assert torch.equal(whole.deltas["w"].value()[2:5], value[2:5])
    assert not whole.deltas["w"].value()[[0, 1, 5]].any()


def test_weights_kept_in_bfloat16_move_as_bfloat16_weights_do() -> None:
    """By hand: beside 1, bfloat16 has 1 + 1/128 next. A step of 1/300 is lost, one of 1/200 is
    rounded up; the original need not be such a number itself."""
    own = {"w": torch.tensor([1.0, 1.0, 1.0 + 1 / 1000])}
    edit = Edit(own, rank=0)
    edit.kept_as = torch.bfloat16
    optimiser = torch.optim.SGD(edit.parameters(), lr=1.0)
    steps = torch.tensor([1 / 300, 1 / 200, 1 / 200])
    edit.step(optimiser, -(edit.changed("w", own["w"]) * steps).sum())
    assert edit.deltas["w"].full.tolist() == [0.0, 1 / 128, 1 / 128]
    # The same by PyTorch: a weight of that type under the same optimiser.
    plain = torch.nn.Parameter(own["w"].bfloat16())
    theirs = torch.optim.SGD([plain], lr=1.0)
    before = plain.detach().clone()
    (-(plain * steps.bfloat16()).sum()).backward()
    theirs.step()
    assert torch.equal(edit.deltas["w"].full, plain.detach().float() - before.float())


def test_low_rank_start_follows_the_seed() -> None:
    first, again, other = (Edit(weights(), 2, seed).deltas["fc.weight"].down for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_step_descends_with_the_decay_of_the_edited_weight() -> None:
    edit = Edit({"w": torch.tensor([2.0])}, rank=0)
    delta = edit.deltas["w"].full
    delta.data.fill_(1.0)
    loss = 0.5 * edit.changed("w", edit.weights["w"]).sum()
    value = edit.step(torch.optim.SGD([delta], lr=1.0), loss, weight_decay=0.1)
    assert value == 1.5
    assert delta.item() == pytest.approx(1.0 - (0.5 + 0.1 * 3.0))


def test_unread_weights_get_no_decay() -> None:
    edit = Edit(weights(), rank=0)
    optimiser = torch.optim.SGD(edit.parameters(), lr=1.0)
    loss = edit.changed("fc.weight", edit.weights["fc.weight"]).sum()
    edit.step(optimiser, loss, weight_decay=0.1)
    assert not edit.deltas["fc.bias"].full.any()


def test_a_gradient_that_overflowed_is_left_out() -> None:
    edit = Edit({"w": torch.ones(3)}, rank=0)
    optimiser = torch.optim.SGD(edit.parameters(), lr=0.1)

    def step(factor: float) -> torch.Tensor:
        changed = edit.changed("w", edit.weights["w"])
        changed.register_hook(lambda gradient: gradient * factor)
        edit.step(optimiser, changed.sum())
        return edit.deltas["w"].full.detach().clone()

    for _ in range(7):
        assert not step(torch.inf).any()
    assert torch.allclose(step(1.0), torch.tensor(-0.1))
    for _ in range(7):
        step(torch.nan)
    assert edit.tensors().keys() == {"w"}, "also where the last gradient overflowed"
    with pytest.raises(Diverged) as error:
        step(torch.nan)
    assert torch.allclose(edit.deltas["w"].full, torch.tensor(-0.1))
    assert torch.allclose(error.value.deltas["w"]["diff"].float(), torch.tensor(-0.1), atol=1e-4)


def test_loss_that_is_not_finite_hands_over_the_last_good_deltas() -> None:
    edit = Edit({"w": torch.ones(3)}, rank=0)
    optimiser = torch.optim.SGD(edit.parameters(), lr=0.1)
    for _ in range(12):
        edit.step(optimiser, edit.changed("w", edit.weights["w"]).sum())
    with pytest.raises(Diverged, match=r"The loss became nan after step \d+; use") as error:
        edit.step(optimiser, edit.changed("w", edit.weights["w"]).sum() * torch.nan)
    # Kept before the second step and before the twelfth, of which eleven are done then.
    assert error.value.history == pytest.approx([3 - 0.3 * i for i in range(11)], abs=1e-5)
    kept = error.value.deltas["w"]["diff"].float()
    assert torch.allclose(kept, torch.full((3,), -1.1), rtol=1e-3)


@pytest.mark.parametrize("rank", [0, 8])
@pytest.mark.parametrize("spread", [0.02, 1.0])
def test_one_rate_moves_wide_and_narrow_layers_alike(spread: float, rank: int) -> None:
    """The first Adam step changes a layer's output by a like share at every width and scale."""

    def moved(width: int) -> float:
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4 * width, width, generator=generator) * spread
        x = torch.randn(width, generator=generator)
        wanted = torch.randn(4 * width, generator=generator)
        edit = Edit({"w": weight}, rank)
        optimiser = torch.optim.Adam(edit.groups(0.01), eps=1e-12)
        (edit.changed("w", weight) @ x @ wanted).backward()
        optimiser.step()
        with torch.no_grad():
            before, after = weight @ x, edit.changed("w", weight) @ x
        return ((after - before).norm() / before.norm()).item()

    narrow, wide = moved(64), moved(768)
    assert 0.5 < wide / narrow < 2
    assert 0.002 < narrow < 0.05


def test_steps_of_many_weights_share_the_rate() -> None:
    one = Edit({"a": torch.ones(4, 4)}, 0).groups(0.1)[0]["lr"]
    four = [group["lr"] for group in Edit({n: torch.ones(4, 4) for n in "abcd"}, 0).groups(0.1)]
    assert four == pytest.approx([one / 2] * 4)


def test_a_low_rank_change_that_is_assigned_has_its_size() -> None:
    delta = Edit({"w": torch.ones(3, 2)}, rank=1).deltas["w"]
    wanted = torch.tensor([[3.0, 4.0], [6.0, 8.0], [0.0, 0.0]])
    delta.assign(wanted)
    assert torch.allclose(delta.value(), wanted, atol=1e-5)


def test_rates_of_the_two_thin_matrices_by_hand() -> None:
    """A weight of ones, 8 x 16, has a scale of 1 / sqrt(8) + 1 / 4; another shares the rate."""
    groups = Edit({"w": torch.ones(8, 16), "other": torch.ones(4)}, rank=2).groups(0.1)
    shared, scale = 0.1 / 2**0.5, 8**-0.5 + 0.25
    assert [group["lr"] for group in groups] == pytest.approx(
        [shared * scale * 16 / 2, 0.1 * shared / 4, shared]
    )
    assert [tuple(group["params"][0].shape) for group in groups] == [(8, 2), (2, 16), (4,)]


def test_gradients_that_were_scaled_up_on_their_way_are_scaled_back() -> None:
    edit = Edit({"w": torch.ones(2)}, rank=0)
    edit.gradient_scale = 1 / 4
    changed = edit.changed("w", edit.weights["w"])
    assert torch.equal(changed, torch.ones(2)), "values are what they were"
    (8 * changed.sum()).backward()
    assert edit.deltas["w"].full.grad.tolist() == [2.0, 2.0]
    half = torch.ones(2, requires_grad=True)
    scale_gradient(half, 4.0).sum().backward()
    assert half.grad.tolist() == [4.0, 4.0]


def test_what_is_restored_is_what_was_kept() -> None:
    """Deltas, losses, and which weights are read and so in the file."""
    edit = Edit(weights(), rank=2)
    optimiser = torch.optim.SGD(edit.parameters(), lr=0.1)
    for _ in range(2):
        edit.step(optimiser, edit.changed("fc.weight", edit.weights["fc.weight"]).sum())
    kept = edit.state()
    again = Edit(weights(), rank=2, seed=5)
    again.restore(kept)
    assert again.history == edit.history != []
    assert set(again.tensors()) == set(edit.tensors()) == {"fc.weight"}
    one, other = (some.deltas["fc.weight"].value() for some in (edit, again))
    assert torch.equal(one, other)
    assert one.abs().max() > 0.01


def test_spectral_scale_by_hand() -> None:
    weight = torch.full((4, 16), 3.0)
    assert spectral_scale(weight) == pytest.approx(3.0 * (1 / 2 + 1 / 4))
    assert spectral_scale(torch.full((9,), 0.5)) == pytest.approx(0.5)
    least = spectral_scale(torch.zeros(9))
    assert least == 1e-3, "a bias that starts at zero is trained as well"
    assert spectral_scale(torch.zeros(4, 16)) == pytest.approx(least * (1 / 2 + 1 / 4))


def test_conditioning_distance_is_mean_squared_and_adds_the_pooled_vector() -> None:
    one = Conditioning(torch.zeros(2, 3, 4), torch.zeros(2, 5))
    other = Conditioning(torch.full((2, 3, 4), 2.0), torch.full((2, 5), 3.0))
    assert one.distance(other).tolist() == [13.0, 13.0]
    assert Conditioning(one.cross).distance(Conditioning(other.cross)).tolist() == [4.0, 4.0]


def test_conditioning_is_indexed_and_repeated_as_a_batch() -> None:
    numbers = torch.arange(2.0)
    both = Conditioning(numbers.view(2, 1, 1), numbers.view(2, 1), {"guidance": 3})
    assert len(both) == 2
    second = both[1:].repeated(3)
    assert second.cross.flatten().tolist() == second.pooled.flatten().tolist() == [1.0] * 3
    assert second.extra == {"guidance": 3}


def test_conditionings_of_unlike_length_are_compared_where_both_have_tokens() -> None:
    short, long = Conditioning(torch.ones(1, 2, 4)), Conditioning(torch.full((1, 5, 4), 3.0))
    assert short.distance(long).tolist() == long.distance(short).tolist() == [4.0]
    both = Conditioning.cat([short, long])
    assert both.distance(Conditioning.cat([long, long])).tolist() == [4.0, 0.0]
    assert both.distance(short).tolist() == [0.0, 4.0]
    further = long.extrapolate_from(short, 0.5).cross
    assert further[0, :, 0].tolist() == [4.0, 4.0, 3.0, 3.0, 3.0]


def test_a_conditioning_moves_along_what_sets_others_apart() -> None:
    one, other = (Conditioning(torch.full((2, 3, 4), x), torch.full((2, 5), x)) for x in (3.0, 1.0))
    way = one.difference(other).mean()
    assert way.cross.shape == (1, 3, 4)
    for tokens in (2, 5):
        moved = Conditioning(torch.zeros(2, tokens, 4), torch.zeros(2, 5)).moved(way, 0.5)
        assert moved.cross[1, :, 0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0][:tokens]
        assert moved.pooled.unique().tolist() == [1.0]


def test_one_of_a_batch_is_what_it_was_before_it_was_joined() -> None:
    parts = [
        Conditioning(torch.rand(1, n, 4), None, {"attention_mask": torch.ones(1, n), "guidance": 3})
        for n in (2, 5, 5)
    ]
    batch = Conditioning.cat([Conditioning.cat(parts[:2]), parts[2]])
    for i, part in enumerate(parts):
        assert torch.equal(batch.single(i).cross, part.cross)
        assert torch.equal(batch.single(i).extra["attention_mask"], part.extra["attention_mask"])
        assert torch.equal(batch[torch.tensor([i])].single(0).cross, part.cross)
    assert Conditioning.cat(parts[1:]).tokens is None


@pytest.mark.parametrize("rank", [0, 2, 3, 64])
def test_trained_values_are_those_of_the_edit(rank: int) -> None:
    """Which the memory and the disk space of a run are planned by."""
    shapes = {"a.weight": (6, 4), "b.weight": (4, 2, 2, 2), "c.bias": (5,), "experts.bias": (7, 9)}
    weights = {key: torch.zeros(shape) for key, shape in shapes.items()}
    trained = sum(one.numel() for one in Edit(weights, rank).parameters())
    assert trained_values(weights, rank) == trained
