"""Weights from a server on this machine: what is broken is fetched again, and nothing is fetched where that is off."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from binsweep.data.errors import UserError
from binsweep.models import download as downloads
from binsweep.models.backbones.architecture import WeightsSource
from binsweep.models.download import ATTEMPTS, DownloadError, cached_file, download
from binsweep.models.pretrained import check_weights, weights_file

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Answers with CONTENT: at first `cut` times with half of it, and `wrong` times with other bytes."""

    cut: int = 0
    wrong: int = 0
    requests: list[str] = field(default_factory=list)
    url: str = ""

    def body(self) -> tuple[bytes, int]:
        """What is sent, and the length that is announced."""
        if self.cut > 0:
            self.cut -= 1
            return CONTENT[: len(CONTENT) // 2], len(CONTENT)
        if self.wrong > 0:
            self.wrong -= 1
            return CONTENT[::-1], len(CONTENT)
        return CONTENT, len(CONTENT)


@contextmanager
def serving(plan: Server) -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._begin(len(CONTENT))

        def do_GET(self) -> None:
            if not self.path.endswith((".pth", ".safetensors")):
                self._begin(0)
                return
            plan.requests.append(self.path)
            body, length = plan.body()
            self._begin(length)
            self.wfile.write(body)

        def _begin(self, length: int) -> None:
            missing = not self.path.endswith((".pth", ".safetensors"))
            self.send_response(404 if missing else 200)
            # As the Hugging Face Hub names a large file and the commit that it is of.
            self.send_header("ETag", f'"{DIGEST}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("X-Error-Code", "EntryNotFound" if missing else "")
            self.send_header("Content-Length", str(0 if missing else length))
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    plan.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield plan
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("BINSWEEP_OFFLINE", raising=False)
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN", 0.01)


def source_at(server: Server, digest: str = DIGEST) -> WeightsSource:
    return WeightsSource(url=f"{server.url}/network-{digest[:8]}.pth")


def test_a_broken_connection_and_wrong_bytes_are_tried_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Server(cut=1, wrong=1)) as server:
        source = source_at(server)
        assert cached_file(source) is None
        file = download(source)
        assert file.read_bytes() == CONTENT
        assert len(server.requests) == 3
        assert cached_file(source) == file  # so that it is fetched once
    said = capsys.readouterr().err
    assert server.url in said and "attempt 1 of 3 failed" in said and "attempt 2 of 3 failed" in said


def test_a_wrong_checksum_leaves_no_file() -> None:
    with serving(Server()) as server:
        source = source_at(server, "0" * 64)
        with pytest.raises(DownloadError, match="invalid hash value"):
            download(source)
        assert len(server.requests) == ATTEMPTS
        assert cached_file(source) is None


def test_a_server_that_is_gone_is_named() -> None:
    with serving(Server()) as server:
        source = source_at(server)
    with pytest.raises(DownloadError, match=f"{server.url}.*refused"):
        download(source)


HUB = """
import sys
from binsweep.models import download as downloads
from binsweep.models.backbones.architecture import WeightsSource
downloads.SECONDS_BETWEEN = 0.01
source = WeightsSource(hub="timm/some_network.tag", files=("model.safetensors", "pytorch_model.bin"))
assert downloads.cached_file(source) is None
try:
    file = downloads.download(source)
except downloads.DownloadError as error:
    print(error)
else:
    assert downloads.cached_file(source) == file
    print(len(file.read_bytes()))
"""


def from_hub(server: Server, folder: Path) -> str:
    """The Hub's address is read when its package is imported, so this is a process of its own."""
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HUB], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_the_hub_s_files_are_checked_by_the_hash_that_it_names(tmp_path: Path) -> None:
    with serving(Server(wrong=1)) as server:
        assert from_hub(server, tmp_path / "right") == str(len(CONTENT))
        assert len(server.requests) == 2 and "/timm/some_network.tag/resolve/" in server.requests[0]
    with serving(Server(wrong=ATTEMPTS)) as server:
        assert "invalid hash value" in from_hub(server, tmp_path / "wrong")
    assert "refused" in from_hub(server, tmp_path / "gone")


def test_offline_nothing_is_asked_for_and_the_message_says_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BINSWEEP_OFFLINE", "1")
    for backbone, place in (("convnext_tiny", "checkpoints"), ("timm/test_vit", "timm/test_vit.r160_in1k")):
        with pytest.raises(UserError, match="are not on this machine") as caught:
            check_weights(backbone, "imagenet")
        assert "BINSWEEP_OFFLINE" in caught.value.message
        assert "efficientnet_lite0" in caught.value.hint and place in caught.value.hint


def test_only_the_check_before_a_sweep_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker on another node takes the weights from the driver instead."""
    with serving(Server()) as server:
        monkeypatch.setattr("binsweep.models.pretrained.weights_source", lambda name: source_at(server))
        with pytest.raises(UserError, match="are not on this machine"):
            weights_file("convnext_tiny", "imagenet")
        assert not server.requests
        file = weights_file("convnext_tiny", "imagenet", may_download=True)
        assert file is not None and weights_file("convnext_tiny", "imagenet") == file
        with pytest.raises(UserError, match="is not a state dict"):  # it is looked at before anything starts
            check_weights("convnext_tiny", "imagenet")


def test_a_file_and_a_folder_serve_a_network_of_a_library(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from binsweep.models.backbones.library import find_architecture

    state = find_architecture("timm/test_vit", 160).create(None).state_dict()
    save_file(state, tmp_path / "test_vit.safetensors")
    check_weights("timm/test_vit", str(tmp_path))
    torch.save({key: value for key, value in state.items() if "blocks.0" not in key}, tmp_path / "part.pth")
    with pytest.raises(UserError, match="does not fit timm/test_vit"):
        check_weights("timm/test_vit", str(tmp_path / "part.pth"))
