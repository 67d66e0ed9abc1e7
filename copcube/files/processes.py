"""Identifying a process and its machine, and whether it still runs."""

import os
import socket
import uuid
from functools import cache
from pathlib import Path


@cache
def machine() -> str:
    """Identity of the machine and container in which a number means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode():x}"


def runs(pid: int) -> bool:
    """Whether this machine has a process of a number; True if unknown."""
    if os.name != "posix":  # elsewhere `os.kill` would end the process instead of looking
        return True
    try:
        os.kill(pid, 0)
        # A killed process keeps its number until its parent has asked how it ended.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in ("Z", "X")
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to another user, or there is no /proc
        return True
