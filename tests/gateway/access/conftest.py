"""A folder in which a gateway asks the broker."""

from pathlib import Path

import pytest

from broker.joining import JoinFolder


@pytest.fixture
def joins(tmp_path: Path) -> JoinFolder:
    folder = JoinFolder(tmp_path / "joins")
    folder.make()
    return folder
