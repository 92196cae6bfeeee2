"""A client for a real ComfyUI server, as the demo, the tests and the benchmark use it.

    with Server(folder) as server:
        history = server.run(api_prompt(workflow, server.object_info()))
        picture = server.images(history)[0]

The server is started from the ComfyUI that `dev.py setup` prepared, on a free loopback port, with
its own folders and no custom node but this pack and IconCanvas. It ends with the process that
started it, also when that is killed (see tether.py). `api_prompt` turns a workflow as the browser
saves it into the prompt that the server's queue takes, as the browser itself does.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import websocket
from PIL import Image

from dev import child_environment, host_command

from .patience import Patience, answer
from .process import path

POLL_SECONDS = 5
TETHER = Path(__file__).with_name("tether.py")

# The numbers of ComfyUI's protocol.BinaryEventTypes.
PREVIEW_IMAGE = 1
TEXT = 3

# The numbers of a node's "mode" in a saved workflow.
MUTED = 2
BYPASSED = 4

NOT_EXECUTED = {"Note", "MarkdownNote", "Reroute", "PrimitiveNode"}
# The last is a choice with settings of its own; saved workflows choose what has none.
WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"}
UPLOADS = ("image_upload", "animated_image_upload", "video_upload")


class ServerError(RuntimeError):
    """The server did not start, or died; the message ends with the last lines of its log."""


class PromptError(RuntimeError):
    """A prompt was refused or a node raised.

    str() is the node's own message; node_id, node_type and exception_type say where it came from
    (empty when the prompt was refused as a whole).
    """

    def __init__(
        self, message: str, node_id: str = "", node_type: str = "", exception_type: str = ""
    ) -> None:
        super().__init__(message)
        self.node_id = node_id
        self.node_type = node_type
        self.exception_type = exception_type


class Interrupted(RuntimeError):
    """The prompt was cancelled while it ran."""


@dataclass(frozen=True)
class Progress:
    """What a running node reports: one of a step, a preview picture or a status text."""

    node: str
    """Id of the node in the prompt."""
    node_type: str
    value: float = 0
    total: float = 0
    """0 as the node starts, before it has reported a step."""
    preview: Image.Image | None = None
    text: str | None = None


class Server:
    """A ComfyUI server that lives as long as the `with` block.

    folder receives all that it writes: output, input, temp and user folders, and server.log.
    input_folder replaces folder/input as the place that Load Image reads from; args are
    further options of the host's main.py, environment further variables. The CPU is used where CUDA
    is not available.
    """

    def __init__(
        self,
        folder: Path,
        *,
        input_folder: Path | None = None,
        args: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder = Path(folder).resolve()
        self.host = path()
        self.output = folder / "output"
        self.input = Path(input_folder).resolve() if input_folder else folder / "input"
        self.log = folder / "server.log"
        self._folder = folder
        self._args = args
        self._environment = dict(environment or {})
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def __enter__(self) -> Server:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        user, temp = self._folder / "user", self._folder / "temp"
        for needed in (self.output, self.input, user, temp):
            needed.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(TETHER), *host_command(self.host, port)]
        command += ["--output-directory", str(self.output), "--input-directory", str(self.input)]
        command += ["--temp-directory", str(temp), "--user-directory", str(user)]
        if not torch.cuda.is_available():
            command.append("--cpu")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command + list(self._args),
                cwd=self.host,
                env={**child_environment(), **self._environment},
                stdin=subprocess.PIPE,  # which the tether watches
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server; harmless when it has ended already."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdin.close()
        self._process = None

    def kill(self) -> None:
        """End the server at once, as a crash would: it has no time to write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def object_info(self) -> dict[str, Any]:
        """The schema of every node the server knows, by node id."""
        return self._json("/object_info")

    def queue(
        self,
        prompt: dict[str, Any],
        workflow: dict[str, Any] | None = None,
        *,
        client_id: str | None = None,
    ) -> str:
        """Put an API prompt in the queue and return its id; PromptError when it is refused.

        workflow is the UI workflow that the host writes into the files it saves.
        """
        body: dict[str, Any] = {"prompt": prompt}
        if client_id:
            body["client_id"] = client_id
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            answer = self._json("/prompt", body)
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            answer = json.load(error)
        # The host also queues what is left of a prompt of which some outputs are invalid.
        if answer.get("node_errors") or "error" in answer:
            raise _refusal(answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: dict[str, Any],
        workflow: dict[str, Any] | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> dict[str, Any]:
        """Queue a prompt, follow it to its end and return its entry of the history.

        Raises PromptError when it is refused or a node raises, Interrupted when it is cancelled,
        TimeoutError when the server neither reports nor works any more (see patience.py; the prompt
        is then interrupted) and ServerError when the server dies.
        """
        client_id = uuid.uuid4().hex
        try:
            with contextlib.closing(self._connection(client_id)) as connection:
                prompt_id = self.queue(prompt, workflow, client_id=client_id)
                self._follow(connection, prompt_id, prompt, on_progress)
        except (websocket.WebSocketConnectionClosedException, ConnectionError) as error:
            raise ServerError(f"The server died.\n{self._log_tail()}") from error
        return self._json(f"/history/{prompt_id}")[prompt_id]

    def ask(self, path: str) -> Any:
        """What the server answers to a path that gives JSON, as that of an extension."""
        return self._json(path)

    def interrupt(self) -> None:
        """Cancel the prompt that is running, if any."""
        self._post("/interrupt", {})

    def forget_queue(self) -> None:
        """Drop every prompt that waits, and cancel the one that is running."""
        self._post("/queue", {"clear": True})
        self.interrupt()

    def free(self) -> None:
        """Have the server unload all models and forget all cached results, when it is idle."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def image(self, reference: dict[str, str]) -> Image.Image:
        """A picture by the reference that an output node gave: filename, subfolder and type."""
        names = ("filename", "subfolder", "type")
        query = urllib.parse.urlencode({name: reference.get(name, "") for name in names})
        picture = Image.open(io.BytesIO(self._open(f"/view?{query}", None)))
        picture.load()
        return picture

    def images(self, history: dict[str, Any], node: str | int | None = None) -> list[Image.Image]:
        """All pictures of a finished prompt, or those of one node, in the order of the nodes."""
        outputs = history["outputs"]
        chosen = outputs.values() if node is None else [outputs[str(node)]]
        return [self.image(ref) for output in chosen for ref in output.get("images", [])]

    def _wait_until_up(self) -> None:
        assert self._process is not None
        patience = self._patience()
        while not patience.ran_out():
            if (code := self._process.poll()) is not None:
                raise ServerError(f"The server ended with code {code}.\n{self._log_tail()}")
            try:
                self._json("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise ServerError(f"The server does not come up.\n{self._log_tail()}")

    def _log_tail(self, lines: int = 25) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _follow(
        self,
        connection: websocket.WebSocket,
        prompt_id: str,
        prompt: dict[str, Any],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        """Read events until the host is done with the prompt, which is when its history exists."""
        report = on_progress or (lambda progress: None)
        failure: RuntimeError | None = None
        current = ""
        for event, data in self._events(connection, self._patience()):
            if event in (PREVIEW_IMAGE, TEXT):
                report(_binary_progress(event, data, current, prompt))
            elif data.get("prompt_id") != prompt_id:
                continue
            elif event == "executing":
                if data["node"] is None:
                    break
                current = data["display_node"]
                report(Progress(current, _type(prompt, current)))
            elif event == "progress":
                node = data["node"]
                report(Progress(node, _type(prompt, node), data["value"], data["max"]))
            elif event == "execution_error":
                message = data["exception_message"].strip()
                failure = PromptError(
                    message, data["node_id"], data["node_type"], data["exception_type"]
                )
            elif event == "execution_interrupted":
                failure = Interrupted("The prompt was cancelled.")
        if failure is not None:
            raise failure

    def _events(
        self, connection: websocket.WebSocket, patience: Patience
    ) -> Iterator[tuple[str | int, Any]]:
        """(name, data) of each JSON event and (number, bytes) of each binary one, as they arrive.

        Raises TimeoutError when patience runs out; the prompt is then interrupted.
        """
        connection.settimeout(POLL_SECONDS)
        while True:
            try:
                message = connection.recv()
            except websocket.WebSocketTimeoutException:
                if patience.ran_out():
                    self.interrupt()
                    raise TimeoutError(
                        f"The server has been silent for too long.\n{self._log_tail()}"
                    ) from None
                continue
            patience.heard()
            if isinstance(message, bytes):
                yield struct.unpack(">I", message[:4])[0], message[4:]
            elif message:
                event = json.loads(message)
                yield event["type"], event["data"]
            else:
                raise websocket.WebSocketConnectionClosedException("closed by the server")

    def _json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return json.loads(self._open(path, body))

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self._open(path, body)

    def _open(self, path: str, body: dict[str, Any] | None) -> bytes:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{self.address}{path}", data, headers)

        def ask() -> bytes:
            with self._opener.open(request) as answered:
                return answered.read()

        return answer(ask, self._patience())

    def _connection(self, client_id: str) -> websocket.WebSocket:
        url = f"ws://{self.address}/ws?clientId={client_id}"

        def connect() -> websocket.WebSocket:
            return websocket.create_connection(url, http_no_proxy=["127.0.0.1"])

        return answer(connect, self._patience())

    def _patience(self) -> Patience:
        assert self._process is not None
        return Patience(self._process.pid)


def extended(folder: Path, *extensions: Path, **models: Path) -> tuple[str, ...]:
    """Options of main.py by which it also loads more extensions, which are copied into folder.

    models: further folders to look for models in, by the host's names of their kinds.
    """
    extra = folder / "extra"
    for extension in extensions:
        shutil.copytree(extension, extra / extension.name)
    paths = folder / "extra.yaml"
    found = {"custom_nodes": extra, **models}
    lines = [f"  {kind}: {place.resolve().as_posix()}" for kind, place in found.items()]
    paths.write_text("\n".join(["extra:", *lines, ""]), encoding="utf-8")
    option = "--whitelist-custom-nodes"  # the last one counts
    own = host_command(path(), 0)
    names = [*own[own.index(option) + 1 :], *(extension.name for extension in extensions)]
    return "--extra-model-paths-config", str(paths), option, *names


def _binary_progress(event: int, data: bytes, current: str, prompt: dict[str, Any]) -> Progress:
    """Decode a preview (format number, picture) or a text (length of node id, node id, text)."""
    (number,) = struct.unpack(">I", data[:4])
    if event == PREVIEW_IMAGE:
        preview = Image.open(io.BytesIO(data[4:]))
        preview.load()
        return Progress(current, _type(prompt, current), preview=preview)
    node = data[4 : 4 + number].decode()
    return Progress(node, _type(prompt, node), text=data[4 + number :].decode())


def _type(prompt: dict[str, Any], node: str) -> str:
    """The type of a node; empty for nodes that another node created while it ran."""
    return prompt[node]["class_type"] if node in prompt else ""


def _refusal(answer: dict[str, Any]) -> PromptError:
    for node_id, node in answer["node_errors"].items():
        error = node["errors"][0]
        message = f"{node['class_type']}: {error['message']}: {error['details']}"
        return PromptError(message, node_id, node["class_type"], error["type"])
    error = answer["error"]
    return PromptError(error["message"], exception_type=error["type"])


def api_prompt(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API prompt of a workflow in the browser's format (version 0.4).

    Follows the browser: muted nodes are left out, bypassed ones and reroutes are stepped over, a
    primitive gives its value. ValueError when a node is unknown to the host (also: a subgraph) or
    its saved values are fewer than its widgets.
    """
    nodes = {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in NOT_EXECUTED or node.get("mode", 0) in (MUTED, BYPASSED):
            continue
        if node["type"] not in object_info:
            raise ValueError(f"Node {node['id']}: the host has no node {node['type']!r}.")
        inputs = _widget_values(node, object_info[node["type"]])
        for socket_ in node.get("inputs", []):
            source = _source(socket_.get("link"), links, nodes)
            if source is not None:
                inputs[socket_["name"]] = source
        title = node.get("title", object_info[node["type"]]["display_name"])
        prompt[str(node["id"])] = {
            "inputs": inputs,
            "class_type": node["type"],
            "_meta": {"title": title},
        }
    return prompt


def _widget_values(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """Name the values of a saved node, which are a bare list in the order of its widgets.

    Values beyond the last widget belong to widgets that the browser adds for display. Optional
    widgets at the end may have none: a file saved before there were any is as good.
    """
    values = node.get("widgets_values") or []
    if isinstance(values, dict):
        return dict(values)
    names = _widget_names(info["input"])
    needed = _widget_names({"required": info["input"].get("required", {})})
    if len(values) < len([name for name in needed if name]):
        raise ValueError(
            f"Node {node['id']} ({node['type']}) has {len(values)} saved values for the widgets "
            f"{', '.join(name or '(browser only)' for name in names)}."
        )
    return {name: value for name, value in zip(names, values, strict=False) if name}


def _widget_names(schema: dict[str, Any]) -> list[str]:
    """The widgets of a node in saved order; "" where the browser alone has one."""
    names = []
    for group in ("required", "optional"):
        uploads = False
        for name, spec in schema.get(group, {}).items():
            kind, options = spec[0], spec[1] if len(spec) > 1 else {}
            is_widget = isinstance(kind, list) or kind in WIDGET_TYPES or "widgetType" in options
            if options.get("forceInput") or not is_widget:
                continue
            names.append(name)
            # The browser gives a seed this companion unless the schema says no in so many words.
            is_seed = kind == "INT" and name in ("seed", "noise_seed")
            if options.get("control_after_generate", is_seed):
                names.append("")
            uploads = uploads or any(options.get(upload) for upload in UPLOADS)
        if uploads:
            names.append("")
    return names


def _source(link_id: int | None, links: dict[int, list], nodes: dict[int, dict]) -> Any:
    """What feeds an input: [node id, output], a primitive's value, or None for nothing."""
    while link_id is not None:
        _, origin, slot = links[link_id][:3]
        node = nodes[origin]
        if node["type"] == "PrimitiveNode":
            return node["widgets_values"][0]
        if node["type"] == "Reroute":
            link_id = node["inputs"][0].get("link")
        elif node.get("mode", 0) == BYPASSED:
            link_id = _bypass(node, slot)
        elif node.get("mode", 0) == MUTED:
            return None
        else:
            return [str(origin), slot]
    return None


def _bypass(node: dict[str, Any], slot: int) -> int | None:
    """The link that a bypassed node hands on: the input at the output's place, else any alike."""
    kind = node["outputs"][slot]["type"]
    inputs = node.get("inputs", [])
    for socket_ in inputs[slot : slot + 1] + inputs:
        if socket_["type"] == kind:
            return socket_.get("link")
    return None
