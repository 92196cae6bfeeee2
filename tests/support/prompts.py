"""API prompts in the ComfyUI of this process: what its queue would refuse, and what it runs."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from types import ModuleType
from typing import Any

from testbed.host.server import TEXT

Prompt = dict[str, dict[str, Any]]


def load(host: ModuleType, *extras: str) -> None:
    """Of the host's further nodes the files with these names."""
    import folder_paths

    for name in extras:
        file = Path(folder_paths.base_path) / "comfy_extras" / f"{name}.py"
        assert asyncio.run(host.load_custom_node(str(file), module_parent="comfy_extras"))


def refused(prompt: Prompt) -> dict[str, list[str]]:
    """By node: what the host says of it before it puts the prompt into the queue."""
    import execution

    *_, errors = asyncio.run(execution.validate_prompt("prompt", prompt, None))
    return {
        name: [f"{one['message']}: {one['details']}" for one in found["errors"]]
        for name, found in errors.items()
    }


def said() -> list[str]:
    """What nodes have shown since this was asked last, oldest first."""
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
    """(what each node shows, the error that stopped it) of a prompt run up to its last nodes."""
    import execution
    from server import PromptServer

    limits = {"lru": 0, "ram": 0.0, "ram_inactive": 0.0}
    executor = execution.PromptExecutor(PromptServer.instance, cache_args=limits)
    executor.execute(prompt, "prompt", {}, list(last))
    messages = dict(executor.status_messages)
    return executor.history_result["outputs"], messages.get("execution_error")
