"""Nodes read tensors from each other, over real sockets, and from the gateway where that fails."""

import http.client
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from broker.codec import encode_control
from broker.control import ModelManifest, TensorOffer
from nodes.checkpoint import DamagedTensorError, MissingTensorError, TensorSource
from nodes.neighbours import Neighbours, ranges_of
from nodes.shelf import Shelf
from nodes.sources import Kind, Source, SourceBook
from nodes.tensor_cache import TensorCache
from nodes.tensor_urls import asked_tensor, tensor_url
from tests.support.checkpoints import manifest_of, write_checkpoint
from tests.support.range_server import Answer, RangeServer, serve_ranges
from tests.support.sharing import (
    KEY,
    everything,
    manifest_elsewhere,
    read_all,
    sharing,
    supply_of,
)
from tests.support.stored import floats_of

NAME = "model.layers.1.mlp.up_proj.weight"
NEXT = "model.layers.2.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture
def gateway(folder: Path) -> Iterator[RangeServer]:
    with serve_ranges(folder) as server:
        yield server


@pytest.fixture
def manifest(folder: Path, gateway: RangeServer) -> ModelManifest:
    return manifest_elsewhere(folder, gateway.url)


@pytest.fixture
def loose(folder: Path, tmp_path: Path) -> Path:
    """A folder with one file per tensor, as a neighbour that a script spoils would serve it."""
    described = manifest_of(folder)
    (tmp_path / "loose" / "tensors").mkdir(parents=True)
    for info in described.tensors.values():
        data = (folder / info.file).read_bytes()[info.offset : info.offset + info.num_bytes]
        (tmp_path / "loose" / "tensors" / info.checksum).write_bytes(data)
    return tmp_path / "loose"


