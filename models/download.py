"""Downloads pre-trained weights by the libraries' own means: with progress, checked by their hash, tried again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from binsweep.models.backbones.architecture import WeightsSource

OFFLINE = "BINSWEEP_OFFLINE"  # set to 1, nothing is downloaded
ATTEMPTS = 3
SECONDS_BETWEEN = 1.0  # doubled after every attempt
TIMEOUT_SECONDS = 30.0  # without a single byte
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,})\.")


class DownloadError(Exception):
    """Weights that cannot be had; the message says from where and why."""


def is_offline() -> bool:
    """Whether this process may download nothing: BINSWEEP_OFFLINE=1, or the Hugging Face Hub's HF_HUB_OFFLINE=1."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in (OFFLINE, "HF_HUB_OFFLINE"))


def cached_file(source: WeightsSource) -> Path | None:
    """The weights' file, if an earlier download left it in the library's cache."""
    if source.hub:
        from huggingface_hub import try_to_load_from_cache  # slow, and needed for a part of the networks only

        repository, revision = _repository(source)
        for name in source.files:
            found = try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(found, str):
                return Path(found)
    if not source.url:
        return None
    file = _hub_folder() / source.url.rsplit("/", 1)[1]
    return file if file.is_file() else None


def download(source: WeightsSource) -> Path:
    """Fetch the weights into the library's cache; ATTEMPTS times, if the connection breaks or their hash is wrong.

    Raises DownloadError.
    """
    place = f"{source.hub} of the Hugging Face Hub" if source.hub else source.url
    print(f"downloading weights from {place}", file=sys.stderr)
    for attempt in range(ATTEMPTS):
        try:
            with _timeout():
                return _from_hub(source) if source.hub else _from_url(source.url)
        except Exception as error:  # of the libraries and of the network, of many types
            reason = (str(error) or type(error).__name__).splitlines()[0]
            if attempt + 1 == ATTEMPTS:
                raise DownloadError(f"{place}: {reason}") from error
            print(f"attempt {attempt + 1} of {ATTEMPTS} failed: {reason}", file=sys.stderr)
            time.sleep(SECONDS_BETWEEN * 2**attempt)
    raise AssertionError("unreachable")


def _from_url(url: str) -> Path:
    file = _hub_folder() / url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    named = _HASH_IN_NAME.search(file.name)
    torch.hub.download_url_to_file(url, str(file), named and named[1], progress=sys.stderr.isatty())
    return file


def _from_hub(source: WeightsSource) -> Path:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    _require_connection(constants.ENDPOINT)
    repository, revision = _repository(source)
    for name in source.files:
        with contextlib.suppress(RemoteEntryNotFoundError):
            file = Path(hf_hub_download(repository, name, revision=revision, etag_timeout=TIMEOUT_SECONDS))
            break
    else:
        raise FileNotFoundError(f"it has none of {', '.join(source.files)}")
    # The Hub names large files by their SHA-256, and compares only their sizes itself.
    stored = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        with stored.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != stored.name:
            stored.unlink()
            file.unlink(missing_ok=True)
            raise RuntimeError(f'invalid hash value (expected "{stored.name}", got "{digest}")')
    return file


def _require_connection(address: str) -> None:
    """Raise OSError where nothing can be reached; the Hub's package would try for half a minute, and log each time."""
    parts = urlsplit(address)
    if parts.scheme not in getproxies():
        port = parts.port or (80 if parts.scheme == "http" else 443)
        socket.create_connection((parts.hostname or "", port), TIMEOUT_SECONDS).close()


def _repository(source: WeightsSource) -> tuple[str, str | None]:
    name, _, revision = source.hub.partition("@")
    return name, revision or None


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


@contextlib.contextmanager
def _timeout() -> Iterator[None]:
    """torch.hub would wait for a silent server for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
