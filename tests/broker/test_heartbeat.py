"""The file that a health check looks at."""

import os
from pathlib import Path

from broker.heartbeat import Heartbeat


def test_the_file_is_touched_while_connected_and_not_more_often_than_needed(
    tmp_path: Path,
) -> None:
    heartbeat = Heartbeat(tmp_path / "state", interval_seconds=5.0)
    heartbeat.beat(100.0)
    alive = tmp_path / "state" / "alive"
    os.utime(alive, (1, 1))
    heartbeat.beat(104.0)
    assert alive.stat().st_mtime == 1
    heartbeat.beat(105.0)
    assert alive.stat().st_mtime > 1


def test_without_a_folder_nothing_happens() -> None:
    Heartbeat(None).beat(0.0)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    Heartbeat(tmp_path / "file" / "state").beat(0.0)