class NotedBook(SourceBook):
    """Notes what was measured."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: list[tuple[Kind, int, float]] = []

    def measure(self, source: Source, num_bytes: int, seconds: float) -> None:
        self.measured.append((source.kind, num_bytes, seconds))


def contents(folder: Path) -> dict[str, bytes]:
    manifest = manifest_of(folder)
    return read_all(TensorSource(manifest), manifest)


def given(source: TensorSource) -> dict[str, int]:
    return {each.source: each.num_bytes for each in source.log.sources}


def get(url: str, **headers: str) -> tuple[int, bytes]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


# --- who is asked ---------------------------------------------------------------------------


def test_a_neighbour_with_the_folder_gives_all_and_the_gateway_nothing(
    folder: Path, manifest: ModelManifest, gateway: RangeServer
) -> None:
    with sharing(manifest_of(folder, tensor_key=KEY)) as offer:
        offer = msgspec.structs.replace(
            offer, tensors={manifest.revision: [(0, len(manifest.tensors))]}
        )
        source = TensorSource(manifest, supply_of({"attic": offer}))
        assert read_all(source, manifest) == contents(folder)
    total = sum(info.num_bytes for info in manifest.tensors.values())
    assert given(source) == {"neighbour attic": total}
    assert gateway.ranges == []


def test_every_range_is_measured_for_the_next_choice(manifest: ModelManifest) -> None:
    supply = replace(supply_of({}), book=NotedBook())
    TensorSource(manifest, supply).load_tensor(NAME)
    assert isinstance(supply.book, NotedBook)
    ((kind, num_bytes, seconds),) = supply.book.measured
    assert (kind, num_bytes) == (Kind.GATEWAY, manifest.tensors[NAME].num_bytes)
    assert seconds > 0


def test_what_a_node_has_fetched_it_hands_on_from_its_cache(
    folder: Path, manifest: ModelManifest, gateway: RangeServer, tmp_path: Path
) -> None:
    cache = TensorCache(tmp_path / "first")
    read_all(TensorSource(manifest, supply_of({}, tmp_path / "first")), manifest)
    asked = len(gateway.ranges)
    with sharing(manifest, cache) as offer:
        source = TensorSource(manifest, supply_of({"first": offer}, tmp_path / "second"))
        assert read_all(source, manifest) == contents(folder)
    assert offer.tensors == {manifest.revision: [(0, len(manifest.tensors))]}
    assert asked == len(gateway.ranges) == len(manifest.tensors)


def test_a_tensor_that_no_neighbour_announced_comes_from_the_gateway(
    folder: Path, manifest: ModelManifest, gateway: RangeServer, tmp_path: Path
) -> None:
    TensorSource(manifest, supply_of({}, tmp_path)).load_tensor(NAME)
    with sharing(manifest, TensorCache(tmp_path)) as offer:
        source = TensorSource(manifest, supply_of({"first": offer}))
        source.load_tensor(NAME)
        source.load_tensor(NEXT)
    position = sorted(manifest.tensors).index(NAME)
    assert offer.tensors == {manifest.revision: [(position, position + 1)]}
    num_bytes = manifest.tensors[NAME].num_bytes
    assert given(source) == {
        "neighbour first": num_bytes,
        f"gateway {urlsplit(gateway.url).netloc}": manifest.tensors[NEXT].num_bytes,
    }


def test_offers_of_other_revisions_and_of_oneself_are_not_followed() -> None:
    neighbours = Neighbours("self")
    offer = TensorOffer(session=2, url="http://a", tensors={"r": [(0, 2), (5, 7)]})
    neighbours.hear("self", offer)
    neighbours.hear("other", offer)
    neighbours.hear("other", msgspec.structs.replace(offer, session=1, url="http://old"))
    found = {position: [n.url for n in neighbours.holders("r", position)] for position in range(8)}
    assert [position for position, urls in found.items() if urls == ["http://a"]] == [0, 1, 5, 6]
    assert neighbours.holders("another", 0) == []
    neighbours.hear("other", None)
    assert neighbours.holders("r", 0) == []


def test_positions_are_announced_as_ranges() -> None:
    assert ranges_of([0, 1, 2, 5, 7, 8]) == [(0, 3), (5, 6), (7, 9)]
    assert ranges_of([]) == []


# --- when a source fails ----------------------------------------------------------------------

SERVE = """
import sys, threading
from pathlib import Path
from broker.codec import decode_control
from broker.control import ModelManifest
from nodes.shelf import Shelf
from nodes.tensor_server import TensorServer
manifest = decode_control(Path(sys.argv[1]).read_bytes(), ModelManifest)
server = TensorServer("127.0.0.1", 0)
shelf = Shelf("", None)
shelf.learn_manifest(manifest)
shelf.stock(manifest)
server.start(shelf)
print(server.port, flush=True)
threading.Event().wait()
"""


def test_a_neighbour_killed_in_mid_transfer_costs_nothing_that_has_arrived(
    tmp_path: Path,
) -> None:
    # Large enough not to fit into the sockets' buffers.
    folder = write_checkpoint(tmp_path / "model", vocab_size=200_000, num_hidden_layers=1)
    name = "model.embed_tokens.weight"
    with serve_ranges(folder) as gateway:
        manifest = manifest_elsewhere(folder, gateway.url)
        described = tmp_path / "manifest"
        described.write_bytes(encode_control(manifest_of(folder, tensor_key=KEY)))
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(described)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        url = f"http://127.0.0.1:{int(process.stdout.readline())}"
        arrived: list[int] = []

        def progress(num_bytes: int) -> None:
            arrived.append(num_bytes)
            process.send_signal(signal.SIGKILL)
            process.wait()

        supply = supply_of({"victim": everything(manifest, url)}, tmp_path / "cache")
        source = TensorSource(manifest, supply, progress)
        tensor = source.load_tensor(name)
        process.stdout.close()
    info = manifest.tensors[name]
    assert floats_of(tensor).numpy().tobytes() == contents(folder)[name]
    by_source = given(source)
    assert 0 < by_source["neighbour victim"] < info.num_bytes
    # Nothing came twice: the gateway gave the rest, from where the neighbour broke off.
    assert sum(by_source.values()) == sum(arrived) == info.num_bytes
    start = info.offset + by_source["neighbour victim"]
    assert gateway.ranges == [(start, info.offset + info.num_bytes - 1)]


def test_a_damaged_range_comes_again_from_elsewhere_and_its_source_is_named_and_left(
    manifest: ModelManifest,
    gateway: RangeServer,
    loose: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serve_ranges(loose, lambda number: Answer(flip=5)) as spoiled:
        offers = {"spoiled": everything(manifest, spoiled.url)}
        source = TensorSource(manifest, supply_of(offers, tmp_path / "cache"))
        for name in (NAME, NEXT):
            source.load_tensor(name)
    (bad, good) = source.log.sources
    assert (bad.source, bad.problems) == ("neighbour spoiled", 1)
    assert bad.last_problem == f"{NAME}: checksum differs"
    assert bad.num_bytes == manifest.tensors[NAME].num_bytes  # one range, and no more
    assert len(gateway.ranges) == 2
    assert good.problems == 0
    assert f"tensor {NAME} from neighbour spoiled: checksum differs" in caplog.text


def test_another_neighbour_goes_on_before_the_gateway_is_asked(
    folder: Path, manifest: ModelManifest, gateway: RangeServer, loose: Path
) -> None:
    with (
        serve_ranges(loose, lambda number: Answer(drop_after=500)) as weak,
        serve_ranges(loose) as strong,
    ):
        offers = {
            "weak": everything(manifest, weak.url),
            "strong": everything(manifest, strong.url),
        }
        source = TensorSource(manifest, supply_of(offers))
        assert read_all(source, manifest) == contents(folder)
    assert gateway.ranges == []
    problems = {each.source: each.problems for each in source.log.sources}
    assert problems == {"neighbour weak": 1, "neighbour strong": 0}


def test_a_neighbour_that_lacks_one_tensor_is_asked_for_the_next(
    manifest: ModelManifest, gateway: RangeServer, loose: Path
) -> None:
    answers = {0: Answer(status=404)}
    with serve_ranges(loose, lambda number: answers.get(number, Answer())) as forgetful:
        source = TensorSource(manifest, supply_of({"a": everything(manifest, forgetful.url)}))
        source.load_tensor(NAME)
        source.load_tensor(NEXT)
    assert len(gateway.ranges) == 1
    assert given(source)["neighbour a"] == manifest.tensors[NEXT].num_bytes


def test_without_a_gateway_a_neighbour_that_broke_off_is_asked_once_more(
    folder: Path, loose: Path
) -> None:
    manifest = manifest_elsewhere(folder)
    answers = {0: Answer(drop_after=700)}
    with serve_ranges(loose, lambda number: answers.get(number, Answer())) as only:
        source = TensorSource(manifest, supply_of({"only": everything(manifest, only.url)}))
        source.load_tensor(NAME)
    num_bytes = manifest.tensors[NAME].num_bytes
    assert only.ranges == [(0, num_bytes - 1), (700, num_bytes - 1)]


def test_when_nobody_gives_a_tensor_each_source_is_named_with_its_reason(
    folder: Path, loose: Path
) -> None:
    with (
        serve_ranges(loose, lambda number: Answer(flip=1)) as spoiled,
        serve_ranges(folder, lambda number: Answer(status=403)) as refusing,
    ):
        manifest = manifest_elsewhere(folder, refusing.url)
        offers = {"spoiled": everything(manifest, spoiled.url)}
        progress: list[int] = []
        source = TensorSource(manifest, supply_of(offers), progress.append)
        with pytest.raises(DamagedTensorError) as caught:
            source.load_tensor(NAME)
    message = str(caught.value)
    assert f"tensor {NAME} of {manifest.tensors[NAME].file}" in message
    assert "neighbour spoiled" in message
    assert "checksum differs" in message
    assert f"gateway {urlsplit(refusing.url).netloc}" in message
    assert "signature=" not in message
    assert sum(progress) == 0


def test_what_has_arrived_survives_a_restart(folder: Path, loose: Path, tmp_path: Path) -> None:
    manifest = manifest_elsewhere(folder)
    with serve_ranges(loose, lambda number: Answer(drop_after=600)) as weak:
        source = TensorSource(
            manifest, supply_of({"weak": everything(manifest, weak.url)}, tmp_path / "cache")
        )
        with pytest.raises(MissingTensorError):
            source.load_tensor(NAME)
    # Another process: nothing but the folder is left of the first.
    with serve_ranges(loose) as strong:
        progress: list[int] = []
        offers = {"strong": everything(manifest, strong.url)}
        again = TensorSource(manifest, supply_of(offers, tmp_path / "cache"), progress.append)
        tensor = again.load_tensor(NAME)
    num_bytes = manifest.tensors[NAME].num_bytes
    assert floats_of(tensor).numpy().tobytes() == contents(folder)[NAME]
    assert strong.ranges == [(1200, num_bytes - 1)]
    assert given(again) == {"cache": 1200, "neighbour strong": num_bytes - 1200}
    assert sum(progress) == num_bytes


# --- what is served ---------------------------------------------------------------------------


def test_only_ranges_of_announced_tensors_are_given_to_who_has_the_key(
    folder: Path, tmp_path: Path
) -> None:
    partial = Path(shutil.copytree(folder, tmp_path / "partial"))
    manifest = manifest_of(partial, tensor_key=KEY)
    info = manifest.tensors[NAME]
    hidden = next(i for i in manifest.tensors.values() if i.file != info.file)
    (partial / hidden.file).unlink()
    with sharing(manifest) as offer:
        good = tensor_url(offer.url, KEY, info.checksum)
        status, body = get(good, Range="bytes=100-299")
        assert (status, body) == (206, contents(folder)[NAME][100:300])
        assert get(tensor_url(offer.url, "guessed", info.checksum), Range="bytes=0-9")[0] == 404
        assert get(f"{offer.url}/tensors/{info.checksum}", Range="bytes=0-9")[0] == 404
        assert get(tensor_url(offer.url, KEY, hidden.checksum), Range="bytes=0-9")[0] == 404
        assert get(f"{offer.url}/tensors/../../etc/passwd", Range="bytes=0-9")[0] == 404
        for wrong in (
            "bytes=0-",
            "bytes=-5",
            "bytes=9-3",
            f"bytes=0-{info.num_bytes}",
            "lines=1-2",
        ):
            assert get(good, Range=wrong)[0] == 416, wrong


def test_the_key_before_the_newest_is_still_good_and_older_ones_are_not(folder: Path) -> None:
    shelf = Shelf("http://here", None)
    manifests = [manifest_of(folder, tensor_key=key) for key in ("first", "second", "third")]
    checksum = manifests[0].tensors[NAME].checksum
    for manifest in manifests:
        shelf.learn_manifest(manifest)
        shelf.learn_manifest(manifest)
    shelf.stock(manifests[-1])
    targets = {key: tensor_url("", key, checksum) for key in ("first", "second", "third", "")}
    assert [key for key, target in targets.items() if shelf.find(target)] == ["second", "third"]


def test_a_model_without_a_key_is_handed_to_nobody(folder: Path) -> None:
    manifest = manifest_of(folder)
    shelf = Shelf("http://here", None)
    shelf.learn_manifest(manifest)
    shelf.stock(manifest)
    assert shelf.find(tensor_url("", "", manifest.tensors[NAME].checksum)) is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda url: url.replace("signature", "signed"),
        lambda url: url + "0",
        lambda url: url + "&signature=" + "0" * 64,
        lambda url: url.replace("/tensors/", "/tensors/0"),
        lambda url: url.replace("/tensors/", "/weights/"),
        lambda url: url[:-1] + "\u00e4",
    ],
)
def test_a_changed_address_is_nobodys(spoil: object) -> None:
    url = tensor_url("", KEY, "ab" * 32)
    assert asked_tensor(url, [KEY]) == "ab" * 32
    assert callable(spoil)
    assert asked_tensor(spoil(url), [KEY]) is None
