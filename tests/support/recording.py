"""Everything that a small fog says to itself, as a file: what the next version must understand.

    python -m tests.support.recording FILE

starts a planner, two nodes and a gateway on a memory broker, lets them answer two requests, and
writes who said what, in order. The README beside the recordings says which version wrote which.
"""

from __future__ import annotations

import base64
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.control import ModelManifest
from broker.memory import MemoryBroker
from broker.topics import QoS
from broker.transport import Publication
from planner.live.inputs import model_spec
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.stepped_fog import SteppedFog

DEVICES = ("first", "second")
REQUESTS = {"greedy": 40, "sampled": 17}
"""Request to the tokens of its prompt."""
NUM_TOKENS = 8
_FOLDER = "{folder}"


@dataclass
class Turn:
    """What one process said when it was its turn."""

    actor: str
    now: float
    messages: list[Publication] = field(default_factory=list)


class RecordingBroker(MemoryBroker):
    """Remembers what is published, by turns."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = [Turn("start", 0.0)]

    def deliver(self, publication: Publication) -> None:
        """Note the message, and deliver it as usual."""
        self.turns[-1].messages.append(publication)
        super().deliver(publication)


class RecordedFog(SteppedFog):
    """A fog that marks whose turn it is."""

    def turn(self, actor: str) -> None:
        """Begin a turn."""
        assert isinstance(self.bus, RecordingBroker)
        self.bus.turns.append(Turn(actor, self.now))


def small_fog(manifest: ModelManifest, kind: type[SteppedFog], bus: MemoryBroker) -> SteppedFog:
    """Return the fog of the recordings, or of their replay."""
    room = model_spec(manifest).stage_bytes(0, 3, 256)
    return kind(manifest, dict.fromkeys(DEVICES, room), load_seconds=0.5, bus=bus)


def prompt(request_id: str) -> list[int]:
    """Return the prompt of a request."""
    rng = random.Random(request_id)
    return [rng.randrange(3, 259) for _ in range(REQUESTS[request_id])]


def checkpoint(folder: Path) -> ModelManifest:
    """Write the model of the recordings; it is the same each time."""
    write_checkpoint(folder, "llama")
    return manifest_of(folder, "tiny")


def record(file: Path) -> None:
    """Run the fog and write the recording."""
    with tempfile.TemporaryDirectory() as name:
        bus = RecordingBroker()
        fog = small_fog(checkpoint(Path(name)), RecordedFog, bus)
        for _ in fog.run(6):
            pass
        for request_id in REQUESTS:
            fog.ask(request_id, prompt(request_id), NUM_TOKENS)
        for _ in fog.run(6):
            if fog.done == REQUESTS.keys():
                break
        assert fog.done == REQUESTS.keys(), "the requests did not end in time"
        lines = [json.dumps(_entry(turn, name)) for turn in bus.turns]
    answers = {name: [token for token, _ in answer] for name, answer in fog.tokens.items()}
    file.write_text("\n".join([json.dumps({"answers": answers}), *lines, ""]), "utf-8")


def _entry(turn: Turn, folder: str) -> dict[str, Any]:
    entry: dict[str, Any] = {"turn": turn.actor, "now": round(turn.now, 3)}
    # What a device sends to itself to measure its link concerns nobody else, and is long.
    messages = [message for message in turn.messages if "link-probe" not in message.topic]
    if messages:
        entry["messages"] = [_message(message, folder) for message in messages]
    return entry


def _message(message: Publication, folder: str) -> dict[str, Any]:
    payload = bytes(message.payload)
    entry: dict[str, Any] = {"topic": message.topic, "qos": int(message.qos)}
    if message.retained:
        entry["retained"] = True
    if payload.startswith(b"{"):
        entry["text"] = payload.decode().replace(folder, _FOLDER)
    else:
        entry["bytes"] = base64.b64encode(payload).decode()
    return entry


def recorded(file: Path, folder: Path) -> tuple[dict[str, list[int]], Sequence[Turn]]:
    """Return the answers and the turns of a recording; the model lies in ``folder``."""
    first, *lines = (json.loads(line) for line in file.read_text("utf-8").splitlines())
    turns = [
        Turn(
            entry["turn"],
            entry["now"],
            [
                Publication(
                    message["topic"],
                    message["text"].replace(_FOLDER, str(folder)).encode()
                    if "text" in message
                    else base64.b64decode(message["bytes"]),
                    QoS(message["qos"]),
                    message.get("retained", False),
                )
                for message in entry.get("messages", ())
            ],
        )
        for entry in lines
    ]
    return first["answers"], turns


if __name__ == "__main__":
    record(Path(sys.argv[1]))
