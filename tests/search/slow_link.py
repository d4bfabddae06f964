"""A link between two networks on which packets are late and some are lost, as by `tc netem`, which many kernels lack.

Each end is a TUN device; a process of its own (`python slow_link.py FD FD DELAY LOSS SEED`) carries the packets.
"""

import contextlib
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections.abc import Iterator

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 9000


def carry(ends: tuple[int, int], delay: float, loss: float, seed: int) -> None:
    """Pass packets from each end to the other, `delay` seconds late, and with the probability `loss` not at all."""
    draw, on_the_way, order = random.Random(seed), list[tuple[float, int, int, bytes]](), 0
    while True:
        wait = max(0.0, on_the_way[0][0] - time.monotonic()) if on_the_way else None
        for end in select.select(ends, [], [], wait)[0]:
            packet = os.read(end, 2 * MTU)
            if draw.random() >= loss:
                order += 1
                other = ends[1] if end == ends[0] else ends[0]
                heapq.heappush(on_the_way, (time.monotonic() + delay, order, other, packet))
        while on_the_way and on_the_way[0][0] <= time.monotonic():
            *_, end, packet = heapq.heappop(on_the_way)
            with contextlib.suppress(OSError):  # the other end is not up yet, or any more
                os.write(end, packet)


@contextlib.contextmanager
def slow_link(names: tuple[str, str], delay: float, loss: float) -> Iterator[None]:
    """Two devices, one at each end; packets are late by `delay` seconds in each direction."""
    ends = tuple(_tun(name) for name in names)
    words = [sys.executable, __file__, *map(str, ends), str(delay), str(loss), "0"]
    with subprocess.Popen(words, pass_fds=ends) as carrier:
        for end in ends:
            os.close(end)
        try:
            yield
        finally:
            carrier.kill()


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return end


if __name__ == "__main__":
    carry((int(sys.argv[1]), int(sys.argv[2])), float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
