"""ComfyUI's page in a browser: opens templates, runs them, and tells what the page shows.

    with chromium.launched() as browser:
        page = Frontend(browser, server)
        page.open_template("01 Erase in seconds (Closed-Form)")
        assert page.run() == "success"

Whatever a user can click is clicked. The graph and its values are read from the page's own objects.
"""

from __future__ import annotations

import json
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .server import Server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

PACK = "comfyui-concept-unlearn"
SCREEN = {"width": 1920, "height": 1080}
PATIENCE_MS = 600_000
"""For one click or wait of the page. A slow machine takes a tenth of it."""
POLL_MS = 200
SILENCE_SECONDS = 1_800
"""A run may take any time, but not this long without any event."""
EMPTY = (700, 980)
"""A place of the screen where no template has a node."""
NOTHING = "zzzzqqqq"
"""What no node is found by."""
CLASSIC, NODES_2 = "classic", "nodes 2.0"
STYLES = (CLASSIC, NODES_2)

HOSTS_OWN = (
    "Failed to load resource",  # of what a new user does not have yet
    "Content Security Policy",  # without API nodes the page may not ask other servers
    "ComfyApp graph accessed before initialization",
)
"""Errors that the page writes into its console also without this pack."""

LISTEN = """() => {
  window.seen = [];
  const names = ["execution_start", "executing", "progress", "progress_state", "executed",
    "execution_success", "execution_error", "execution_interrupted", "promptQueueing"];
  for (const name of names)
    app.api.addEventListener(name, (event) => seen.push([name, event.detail]));
}"""
READY = "window.app?.vueAppReady && window.app.canvas && window.app.graph"
SHOWN = """(title) => {
  const node = app.graph.nodes.find((one) => one.title === title);
  return (node.widgets ?? []).map((widget) => String(widget.value));
}"""
FAULTY = "app.graph.nodes.filter((node) => node.has_errors).map((node) => node.type)"
UNKNOWN = """app.graph.nodes.map((node) => node.type)
  .filter((type) => !(type in LiteGraph.registered_node_types))"""
VALUES = """Object.fromEntries(app.graph.serialize().nodes.map(
  (node) => [node.id, [node.type, node.mode, node.widgets_values ?? []]]))"""

OVERLAPS = """() => {
  const drawn = [...document.querySelectorAll("[data-node-id]")].map((element) =>
    [app.graph.getNodeById(element.dataset.nodeId)?.title, element.getBoundingClientRect()]);
  const pairs = [];
  drawn.forEach(([one, a], at) => drawn.slice(at + 1).forEach(([two, b]) => {
    const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (wide > 1 && high > 1) pairs.push([one, two]);
  }));
  return pairs;
}"""


