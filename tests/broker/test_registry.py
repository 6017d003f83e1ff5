"""Every file of `broker.families` takes part, and no two claim the same model."""

import importlib
import pkgutil

import pytest

import broker.families
from broker.architecture import UnsupportedModelError, parse_config
from broker.families.family import NEUTRAL, Family
from broker.registry import families


def family_files() -> dict[str, tuple[Family, ...]]:
    modules = pkgutil.iter_modules(broker.families.__path__, "broker.families.")
    found = {m.name: getattr(importlib.import_module(m.name), "FAMILIES", ()) for m in modules}
    return {name: declared for name, declared in found.items() if declared}


def test_every_family_of_every_file_is_known_by_its_architecture() -> None:
    declared = [family for names in family_files().values() for family in names]
    assert len(declared) >= 11
    assert sorted(f.architecture for f in declared) == list(families())
    assert len({f.name for f in declared}) == len(declared)


@pytest.mark.parametrize("architecture", families())
def test_defaults_alone_describe_a_model(architecture: str) -> None:
    config = parse_config({"architectures": [architecture]})
    assert config.family == families()[architecture].name
    assert config.num_layers == families()[architecture].defaults["num_hidden_layers"]


@pytest.mark.parametrize("architecture", families())
def test_a_family_refuses_what_it_neither_allows_nor_understands(architecture: str) -> None:
    family = families()[architecture]
    for key in {*NEUTRAL, *family.allowed} - family.understood:
        with pytest.raises(UnsupportedModelError, match=f"{key}='surprise'.* {family.name} models"):
            parse_config({"architectures": [architecture], key: "surprise"})
