"""Hooks of the documentation site: a link out of `docs/`, which is no part of it, is text there."""

import re
from typing import Any, Final

_OUT: Final = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+[^)\s]+)\)")


def leaves_docs(target: str, source: str) -> bool:
    """Return whether a relative link of the page ``source`` (below docs/) points out of docs/."""
    path = target.partition("#")[0]
    return path.count("../") > source.count("/")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn links to files of the repository that are no pages into their text."""
    source = page.file.src_uri

    def plain(found: re.Match[str]) -> str:
        return found[1] if leaves_docs(found[2], source) else found[0]

    return _OUT.sub(plain, markdown)
