"""Devices and models by data sheet, for planning with what nobody has measured yet."""

from planner.catalogue.devices import CatalogueDevice, DeviceCatalogue, load_devices
from planner.catalogue.models import CatalogueModel, WeightFormat, load_models

__all__ = [
    "CatalogueDevice",
    "CatalogueModel",
    "DeviceCatalogue",
    "WeightFormat",
    "load_devices",
    "load_models",
]
