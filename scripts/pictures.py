"""Draw the pictures of the documentation: ``python scripts/pictures.py``. SVG, light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

FOLDER: Final = Path(__file__).parent.parent / "docs" / "pictures"

_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .small { font-size: 11px; fill: #59636e; }
  .title { font-weight: 600; }
  .box { fill: #f6f8fa; stroke: #8c959f; }
  .prefill { fill: #d4ecf7; stroke: #0a7ea4; }
  .decode { fill: #fde7cf; stroke: #bc5d00; }
  .idle { fill: none; stroke: #8c959f; stroke-dasharray: 4 3; }
  .kv { fill: #e3dcf5; stroke: #6e4bc4; }
  .line { stroke: #59636e; stroke-width: 1.5; fill: none; marker-end: url(#arrow); }
  .dashed { stroke-dasharray: 5 4; }
  .tip { fill: #59636e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .small { fill: #9da7b3; }
    .box { fill: #1c2128; stroke: #6e7681; }
    .prefill { fill: #0b3a4a; stroke: #4db7dd; }
    .decode { fill: #4a2a06; stroke: #f0a04b; }
    .kv { fill: #2f2257; stroke: #a48be8; }
    .line { stroke: #9da7b3; } .tip { fill: #9da7b3; }
  }
"""


@dataclass
class Picture:
    """An SVG in the making.

    Attributes:
        label: What it shows, for those who cannot see it.
    """

    width: int
    height: int
    label: str
    parts: list[str] = field(default_factory=list)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        lines: Iterable[str],
        kind: str = "box",
    ) -> None:
        """Draw a box with lines of text in its middle, the first one larger."""
        self.parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        )
        found = list(lines)
        top = y + height / 2 - 8 * (len(found) - 1) + 4
        for number, line in enumerate(found):
            style = "" if number == 0 else "small"
            self.text(x + width / 2, top + 16 * number, line, style, "middle")

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "start") -> None:
        """Write a line."""
        self.parts.append(
            f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[float, float], style: str = "") -> None:
        """Draw a line through points, with a tip at its end."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        self.parts.append(f'<path class="line {style}" d="{path}"/>')

    def svg(self) -> str:
        """Return the whole file."""
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
            f'width="{self.width}" height="{self.height}" role="img" '
            f'aria-label="{escape(self.label)}">\n'
            f"<style>{_STYLE}</style>\n"
            '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            'markerHeight="7" orient="auto"><path class="tip" d="M0 0 L8 4 L0 8 z"/></marker>'
            "</defs>\n"
            f"{body}\n</svg>\n"
        )


def fog() -> Picture:
    """Devices, replicas, broker, gateway."""
    picture = Picture(760, 330, "Six unequal devices form two replicas of one model")
    picture.box(10, 120, 110, 60, ["application", "HTTP"])
    picture.box(160, 120, 110, 60, ["gateway", "MQTT"])
    picture.arrow((120, 150), (158, 150))
    picture.text(310, 28, "prefill replica: takes prompts in", "title")
    stages = (
        ("mini PC", "embedding + layers 0-5", 310, 40, "prefill"),
        ("laptop", "layers 6-11 + head", 530, 40, "prefill"),
        ("Jetson", "emb. + layers 0-6", 310, 200, "decode"),
        ("Pi 5", "layers 7-9", 460, 200, "decode"),
        ("Pi 5", "layers 10-11 + head", 610, 200, "decode"),
    )
    for name, layers, x, y, kind in stages:
        width = 200 if kind == "prefill" else 140
        picture.box(x, y, width, 60, [name, layers], kind)
    picture.arrow((510, 70), (528, 70))
    picture.arrow((450, 230), (458, 230))
    picture.arrow((600, 230), (608, 230))
    picture.arrow((680, 262), (680, 285), (380, 285), (380, 264))
    picture.text(470, 300, "token ids come round the ring", "small")
    picture.arrow((270, 138), (290, 138), (290, 70), (308, 70))
    picture.arrow((308, 230), (290, 230), (290, 162), (272, 162), style="dashed")
    for x in (400, 715):
        picture.arrow((x, 102), (x, 196), style="dashed")
    picture.text(557, 142, "KV cache, layer by layer,", "small", "middle")
    picture.text(557, 158, "while the prompt is taken in", "small", "middle")
    picture.text(425, 190, "decode replica: makes tokens", "title")
    picture.box(10, 230, 110, 60, ["Pi 4", "idle: too slow here"], "idle")
    picture.box(160, 230, 110, 60, ["planner", "plans as it runs"])
    return picture


def request() -> Picture:
    """A prompt over time: chunks in two stages, KV on its way, decode."""
    picture = Picture(760, 250, "A prompt is prefilled in chunks while its KV cache travels")
    rows = ("prefill stage 0", "prefill stage 1", "KV on its way", "decode ring")
    for number, row in enumerate(rows):
        picture.text(10, 52 + 50 * number, row)
    for chunk in range(4):
        x = 140 + 75 * chunk
        picture.box(x, 30, 70, 34, [f"chunk {chunk + 1}"], "prefill")
        picture.box(x + 75, 80, 70, 34, [f"chunk {chunk + 1}"], "prefill")
        picture.box(x + 85, 130, 66, 34, [f"KV {chunk + 1}"], "kv")
    picture.text(520, 102, "first token: from prefill", "small")
    picture.arrow((517, 97), (511, 97))
    for step in range(5):
        picture.box(555 + 38 * step, 180, 34, 34, [str(step + 2)], "decode")
    picture.text(555, 172, "tokens, one a round", "small")
    picture.arrow((140, 232), (745, 232))
    picture.text(745, 246, "time", "small", "end")
    return picture


def change() -> Picture:
    """Two plans over time: the new one loads while the old one serves."""
    picture = Picture(760, 220, "A new plan is prepared while the old one serves")
    picture.text(10, 52, "old plan")
    picture.text(10, 112, "new plan")
    picture.box(140, 30, 330, 36, ["serves"], "decode")
    picture.box(474, 30, 120, 36, ["its requests end"], "idle")
    picture.box(300, 90, 166, 36, ["nodes load its layers"], "kv")
    picture.box(474, 90, 266, 36, ["serves"], "decode")
    for x, text in (
        (210, "a device slows down"),
        (300, "a better plan"),
        (470, "all have loaded: active"),
    ):
        picture.arrow((x, 172), (x, 134 if x >= 300 else 70))
        picture.text(x, 190 if x != 300 else 206, text, "small", "middle")
    picture.arrow((140, 152), (745, 152))
    picture.text(745, 168, "time", "small", "end")
    return picture


PICTURES: Final = {"fog.svg": fog, "request.svg": request, "change.svg": change}


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in PICTURES.items():
        (FOLDER / name).write_text(draw().svg(), "utf-8")


if __name__ == "__main__":
    main()
