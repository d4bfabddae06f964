"""This machine among others: which boot of which machine it is, and whether others may share a disk with it."""

import functools
import os
import re
import time
from pathlib import Path

SIGN_SECONDS = 3.0  # between two signs of life on a shared disk
MAX_SILENT_SECONDS = 5 * SIGN_SECONDS  # after which who gives none is taken for dead

# File systems that several machines may have mounted at once; those in user space (fuse) may be anything.
_SHARED = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gfs2", "gpfs", "lustre"),
    *("nfs", "nfs4", "ocfs2", "orangefs", "panfs", "smb3", "virtiofs", "wekafs"),
)
_MOUNTS = Path("/proc/self/mountinfo")


@functools.cache
def boot_id() -> str:
    """What tells the machine's present boot from others, and from those of other machines; empty where the system does
    not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_shared(folder: Path) -> bool:
    """Whether other machines may use the disk of a folder, too; False where the system does not say."""
    kind = file_system(folder)
    return kind in _SHARED or kind == "fuse" or kind.startswith("fuse.")


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, such as ext4 or nfs4; empty where the system does not say."""
    try:
        lines = _MOUNTS.read_text().splitlines()
    except OSError:
        return ""
    place, found, longest = os.path.realpath(folder), "", -1
    for line in lines:
        mount, _, rest = line.partition(" - ")
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), mount.split()[4])
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:  # of several at one place, the last one is seen
            found, longest = rest.split()[0], len(point)
    return found


def gives_signs(path: Path) -> bool:
    """Whether somebody on another machine, whose lock of a file may not be seen here, writes to it while we look."""
    first, deadline = None, time.monotonic() + MAX_SILENT_SECONDS
    while time.monotonic() < deadline:
        now = path.read_bytes()  # opened each time: a network's file system then asks its server
        first = now if first is None else first
        if now != first:
            return True
        time.sleep(SIGN_SECONDS / 3)
    return False
