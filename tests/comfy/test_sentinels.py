"""On any ComfyUI that COMFYUI_PATH names: what it does that no test here has tried, by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from types import ModuleType

import pytest
import test_other_encoders

import testbed.host.process

# Forms of weights in few bits that were tried: in test_packed_networks.py, the last two in
# test_newer_hosts.py.
FORMS = {
    *("float8_e4m3fn", "float8_e5m2", "nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4"),
    *("awq_w4a16", "asym_w4a8_int8"),
}


def sources(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """(path, syntax tree) of each file below a folder of the host's."""
    root = testbed.host.process.path()
    for file in sorted((root / folder).rglob("*.py")):
        yield str(file.relative_to(root)), ast.parse(file.read_text("utf-8"))


def calls(tree: ast.Module) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def written(tree: ast.Module) -> list[tuple[int, str]]:
    """(line, function) of each call that says where its result goes."""
    return [
        (call.lineno, ast.unparse(call.func))
        for call in calls(tree)
        if any(keyword.arg == "out" for keyword in call.keywords)
    ]


def names(tree: ast.Module) -> set[str]:
    found = (getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree))
    return {name for name in found if name}


def test_functions_that_write_in_text_encoders_are_known(pack: ModuleType) -> None:
    """Autograd refuses them, but for those that nodes/backend/differentiable.py changes."""
    known = {f"torch.{name}" for name in pack.nodes.backend.differentiable.WRITING}
    unknown = [
        f"{path}:{line}: {function}(out=...)"
        for path, tree in sources("comfy/text_encoders")
        for line, function in written(tree)
        if function not in known
    ]
    assert not unknown, (
        f"Add these functions to WRITING in nodes/backend/differentiable.py: {'; '.join(unknown)}."
    )


def test_what_is_compiled_in_networks_can_be_turned_off(host: ModuleType) -> None:
    from comfy.cli_args import args

    graphs = [path for path, tree in sources("comfy/ldm") if "malloc_graph_begin" in names(tree)]
    assert not graphs or hasattr(args, "disable_comfy_compiler"), (
        f"{', '.join(graphs)} plan memory for one forward pass, and this ComfyUI has no option "
        "disable_comfy_compiler: see `uncompiled` in nodes/backend/differentiable.py."
    )


def test_forms_of_weights_are_known(host: ModuleType) -> None:
    try:
        from comfy.quant_ops import QUANT_ALGOS
    except ImportError:
        pytest.skip("this ComfyUI has no weights in few bits")
    unknown = sorted(QUANT_ALGOS.keys() - FORMS)
    assert not unknown, (
        f"This ComfyUI has weights in forms that no test knows: {', '.join(unknown)}. Add them to "
        "FORMS here and to tests/comfy/test_packed_networks.py."
    )


def test_attention_that_files_ask_for_can_be_set_aside(pack: ModuleType) -> None:
    import torch
    from comfy.ldm.modules import attention

    asking = [p for p, tree in sources("comfy/text_encoders") if "ComfyAttention" in names(tree)]
    kind = getattr(attention, "ComfyAttention", None)
    if kind is None:
        assert not asking, f"{', '.join(asking)} take ComfyAttention from an unknown place."
        return
    encoder = torch.nn.Module()
    encoder.own = kind()
    encoder.own.function = own = lambda *_: None
    with pack.nodes.backend.differentiable.own_attention(encoder):
        assert encoder.own.function is not own, (
            "see `own_attention` in nodes/backend/differentiable.py"
        )
    assert encoder.own.function is own


def test_every_text_encoder_is_tested_or_named(pack: ModuleType) -> None:
    test_other_encoders.test_every_text_encoder_of_the_host_is_tested_or_named(pack)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("x = torch.add(a, b, out=x)", [(1, "torch.add")]),
        ("y = 1\ntorch.exp(a, out=a); f(a)", [(2, "torch.exp")]),
        ("def f(out=None): return g(out)", []),
    ],
)
def test_writing_is_found(source: str, found: list) -> None:
    assert written(ast.parse(source)) == found
