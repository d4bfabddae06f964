"""How much faster a pull is than the loop of one file at a time, and what memory it takes.

    python benchmarks/pull.py --bins DIR [--latency 0.02] [--sample 200]

Both read from the same local S3 server (moto's, in a process of its own) in the same run, with the latency added
to each request. The loop is timed over a sample of bins, metadata and image, and compared by time per bin.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import requests

ROOT = Path(__file__).resolve().parents[1]
BUCKET = "bins"


def loop(download: Callable[[str, Path], object], ids: list[str], folder: Path) -> float:
    """Seconds per bin of fetching one file after the other."""
    start = time.perf_counter()
    for id in ids:
        for key in (f"metadata/{id}.json", f"bin-images/{id}.jpg"):
            download(key, folder / Path(key).name)
    return (time.perf_counter() - start) / len(ids)


def pull(url: str, dest: Path, *options: str) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory in MB of `binsweep data pull`."""
    command = [sys.executable, "-m", "binsweep", "data", "pull", f"s3://{BUCKET}", str(dest), *options]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--endpoint", url], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the pull failed with status {status}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bins", type=Path, required=True, help="bins in the bucket's layout")
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--sample", type=int, default=200)
    options = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    script = [
        sys.executable,
        str(ROOT / "tests" / "s3_server.py"),
        "--load",
        str(options.bins),
        "--bucket",
        BUCKET,
    ]
    ids = sorted(path.stem for path in (options.bins / "bin-images").iterdir())
    with subprocess.Popen(script, stdout=subprocess.PIPE) as server, tempfile.TemporaryDirectory() as place:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}"
            requests.put(f"{url}/-/faults", params={"latency": options.latency}, timeout=10)
            compare(url, ids, options.sample, Path(place))
        finally:
            server.kill()


def compare(url: str, ids: list[str], sample: int, place: Path) -> None:
    """The loops, the pulls, and their ratios."""
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")

    def get_object(key: str, file: Path) -> None:
        file.write_bytes(client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    files = loop(lambda key, file: client.download_file(BUCKET, key, str(file)), ids[:sample], place)
    objects = loop(get_object, ids[:sample], place)
    print(f"one at a time, download_file: {1000 * files:.1f} ms a bin ({sample} bins)")
    print(f"one at a time, get_object:    {1000 * objects:.1f} ms a bin ({sample} bins)")
    for name, chosen in (("1,000 bins", ["--limit", "1000"]), (f"{len(ids):,} bins", [])):
        wall, cpu, memory = pull(url, place / name, *chosen)
        count = 1000 if chosen else len(ids)
        print(
            f"pull of {name}: {wall:.1f} s, {1000 * wall / count:.2f} ms a bin, {cpu:.1f} s of processor, "
            f"{memory:.0f} MB; {files * count / wall:.1f} times download_file, "
            f"{objects * count / wall:.1f} times get_object"
        )


if __name__ == "__main__":
    main()
