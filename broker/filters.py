"""What an MQTT topic filter matches, and which filters lie within which (MQTT 3.1.1, 4.7)."""

from __future__ import annotations


def is_filter(text: str) -> bool:
    """Whether ``text`` is a legal topic filter: wildcards alone in a level, ``#`` last."""
    levels = text.split("/")
    return (
        bool(text)
        and all(level in {"+", "#"} or not ("+" in level or "#" in level) for level in levels)
        and "#" not in levels[:-1]
    )


def covers(wide: str, narrow: str) -> bool:
    """Whether every topic that ``narrow`` matches is matched by ``wide``.

    ``narrow`` may be a plain topic, then this is the match of a topic. As the standard says,
    ``a/#`` also matches ``a``, and a wildcard in the first level no topic that starts with $.
    """
    wide_levels, narrow_levels = wide.split("/"), narrow.split("/")
    if narrow.startswith("$") and wide_levels[0] in {"+", "#"}:
        return False
    for index, level in enumerate(wide_levels):
        if level == "#":
            return True
        if index >= len(narrow_levels):
            return False
        other = narrow_levels[index]
        if other == "#" or level not in {"+", other}:
            return False
    return len(wide_levels) == len(narrow_levels)
