"""Weights on their way: a gateway's signed URLs, read by a node that has no folder."""

import asyncio
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from gateway.weights import UrlSigner, with_urls
from nodes.checkpoint import TensorSource
from tests.support.fake_engine import FakeEngine
from tests.support.gateway_api import Api, settings_for
from tests.support.model_folder import write_model_folder
from tests.support.stored import floats_of


async def test_a_node_without_the_folder_reads_every_tensor_and_the_tokenizer_from_its_gateway(
    tmp_path: Path,
) -> None:
    folder = write_model_folder(tmp_path / "model")
    settings = settings_for(folder, tmp_path / "state", public_url="http://gateway.test")
    api = Api(FakeEngine(lambda _generation: []), settings)
    assert api.slot.served is not None
    manifest = api.slot.served.manifest
    assert manifest.folder is None
    async with api.served() as url:
        signer = UrlSigner(b"k" * 32, url)
        source = TensorSource(with_urls(manifest, signer, int(time.time()) + 60))
        read = {
            name: await asyncio.to_thread(source.load_tensor, name) for name in manifest.tensors
        }
        tokenizer = await asyncio.to_thread(source.load_tokenizer)
    assert tokenizer == (folder / "tokenizer.json").read_bytes()
    expected = load_file(folder / "model.safetensors")
    assert set(read) == set(expected)
    assert all(torch.equal(floats_of(read[name]), expected[name]) for name in expected)
