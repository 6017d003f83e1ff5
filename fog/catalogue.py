"""`e2llm catalogue`: which devices and models can be planned by data sheet."""

from __future__ import annotations

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from fog.hypothetical import choose_planned_model
from fog.output import write_json


def run_catalogue(json_target: str | None, console: Console) -> None:
    """Show both lists.

    Raises:
        OutputError: The JSON file cannot be written.
    """
    from planner.catalogue import WeightFormat, load_devices, load_models

    devices, models = load_devices().devices, load_models()
    hardware = _table("device", "Gflop/s", "GB/s", "memory", "link", "what it is")
    for name, device in devices.items():
        memory = f"{device.memory_bytes / 1e9:.1f} GB"
        if device.host_memory_bytes:
            memory += f" + {device.host_memory_bytes / 1e9:.0f} GB host"
        hardware.add_row(
            name,
            f"{device.flops_per_second / 1e9:.0f}",
            f"{device.bytes_per_second / 1e9:.1f}",
            memory,
            f"{device.link.bytes_per_second * 8 / 1e6:.0f} Mbit/s",
            device.name,
        )
    shapes = _table("model", "parameters", "bfloat16", "int8", "int4", "layers", "context")
    for name, model in models.items():
        shapes.add_row(
            name,
            f"{model.num_parameters / 1e9:.2f} billion",
            *(
                f"{choose_planned_model(name, weights).spec.weight_bytes / 1e9:.1f} GB"
                for weights in (WeightFormat.BFLOAT16, WeightFormat.INT8, WeightFormat.INT4)
            ),
            str(model.num_layers),
            str(model.context_limit),
        )
    console.print(hardware)
    console.print(
        "Rates are what a language model reaches, from data sheets and estimated shares of their "
        "peaks; memory is what can be offered to a model. In a fog file: "
        'catalogue = "raspberry-pi-5-8gb".',
        highlight=False,
    )
    console.print(shapes)
    console.print("As in --model llama-3.1-8b --weights int4.", highlight=False)
    write_json(
        json_target,
        {
            "devices": msgspec.to_builtins(devices),
            "models": {
                name: {
                    "num_parameters": model.num_parameters,
                    "num_layers": model.num_layers,
                    "context_limit": model.context_limit,
                    "config": model.config,
                }
                for name, model in models.items()
            },
        },
    )


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        is_text = index == 0 or column == "what it is"
        table.add_column(column, justify="left" if is_text else "right", no_wrap=index == 0)
    return table
