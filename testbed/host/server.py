"""A client for a real ComfyUI server, for the demo, the tests and the benchmark.

    with Server(folder) as server:
        history = server.run(api_prompt(workflow, server.object_info()))
        picture = server.images(history)[0]

The server is the ComfyUI that `dev.py setup` prepared, on a free local port, with folders of its
own. Its only custom nodes are this pack and IconCanvas. It ends with the process that started it,
also if that is killed (see tether.py). `api_prompt` is in workflow.py.
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

from dev import host_command, host_environment

from .patience import Patience, answer
from .process import path

POLL_SECONDS = 5
TETHER = Path(__file__).with_name("tether.py")

# The numbers of ComfyUI's protocol.BinaryEventTypes.
PREVIEW_IMAGE = 1
TEXT = 3


class ServerError(RuntimeError):
    """The server did not start, or died. The message ends with the last lines of its log."""


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
    """A report of a running node: a step, a preview picture or a status text."""

    node: str
    """Id of the node in the prompt."""
    node_type: str
    value: float = 0
    total: float = 0
    """0 when the node starts, before it reports a step."""
    preview: Image.Image | None = None
    text: str | None = None


class Server:
    """A ComfyUI server that runs as long as the `with` block.

    folder: where it writes: the folders output, input, temp and user, and server.log.
    input_folder: what Load Image reads from, instead of folder/input. args: more options for the
    host's main.py. environment: more variables. It runs on the CPU if CUDA is not available.
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
                env={**host_environment(), **self._environment},
                stdin=subprocess.PIPE,  # the tether watches it
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
        """End the server. Does nothing if it has ended already."""
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
        """End the server at once, as a crash would, with no time to write anything."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def object_info(self) -> dict[str, Any]:
        """The schema of every node the server knows, by node id."""
        return self._json("/object_info")

    def get(self, path: str) -> bytes:
        """What it hands out under a path, such as /extensions."""
        return self._open(path, None)

    def queue(
        self,
        prompt: dict[str, Any],
        workflow: dict[str, Any] | None = None,
        *,
        client_id: str | None = None,
    ) -> str:
        """Put an API prompt into the queue and return its id. Raises PromptError if it is refused.

        workflow: the workflow of the browser, which the host writes into the files that it saves.
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
        # If some outputs of a prompt are invalid, the host queues the others all the same.
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
        """Queue a prompt, follow it to its end and return its entry in the history.

        Raises PromptError if it is refused or a node raises, Interrupted if it is cancelled, and
        ServerError if the server dies. Raises TimeoutError, and interrupts the prompt, if the
        server neither reports nor works any more (see patience.py).
        """
        client_id = uuid.uuid4().hex
        try:
            with contextlib.closing(self._connection(client_id)) as connection:
                prompt_id = self.queue(prompt, workflow, client_id=client_id)
                self._follow(connection, prompt_id, prompt, on_progress)
        except (websocket.WebSocketConnectionClosedException, ConnectionError) as error:
            raise ServerError(f"The server died.\n{self._log_tail()}") from error
        return self._json(f"/history/{prompt_id}")[prompt_id]

    def post(self, path: str, body: dict[str, Any]) -> None:
        """Hand something in under a path, such as /settings."""
        self._post(path, body)

    def ask(self, path: str) -> Any:
        """The server's answer to a path that returns JSON, such as one of an extension."""
        return self._json(path)

    def interrupt(self) -> None:
        """Cancel the prompt that is running, if any."""
        self._post("/interrupt", {})

    def forget_queue(self) -> None:
        """Drop every prompt that waits, and cancel the one that is running."""
        self._post("/queue", {"clear": True})
        self.interrupt()

    def free(self) -> None:
        """Let the server unload all models and drop all cached results, once it is idle."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def image(self, reference: dict[str, str]) -> Image.Image:
        """A picture, by the reference that an output node returned: filename, subfolder, type."""
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
        """Read events until the host is done with the prompt. Only then its history exists."""
        report = on_progress or (lambda progress: None)
        failure: RuntimeError | None = None
        current = ""
        for event, data in self._events(connection, self._patience()):
            if event in (PREVIEW_IMAGE, TEXT):
                # These do not say whose they are. Before this prompt's first node runs, they are
                # late ones of the prompt before it.
                if current:
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
        """The events as they arrive: (name, data) for JSON events, (number, bytes) for binary ones.

        If patience runs out, it interrupts the prompt and raises TimeoutError.
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
    """Options of main.py that make it load more extensions. They are copied into folder.

    models: more folders with models, by the host's names for their kinds.
    """
    extra = folder / "extra"
    for extension in extensions:
        shutil.copytree(extension, extra / extension.name)
    paths = folder / "extra.yaml"
    found = {"custom_nodes": extra, **models}
    lines = [f"  {kind}: {place.resolve().as_posix()}" for kind, place in found.items()]
    paths.write_text("\n".join(["extra:", *lines, ""]), encoding="utf-8")
    option = "--whitelist-custom-nodes"  # the last one on the command line counts
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
