"""The documents of the repository as tests read them: command blocks, files in them, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

_FENCE: Final = re.compile(
    r"(?:^<!-- not-run: (?P<reason>[^\n]*?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_FILE_NAME: Final = re.compile(r"\A# (?P<name>[\w.-]+\.(?:toml|csv))\n")
_LINK: Final = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_HEADING: Final = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block.

    Attributes:
        line: Of its fence, from 1.
        not_run: Why no test runs it; None: a test does.
    """

    path: Path
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def name(self) -> str:
        """Where it stands, for messages."""
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def documents() -> list[Path]:
    """Return all Markdown files that people read."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("examples/*.md")])


def blocks(path: Path, *languages: str) -> list[Block]:
    """Return the blocks of a document in these languages."""
    text = path.read_text("utf-8")
    return [
        Block(
            path,
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            found["text"],
            found["reason"],
        )
        for found in _FENCE.finditer(text)
        if found["language"] in languages
    ]


def commands(path: Path) -> list[Block]:
    """Return the blocks of a document that a reader may type: shell, or `$ ` before a command."""
    found = blocks(path, "sh", "bash")
    for block in blocks(path, ""):
        typed = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
        if typed:
            found.append(replace(block, text="\n".join(typed) + "\n"))
    return found


def named_files(path: Path) -> dict[str, str]:
    """Return the files that a document shows: blocks whose first line is ``# name.toml``."""
    files = {}
    for block in blocks(path, "toml", "csv"):
        if found := _FILE_NAME.match(block.text):
            files[found["name"]] = block.text
    return files


def broken_links(path: Path) -> Iterator[str]:
    """Yield the links within the repository that lead nowhere."""
    text = _FENCE.sub("", path.read_text("utf-8"))
    for link in (found[1] or found[2] for found in _LINK.finditer(text)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (
            anchor and target.suffix == ".md" and anchor not in anchors(target)
        ):
            yield link


def anchors(path: Path) -> set[str]:
    """Return the anchors of a document's headings, as GitHub and the site make them."""
    text = _FENCE.sub("", path.read_text("utf-8"))
    return {_slug(found[1]) for found in _HEADING.finditer(text)}


def _slug(heading: str) -> str:
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda found: found[1] or "", heading)
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
