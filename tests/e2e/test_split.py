"""The default fog is a fog: the model really lies on several devices, in two roles."""

import struct
from pathlib import Path

import msgspec
import pytest

from fog.model_choice import DEMO_MODEL
from tests.support.running_fog import RunningFog

pytestmark = [pytest.mark.xdist_group("e2e"), pytest.mark.slow]


def tensors_of_file(path: Path) -> set[str]:
    """Return the names in a safetensors header, read here without our own code."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, object] = msgspec.json.decode(file.read(length))
    return set(header) - {"__metadata__"}


def test_no_stage_covers_all_layers_and_both_roles_are_there(fog: RunningFog) -> None:
    plan = fog.plan()

    assert {replica["role"] for replica in plan["replicas"]} >= {"prefill", "decode"}
    for replica in plan["replicas"]:
        borders = [tuple(stage["layers"]) for stage in replica["stages"]]
        num_layers = borders[-1][1]
        assert len(borders) >= 2
        assert all(end - start < num_layers for start, end in borders)
        # Contiguous from the first layer to the last, on different devices.
        assert [start for start, _ in borders] == [0, *(end for _, end in borders[:-1])]
        assert len({stage["device"] for stage in replica["stages"]}) == len(borders)


def test_the_tensors_of_a_replicas_nodes_add_up_to_the_model_and_no_node_has_them_all(
    fog: RunningFog,
) -> None:
    whole = tensors_of_file(DEMO_MODEL / "model.safetensors")
    devices = fog.devices()

    for replica in fog.plan()["replicas"]:
        held = [set(devices[stage["device"]]["tensors"]) for stage in replica["stages"]]
        assert set.union(*held) == whole
        assert all(tensors < whole for tensors in held)


def test_the_pids_that_the_fog_tells_are_node_processes_of_their_own(fog: RunningFog) -> None:
    told = {name: device["pid"] for name, device in fog.devices().items()}

    assert len(set(told.values())) == len(told) == 6
    assert told.items() <= fog.pids().items()
