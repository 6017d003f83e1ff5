"""Fog files and times for the tests of what is planned without a fog."""

from __future__ import annotations

from broker.control import DecodeTime, LayerTimes, ModelManifest, PrefillTime
from nodes.calibration import Calibration
from planner.catalogue.devices import load_devices

CATALOGUE = load_devices().devices
FOG = """
[[device]]
id = "big"
slowdown = 2
model_memory = "80 %"

[[device]]
id = "small"
slowdown = 4
model_memory = "60 %"
link_delay = "1 ms"
link_rate = "100 Mbit/s"
"""
CATALOGUE_FOG = """
[[device]]
id = "pi-a"
catalogue = "raspberry-pi-5-8gb"

[[device]]
id = "pi-b"
catalogue = "raspberry-pi-5-8gb"

[[device]]
id = "gpu"
catalogue = "rtx-3060-12gb"
"""


TWO_PIS = """
[[device]]
id = "pi-a"
catalogue = "raspberry-pi-5-8gb"

[[device]]
id = "pi-b"
catalogue = "raspberry-pi-5-8gb"
"""
OWN_NUMBERS = """
[[device]]
id = "orange-pi"
compute = "60 Gflop/s"
memory_rate = "8 GB/s"
model_memory = "6 GB"
"""
ONE_IS_USEFUL = """
[[device]]
id = "gpu"
catalogue = "rtx-5070"

[[device]]
id = "pi-a"
catalogue = "raspberry-pi-4-4gb"

[[device]]
id = "pi-b"
catalogue = "raspberry-pi-4-4gb"
link_delay = "15 ms"
link_rate = "10 Mbit/s"
"""


def fake_times(seconds: float) -> LayerTimes:
    return LayerTimes(
        prefill=[PrefillTime(n, n * seconds / 10) for n in (1, 1024)],
        decode=[DecodeTime(rows, 64, seconds * (1 + rows / 8)) for rows in (1, 16)],
    )


def fake_calibration(manifest: ModelManifest) -> Calibration:
    times = fake_times(0.001)
    return Calibration(
        blocks={"full": times},
        embedding=fake_times(1e-5),
        head=fake_times(1e-4),
        chunk_tokens=128,
        cpu_seconds_per_second=1.0,
    )
