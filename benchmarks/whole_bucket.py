"""A pull of a bucket as large as the public one: processor time of each phase and peak memory.

    python benchmarks/whole_bucket.py [--images 535234]

The server is a stub in another process that answers listings, metadata and tiny images from memory.
"""

import argparse
import asyncio
import hashlib
import io
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "src")

from binsweep.data.s3.address import parse_address  # noqa: E402
from binsweep.data.s3.bucket import open_bucket  # noqa: E402
from binsweep.data.s3.listing import Selection  # noqa: E402
from binsweep.data.s3.pull import pull  # noqa: E402

PAGE = 1000
KINDS = 6


def picture(shade: int) -> bytes:
    """A JPEG of 8 x 8 pixels."""
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (40 * shade,) * 3).save(stream, "JPEG")
    return stream.getvalue()


def document(count: int) -> bytes:
    """Metadata as the public bucket has it, of so many items."""
    item = {
        "asin": "B000",
        "name": "Thing " * 8,
        "quantity": count,
        "weight": {"unit": "pounds", "value": 0.4},
    }
    return json.dumps(
        {"BIN_FCSKU_DATA": {"B000": item} if count else {}, "EXPECTED_QUANTITY": count}
    ).encode()


BODIES = {"bin-images": [picture(k) for k in range(KINDS)], "metadata": [document(k) for k in range(KINDS)]}
ETAGS = {kind: [hashlib.md5(body).hexdigest() for body in bodies] for kind, bodies in BODIES.items()}
SUFFIXES = {"bin-images": "jpg", "metadata": "json"}


class Stub(asyncio.Protocol):
    """Enough of S3 for a pull."""

    images = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.rest = transport, b""

    def data_received(self, data: bytes) -> None:
        *requests, self.rest = (self.rest + data).split(b"\r\n\r\n")
        for request in requests:
            path = urlsplit(request.split(b" ", 2)[1].decode())
            body, etag = self.listing(path.query) if path.query else self.content(path.path)
            head = f'HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nETag: "{etag}"\r\n\r\n'
            self.transport.write(head.encode() + body)

    def content(self, path: str) -> tuple[bytes, str]:
        kind, name = path.split("/")[2:]
        shade = int(name.partition(".")[0]) % KINDS
        return BODIES[kind][shade], ETAGS[kind][shade]

    def listing(self, query: str) -> tuple[bytes, str]:
        start = int(unquote(parse_qs(query).get("continuation-token", ["0"])[0]))
        keys = []
        for place in range(start, min(start + PAGE, 2 * self.images)):
            kind = "bin-images" if place < self.images else "metadata"
            number = place % self.images
            keys.append(
                f"<Contents><Key>{kind}/{number:06d}.{SUFFIXES[kind]}</Key><LastModified>2024-01-01T00:00:00.000Z"
                f"</LastModified><ETag>&quot;{ETAGS[kind][number % KINDS]}&quot;</ETag>"
                f"<Size>{len(BODIES[kind][number % KINDS])}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            )
        more = start + PAGE < 2 * self.images
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        text = (
            f"<ListBucketResult><Name>bins</Name><KeyCount>{len(keys)}</KeyCount><IsTruncated>"
            f"{str(more).lower()}</IsTruncated>{token}{''.join(keys)}</ListBucketResult>"
        )
        return text.encode(), ""


async def serve(images: int) -> None:
    """Serve until ended; prints the port."""
    Stub.images = images
    server = await asyncio.get_running_loop().create_server(Stub, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def measure(port: int, images: int) -> None:
    """Pull everything and print what each phase cost this process."""
    phases: dict[str, tuple[float, float]] = {}

    def report(phase: str, done: int, total: int) -> None:
        phases.setdefault(phase, (time.process_time(), time.perf_counter()))

    with tempfile.TemporaryDirectory() as folder:
        bucket = open_bucket(parse_address("s3://bins"), f"http://127.0.0.1:{port}")
        pulled = pull(bucket, Path(folder) / "dest", Selection(), report)
        size = (Path(folder) / "dest" / "manifest.parquet").stat().st_size
        phases["end"] = (time.process_time(), time.perf_counter())
        assert pulled.images == images and pulled.problems == 0
        names = list(phases)
        for name, following in itertools.pairwise(names):
            cpu, wall = (phases[following][k] - phases[name][k] for k in (0, 1))
            print(f"{name}: {cpu:.1f} s of processor, {wall:.1f} s in all")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{images:,} images, manifest of {size / 1e6:.1f} MB, peak memory {peak:.0f} MB")


def main() -> None:
    """Start the stub, measure, end the stub."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=535_234)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.images))
        return
    os.environ |= {"AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, __file__, "--serve", "--images", str(options.images)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            measure(int(server.stdout.readline()), options.images)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