class Frontend:
    """One page of one server, in one node style."""

    def __init__(self, browser: Browser, server: Server, style: str = CLASSIC) -> None:
        settings = {"Comfy.VueNodes.Enabled": style == NODES_2, "Comfy.TutorialCompleted": True}
        server.post("/settings", settings)
        self.server, self.style = server, style
        self._errors: list[str] = []
        self.page = browser.new_page(viewport=SCREEN)
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self._errors.append(str(error)))
        self.page.on("console", self._heard)
        self.load()

    def _heard(self, message: Any) -> None:
        if message.type == "error" and not any(one in message.text for one in HOSTS_OWN):
            self._errors.append(message.text)

    def load(self) -> None:
        """Open the page, as a user does who comes back."""
        self.page.goto(f"http://{self.server.address}/")
        self.page.wait_for_function(READY)
        self.page.evaluate(LISTEN)

    def close(self) -> None:
        self.page.context.close()

    def errors(self) -> list[str]:
        """What the page threw or wrote into its console as an error since the last call."""
        found, self._errors = self._errors, []
        return found

    def command(self, name: str) -> None:
        """A command of the page's menus and shortcuts."""
        self.page.evaluate("(name) => { app.extensionManager.command.execute(name) }", name)

    # Templates

    def templates(self) -> list[str]:
        """The names in the page's own dialog, in its order. The dialog stays open."""
        self.command("Comfy.BrowseTemplates")
        dialog = self.page.get_by_role("dialog")
        dialog.get_by_text(PACK, exact=True).first.click()
        cards = dialog.locator('[data-testid^="template-workflow-"]')
        dialog.locator('[data-testid^="template-workflow-01 "]').wait_for()
        ids = cards.evaluate_all("(cards) => cards.map((card) => card.dataset.testid)")
        return [one.removeprefix("template-workflow-") for one in ids]

    def open_template(self, name: str) -> None:
        """Choose a template in the page's own dialog, and wait until it is drawn."""
        self.templates()
        card = self.page.get_by_test_id(f"template-workflow-{name}")
        card.click()
        card.wait_for(state="detached")
        self.page.wait_for_function("(name) => document.title.includes(name)", arg=name)
        self.settled()

    def settled(self) -> None:
        """Wait until the page has drawn: twice the next frame, and no picture on its way."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        self.page.wait_for_function("[...document.images].every((image) => image.complete)")

    def search(self, words: str) -> list[str]:
        """The results of the node search, which a double click on the empty canvas opens."""
        field = self.page.get_by_placeholder("Add a node")
        if not field.is_visible():
            self.page.mouse.dblclick(*EMPTY)
        results = self.page.get_by_test_id("result-item")
        field.fill(NOTHING)  # so that what follows are not the results of other words
        results.first.wait_for(state="detached")
        field.fill(words)
        results.first.wait_for()
        return results.all_inner_texts()

    # The graph

    def unknown_types(self) -> list[str]:
        """Types of nodes that the server does not have."""
        return self.page.evaluate(UNKNOWN)

    def faulty(self) -> list[str]:
        """Types of the nodes that are marked red."""
        return self.page.evaluate(FAULTY)

    def values(self) -> Mapping[str, Any]:
        """Type, mode and widgets' values of each node, as the page saves them."""
        return self.page.evaluate(VALUES)

    def shown(self, title: str) -> str:
        """All values and texts on a node."""
        return "\n".join(self.page.evaluate(SHOWN, title))

    def pictures(self, title: str) -> list[tuple[int, int]]:
        """The sizes of the pictures that a node shows."""
        number = self.number(title)
        if self.style == NODES_2:
            inside = self.page.locator(f'[data-node-id="{number}"] img')
            inside.first.wait_for()
            ask = "(all) => all.map((one) => [one.naturalWidth, one.naturalHeight])"
            self.page.wait_for_function("[...document.images].every((one) => one.complete)")
            return inside.evaluate_all(ask)
        ask = "(n) => app.graph.getNodeById(n).imgs?.every((one) => one.naturalWidth)"
        self.page.wait_for_function(ask, arg=number)
        ask = "(n) => app.graph.getNodeById(n).imgs.map((i) => [i.naturalWidth, i.naturalHeight])"
        return self.page.evaluate(ask, number)

    def overlaps(self) -> list[tuple[str, str]]:
        """Pairs of nodes, by their titles, that Nodes 2.0 draws one over the other.

        It makes a node as large as what is in it, whatever size the workflow says.
        """
        return self.page.evaluate(OVERLAPS)

    def number(self, title: str) -> int:
        ask = "(title) => app.graph.nodes.find((node) => node.title === title).id"
        return self.page.evaluate(ask, title)

    def set(self, title: str, widget: str, value: Any) -> None:
        """Give a widget a value, as its field does."""
        ask = """([title, name, value]) => {
          const node = app.graph.nodes.find((one) => one.title === title);
          const widget = node.widgets.find((one) => one.name === name);
          widget.value = value;
          widget.callback?.(value);
        }"""
        self.page.evaluate(ask, [title, widget, value])

    def bypass(self, title: str) -> None:
        """Select a node and press its shortcut, Ctrl-B."""
        ask = """(title) => {
          app.canvas.deselectAll();
          app.canvas.select(app.graph.nodes.find((node) => node.title === title));
        }"""
        self.page.evaluate(ask, title)
        self.command("Comfy.Canvas.ToggleSelectedNodes.Bypass")
        ask = "(title) => app.graph.nodes.find((node) => node.title === title).mode === 4"
        self.page.wait_for_function(ask, arg=title)

    # Running

    def start(self) -> None:
        """Press Run."""
        self.page.evaluate("seen.length = 0")
        self.page.get_by_test_id("queue-button").click()

    def cancel(self) -> None:
        """Press the button that cancels what runs."""
        self.cancel_button().click()

    def cancel_button(self) -> Locator:
        return self.page.get_by_role("button", name="Cancel current run")

    def run(self) -> str:
        """Press Run and wait for the end: "success", "error" or "interrupted"."""
        self.start()
        return self.ended()

    def ended(self) -> str:
        """How the run ended: "success", "error" or "interrupted"."""
        ends = ("execution_success", "execution_error", "execution_interrupted")
        return self.until(ends).removeprefix("execution_")

    def until(self, names: tuple[str, ...], node: int | None = None) -> str:
        """Wait for the first of these events since Run, of a node if one is given."""
        ask = """([names, node]) => (seen.find(([name, detail]) => names.includes(name) &&
          (node === null || String(detail?.node ?? detail) === String(node))) ?? [null])[0]"""
        heard, since = -1, time.monotonic()
        while True:
            if found := self.page.evaluate(ask, [[*names], node]):
                self.settled()
                return found
            count = self.page.evaluate("seen.length")
            if count != heard:
                heard, since = count, time.monotonic()
            elif time.monotonic() - since > SILENCE_SECONDS:
                raise TimeoutError(f"The page has heard nothing: {self.page.evaluate('seen')}")
            self.page.wait_for_timeout(POLL_MS)

    # Saving

    def save(self, name: str) -> None:
        """Save the workflow under a new name, as Ctrl-S and the dialog do."""
        self.command("Comfy.SaveWorkflowAs")
        field = self.page.get_by_role("dialog").locator("input")
        field.fill(name)
        field.press("Enter")
        self.page.wait_for_function("(name) => document.title.startsWith(name)", arg=name)

    def saved(self, name: str) -> dict[str, Any]:
        """The workflow that the server keeps under this name."""
        path = urllib.parse.quote(f"workflows/{name}.json", safe="")
        return json.loads(self.server.get(f"/userdata/{path}"))

    def screenshot(self, file: Path) -> None:
        self.page.screenshot(path=str(file))
