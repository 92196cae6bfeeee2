"""The classifiers that keep motion words readable in the UNet's features."""

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from testbed.model.vocabulary import MOTIONS


@pytest.fixture
def unet(host: ModuleType) -> torch.nn.Module:
    from testbed.model import models

    torch.manual_seed(0)
    return models.unet()


def test_a_classifier_stands_where_each_motion_module_will(unet: torch.nn.Module) -> None:
    from testbed.model.traces import MotionTraces, last_layer
    from testbed.motion import motion

    traces, modules = MotionTraces(unet), motion.Motion()
    widths = [head.in_features for head in traces.heads]
    found = [m for m in modules.modules() if isinstance(m, motion.TemporalTransformer)]
    assert widths == [module.proj_in.in_features for module in found]
    before = [last_layer(block) for block in (*unet.input_blocks, *unet.output_blocks)]
    with motion.inserted(unet, modules):
        for block, layer in zip((*unet.input_blocks, *unet.output_blocks), before, strict=True):
            if layer is not None:
                after = block[[*block].index(layer) + 1]
                assert isinstance(after, motion.MotionModule)


def test_what_is_asked_is_judged_and_reaches_the_unet(unet: torch.nn.Module) -> None:
    from testbed.model import models
    from testbed.model.traces import SHARP, MotionTraces

    traces = MotionTraces(unet)
    rows = 3
    x = torch.randn(rows, 4, 16, 16)
    context = torch.randn(rows, 5, models.CONTEXT_DIM)
    traces.start()
    traces.start()  # what an earlier pass left is forgotten
    unet(x, torch.full((rows,), 900), context=context)
    asked = torch.tensor([True, False, True])
    loss = traces.loss(["spin", "sway", None], asked)
    expected = [
        F.cross_entropy(
            SHARP
            * head((mean - mean.mean(1, True)) / (mean.var(1, False, keepdim=True) + 1e-5).sqrt()),
            torch.tensor([MOTIONS.index("spin"), 0, len(MOTIONS)]),
            reduction="none",
        )
        for head, mean in zip(traces.heads, traces.here.means, strict=True)
    ]
    assert loss.item() == pytest.approx(torch.stack(expected)[:, asked].mean().item(), rel=1e-4)
    loss.backward()
    deep = [p.grad for n, p in unet.named_parameters() if "middle_block" in n]
    assert any(g is not None and g.abs().sum() > 0 for g in deep)


def test_nothing_asked_costs_nothing(unet: torch.nn.Module) -> None:
    from testbed.model import models
    from testbed.model.traces import MotionTraces

    traces = MotionTraces(unet)
    traces.start()
    with torch.no_grad():
        unet(
            torch.randn(1, 4, 16, 16),
            torch.tensor([900]),
            context=torch.zeros(1, 2, models.CONTEXT_DIM),
        )
    assert traces.loss(["spin"], torch.tensor([False])).item() == 0
