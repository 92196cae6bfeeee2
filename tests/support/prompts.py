"""Checks and runs API prompts in the ComfyUI of this process."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

from testbed.host.server import TEXT

Prompt = dict[str, dict[str, Any]]


def load(host: ModuleType, *extras: str) -> None:
    """Load files of these names from the host's extra nodes."""
    import folder_paths

    for name in extras:
        file = Path(folder_paths.base_path) / "comfy_extras" / f"{name}.py"
        assert asyncio.run(host.load_custom_node(str(file), module_parent="comfy_extras"))


def refused(prompt: Prompt) -> dict[str, list[str]]:
    """The host's errors by node, from its check before a prompt is queued."""
    import execution

    *_, errors = asyncio.run(execution.validate_prompt("prompt", prompt, None))
    return {
        name: [f"{one['message']}: {one['details']}" for one in found["errors"]]
        for name, found in errors.items()
    }


def said() -> list[str]:
    """The texts that nodes have shown since the last call, oldest first."""
    from server import PromptServer

    server, found = PromptServer.instance, []
    server.loop.run_until_complete(asyncio.sleep(0))
    while not server.messages.empty():
        event, data, _ = server.messages.get_nowait()
        if event == TEXT:
            (number,) = struct.unpack(">I", data[:4])
            found.append(data[4 + number :].decode())
    return found


def executed(prompt: Prompt, *last: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Run a prompt up to the nodes `last`. Returns (what each node shows, the error or None)."""
    import execution
    from server import PromptServer

    limits = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(PromptServer.instance, cache_args=limits)
    executor.execute(prompt, "prompt", {}, list(last))
    messages = dict(executor.status_messages)
    return executor.history_result["outputs"], messages.get("execution_error")
