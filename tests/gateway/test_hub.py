"""Models from a folder and from the hub, against a stand-in of the hub's routes.

`huggingface_hub` reads its environment when it is imported, so each download runs in a
process of its own, as it does in a gateway.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fog.model_choice import choose_model
from gateway.hub import hub_place, is_hub_id, model_path
from gateway.model import ModelRefusedError
from tests.support.hub_server import COMMIT, TOKEN, Hub, hub_server
from tests.support.model_folder import write_model_folder

MODEL = "owner/tiny"

DOWNLOAD = """
import json, sys
from gateway.hub import HubUnreachableError, model_path
from gateway.model import ModelRefusedError
ratios = []
try:
    answer = {"folder": str(model_path(sys.argv[1], ratios.append)), "ratios": ratios}
except (HubUnreachableError, ModelRefusedError) as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""


@dataclass
class Downloader:
    """Downloads in a new process with its own cache."""

    endpoint: str
    home: Path

    def download(self, model: str, **environ: str) -> dict[str, Any]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        process = subprocess.run(
            [sys.executable, "-c", DOWNLOAD, model],
            env={
                **inherited,
                "HF_ENDPOINT": self.endpoint,
                "HF_HOME": str(self.home),
                "HF_HUB_DISABLE_TELEMETRY": "1",
                **environ,
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        answer: dict[str, Any] = json.loads(process.stdout)
        return answer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model_folder(tmp_path_factory.mktemp("published"))
    (folder / "pytorch_model.bin").write_bytes(b"the same weights in another format")
    return folder


@pytest.fixture
def hub(folder: Path) -> Hub:
    return Hub(models={MODEL: folder})


@pytest.fixture
def downloader(hub: Hub, tmp_path: Path) -> Iterator[Downloader]:
    with hub_server(hub) as url:
        yield Downloader(url, tmp_path / "home")


def test_a_model_is_downloaded_through_redirects_and_then_kept(
    downloader: Downloader, hub: Hub, folder: Path
) -> None:
    answer = downloader.download(MODEL)
    downloaded = Path(answer["folder"])
    names = {path.name for path in downloaded.iterdir()}
    assert names == {path.name for path in folder.iterdir()} - {"pytorch_model.bin"}
    for name in names:
        assert (downloaded / name).read_bytes() == (folder / name).read_bytes()
    assert any(path.startswith("/cdn/") for _, path, _ in hub.served)
    assert answer["ratios"][-1] == 1.0

    hub.served.clear()
    assert downloader.download(MODEL, HF_HUB_OFFLINE="1")["folder"] == answer["folder"]
    assert hub.served == []


def test_nodes_are_told_where_the_files_of_that_commit_are(downloader: Downloader) -> None:
    folder = Path(downloader.download(f"{MODEL}@v1.0")["folder"])
    place = hub_place(f"{MODEL}@v1.0", folder)
    assert place is not None
    assert (place.repository, place.revision) == (MODEL, COMMIT)
    assert place.endpoint.startswith("https://")
    assert hub_place(MODEL, folder.parent) is None


def test_of_several_gguf_files_only_the_named_one_is_downloaded(
    downloader: Downloader, folder: Path
) -> None:
    for kind in ("Q4_K", "Q8_0"):
        (folder / f"tiny-{kind}.gguf").write_bytes(kind.encode())
    path = Path(downloader.download(f"{MODEL}@v1.0:tiny-Q4_K.gguf")["folder"])
    assert path.read_bytes() == b"Q4_K"
    assert [each.name for each in path.parent.iterdir()] == [path.name] == ["tiny-Q4_K.gguf"]
    place = hub_place(f"{MODEL}@v1.0:tiny-Q4_K.gguf", path)
    assert place is not None
    assert (place.repository, place.revision) == (MODEL, COMMIT)
    answer = downloader.download(f"{MODEL}:tiny-Q2_K.gguf")
    assert answer["error"] == "ModelRefusedError"
    assert "has no file tiny-Q2_K.gguf" in answer["message"]
    for file in folder.glob("*.gguf"):
        file.unlink()


def test_of_a_model_in_several_files_all_are_downloaded(
    downloader: Downloader, hub: Hub, tmp_path: Path
) -> None:
    published = tmp_path / "published"
    (published / "Q4_K").mkdir(parents=True)
    parts = [f"tiny-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for name in (*parts, "tiny.gguf"):
        (published / "Q4_K" / name).write_bytes(name.encode())
    hub.models["owner/split"] = published
    model = f"owner/split:Q4_K/{parts[0]}"
    path = Path(downloader.download(model)["folder"])
    assert path.name == parts[0]
    assert sorted(each.name for each in path.parent.iterdir()) == parts
    place = hub_place(model, path)
    assert place is not None
    assert (place.repository, place.revision, place.folder) == ("owner/split", COMMIT, "Q4_K")
    assert choose_model(model).source == model


def test_a_revision_is_asked_for_by_its_name(downloader: Downloader, hub: Hub) -> None:
    downloader.download(f"{MODEL}@v1.0")
    assert any("/v1.0" in path for _, path, _ in hub.served)
    assert not any("/main" in path for _, path, _ in hub.served)


def test_a_download_that_breaks_off_goes_on_where_it_was(
    downloader: Downloader, hub: Hub, tmp_path: Path
) -> None:
    # The client keeps what it has in steps of 10 MiB, so the file must have more than one.
    published = tmp_path / "published"
    published.mkdir()
    (published / "model.safetensors").write_bytes(os.urandom(1024) * (24 * 1024))
    hub.models["owner/large"] = published
    hub.drops = 1
    downloaded = Path(downloader.download("owner/large")["folder"])
    content = (downloaded / "model.safetensors").read_bytes()
    assert content == (published / "model.safetensors").read_bytes()
    gets = [found for method, path, found in hub.served if method == "GET" and "/cdn/" in path]
    assert gets == [None, f"bytes={10 * 1024 * 1024}-"]


def test_a_model_that_the_hub_does_not_have_is_refused(downloader: Downloader) -> None:
    answer = downloader.download("owner/absent")
    assert answer["error"] == "ModelRefusedError"
    assert "has no model owner/absent" in answer["message"]
    assert downloader.endpoint in answer["message"]


def test_a_private_model_needs_the_token(downloader: Downloader, hub: Hub) -> None:
    hub.private.add(MODEL)
    answer = downloader.download(MODEL)
    assert answer["error"] == "ModelRefusedError"
    assert "HF_TOKEN" in answer["message"]
    assert "folder" in downloader.download(MODEL, HF_TOKEN=TOKEN)


def test_a_gated_model_names_the_remedy(downloader: Downloader, hub: Hub) -> None:
    hub.gated.add(MODEL)
    answer = downloader.download(MODEL)
    assert answer["error"] == "ModelRefusedError"
    assert "terms" in answer["message"]


@pytest.mark.parametrize("fault", ["down", "unreachable", "offline"])
def test_a_hub_out_of_reach_may_be_tried_again(
    downloader: Downloader, hub: Hub, fault: str
) -> None:
    environ = {}
    if fault == "down":
        hub.is_down = True
    elif fault == "unreachable":
        environ = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    else:
        environ = {"HF_HUB_OFFLINE": "1"}
    answer = downloader.download(MODEL, **environ)
    assert answer["error"] == "HubUnreachableError"
    assert MODEL in answer["message"]


# --- folders --------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is(folder: Path) -> None:
    assert model_path(str(folder)) == folder.resolve()
    assert not is_hub_id(str(folder))


def test_a_file_is_no_model(folder: Path) -> None:
    with pytest.raises(ModelRefusedError, match="give the folder"):
        model_path(str(folder / "model.safetensors"))


@pytest.mark.parametrize("model", ["/no/such/folder", "tiny", "a/b/c", "../tiny", "owner/", ""])
def test_what_is_neither_folder_nor_hub_id_is_refused(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelRefusedError, match="neither a folder"):
        model_path(model)


def test_a_folder_goes_before_a_hub_id_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_model_folder(tmp_path / "owner" / "tiny")
    assert model_path(MODEL) == (tmp_path / "owner" / "tiny").resolve()
