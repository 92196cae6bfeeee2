"""The pages: short enough, no dead link, no name missing, and every figure and message as it is."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from testbed.bench.table import table
from testbed.showcase import graph_picture, templates
from unlearn.cli.program import COMMANDS
from unlearn.core.record import RECORD

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])
CODE = [
    ROOT / "dev.py",
    *(p for d in ("unlearn", "nodes") for p in sorted((ROOT / d).rglob("*.py"))),
]

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The names of a page's headings in links, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", read(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_is_a_page() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 120


@each_page
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(page)):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}; no such heading"


def test_every_page_can_be_reached_from_the_readme() -> None:
    found, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        found.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)", read(page)):
            file = (page.parent / target).resolve()
            if file in PAGES and file not in found:
                todo.append(file)
    assert found >= set(PAGES)


@each_page
def test_pages_of_figures_say_what_made_them(page: Path) -> None:
    text = read(page)
    if re.search(r"^(Measured|Run) on ", text, re.M):
        assert "made by `python" in text.lower() or "| made by |" in text


@each_page
def test_code_that_is_named_exists(page: Path) -> None:
    for name in re.findall(r"`?\b((?:nodes|unlearn|testbed|tests)/[\w/]+\.\w+)", read(page)):
        assert (ROOT / name).exists(), f"{page.name} names {name}, which does not exist"


@each_page
def test_modules_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"python -m (testbed[\w.]*)", read(page)):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), name


def test_the_drawing_names_code_that_exists() -> None:
    names = re.findall(r">((?:nodes/|\w+/)[\w/]+\.py)<", read(DOCS / "architecture.svg"))
    assert names
    for name in names:
        assert any((ROOT / folder / name).exists() for folder in ("", "unlearn")), name


def test_the_way_of_a_concept_ends_where_the_page_says() -> None:
    (step,) = re.findall(r"^6\. .*$", read(DOCS / "architecture.md"), re.M)
    (file,) = re.findall(r"`(unlearn/\S+\.py)`", step)
    (line,) = re.findall(r'`("concepts".+?)`', step)
    assert line in read(ROOT / file)


def recorded() -> set[str]:
    """The fields of `measured` that the code writes: what `with_measured` is called with."""
    calls = [
        node
        for file in CODE
        for node in ast.walk(ast.parse(read(file)))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "with_measured"
    ]
    assert calls
    given = [keyword for call in calls for keyword in call.keywords]
    also = [
        key.value
        for keyword in given
        if keyword.arg is None
        for node in ast.walk(keyword.value)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant)
    ]
    return {*also, *(keyword.arg for keyword in given if keyword.arg)}


def test_the_file_format_names_every_field_of_a_record() -> None:
    record, measured = read(DOCS / "file-format.md").split("In `measured` there may be:")
    run = read(ROOT / "unlearn" / "methods" / "parts" / "run.py")
    written = set(re.findall(r'^ +"(\w+)": ', run, re.M))
    assert {"concepts", "loss"} <= written
    for name in {*RECORD, *written, "images", "parts"}:
        assert re.search(rf"^\| .*`{name}`.* \| ", record, re.M), name
    assert {"doubts", "verdict", "probe"} <= recorded()
    for name in recorded():
        assert re.search(rf"^\| .*`{name}`.* \| ", measured, re.M), name


def test_the_guide_names_every_node() -> None:
    """By the titles of the help pages, of which every node has one (tests/server/test_nodes.py)."""
    help_pages = sorted((ROOT / "nodes" / "web" / "docs").glob("*.md"))
    titles = [read(page).splitlines()[0].removeprefix("# ") for page in help_pages]
    assert len(titles) >= 12
    guide, readme = read(DOCS / "guide.md"), read(ROOT / "README.md")
    for title, page in zip(titles, help_pages):
        assert f"\n### {title}\n" in guide
        assert f"(../nodes/web/docs/{page.name})" in guide
        assert title in readme


def test_the_graph_is_that_of_the_workflow() -> None:
    """Its picture is made again, and is the same but for smoothing."""
    workflow = json.loads(read(templates.FOLDER / f"{templates.SECONDS}.json"))
    shown = set(graph_picture.WIDGETS)
    made = graph_picture.picture(workflow, graph_picture.names(ROOT), shown)
    with Image.open(DOCS / "graph.png") as kept:
        assert kept.size == made.size
        difference = ImageChops.difference(kept.convert("RGB"), made)
    assert max(ImageStat.Stat(difference).mean) < 1  # of 255


def test_the_guide_names_every_workflow() -> None:
    guide = read(DOCS / "guide.md")
    assert all(file.stem in guide for file in (ROOT / "workflows").glob("*.json"))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_guide_names_every_command(command: str) -> None:
    assert f"\n| `{command}` |" in read(DOCS / "command-line.md")


def test_figures_of_the_readme_are_the_benchmarks() -> None:
    """README.md has them from the table in docs/results.md."""
    readme, results = read(ROOT / "README.md"), read(DOCS / "results.md")
    methods = {
        "few_shot": "Few-Shot",
        "key_step": "Key-Step",
        "domain_correction": "Domain-Correction",
    }
    for method, name in methods.items():
        (line,) = re.findall(rf"^\| {method} \| balanced \| all \|.*$", results, re.M)
        ua, ira, cra = (cell.strip() for cell in line.split("|")[5:8])
        assert f"{name} {ua}, {ira}, {cra}" in readme


def test_tables_of_the_benchmark_are_those_of_its_rows() -> None:
    rows = json.loads(read(DOCS / "bench.json"))
    assert f"<!-- bench -->\n{table(rows, brief=True)}\n<!-- /bench -->" in read(
        DOCS / "results.md"
    )
    assert table(rows) in read(DOCS / "bench.md")


@cache
def said() -> tuple[str, ...]:
    """All texts in the code, with ... for what is put into them."""
    texts = []
    for file in CODE:
        for node in ast.walk(ast.parse(read(file))):
            if isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "..." for v in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return tuple(texts)


def quoted() -> list[str]:
    """The sentences in the first columns of docs/troubleshooting.md."""
    return re.findall(r"^\| `(.+?)` \|", read(DOCS / "troubleshooting.md"), re.M)


def test_troubleshooting_quotes_many_sentences() -> None:
    assert len(quoted()) > 40


@pytest.mark.parametrize("sentence", quoted())
def test_the_code_says_what_troubleshooting_quotes(sentence: str) -> None:
    parts = [re.escape(part.strip()) for part in sentence.split("...") if part.strip()]
    pattern = re.compile(r".*?".join(parts), re.S)
    assert any(map(pattern.search, said())), f"no code says {sentence!r} any more"
