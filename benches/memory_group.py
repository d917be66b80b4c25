"""A group of processes that together may take so much memory, page cache included, and read so much of a disk in a second.

Owns: the control groups of Linux, version 1 or 2, that shelf.py and slow_card.py make. They need root.
Refuses: to go on silently where no group can be made: it says so, and whoever asks `folder` knows.
"""

import contextlib
import os
import pathlib
import sys

ROOT = pathlib.Path("/sys/fs/cgroup")


class Group:
    """`limit`: bytes of memory. `read_bytes`: a second, of the disk that `path` lies on; None: as many as it can."""

    def __init__(self, name: str, limit: int, read_bytes: int | None = None, path: str = "/"):
        self.is_v1 = (ROOT / "memory/memory.limit_in_bytes").exists()
        self.folder, self.reads = None, None
        name = f"lowkey-{os.getpid()}-{name}"
        try:
            self.folder = self.made("memory", name)
            (self.folder / ("memory.limit_in_bytes" if self.is_v1 else "memory.max")).write_text(str(limit))
            if read_bytes is not None:
                self.reads = self.made("blkio", name) if self.is_v1 else self.folder
                device = disk_of(path)
                line = f"{device} {read_bytes}" if self.is_v1 else f"{device} rbps={read_bytes}"
                (self.reads / ("blkio.throttle.read_bps_device" if self.is_v1 else "io.max")).write_text(line)
        except OSError as error:
            self.remove()
            print(f"no memory group: {error}", file=sys.stderr)

    def made(self, kind: str, name: str) -> pathlib.Path:
        folder = (ROOT / kind if self.is_v1 else ROOT) / name
        folder.mkdir()
        return folder

    def enter(self):
        """Called in the child before it becomes the program."""
        for folder in {self.folder, self.reads} - {None}:
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak(self) -> int:
        if not self.folder:
            return 0
        return int((self.folder / ("memory.max_usage_in_bytes" if self.is_v1 else "memory.peak")).read_text())

    def n_killed(self) -> int:
        """Processes of the group that the kernel has killed for memory."""
        if not self.folder:
            return 0
        text = (self.folder / ("memory.oom_control" if self.is_v1 else "memory.events")).read_text()
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)

    def n_read(self) -> int:
        """Bytes that were read of disks since the group was made."""
        if not self.reads:
            return 0
        if not self.is_v1:
            text = (self.reads / "io.stat").read_text()
            return sum(int(word.removeprefix("rbytes=")) for word in text.split() if word.startswith("rbytes="))
        lines = (self.reads / "blkio.throttle.io_service_bytes").read_text().splitlines()
        return sum(int(line.split()[2]) for line in lines if line.split()[1] == "Read")

    def remove(self):
        for folder in {self.folder, self.reads} - {None}:
            with contextlib.suppress(OSError):
                folder.rmdir()
        self.folder = self.reads = None


def disk_of(path: str) -> str:
    """The numbers of the whole disk: what is limited is never a part of one."""
    number = os.stat(path).st_dev
    device = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    whole = device.parent if (device / "partition").exists() else device
    return (whole / "dev").read_text().strip()
