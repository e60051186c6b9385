"""File locks between processes. The kernel frees a lock when its holder dies."""

import fcntl
import os
from pathlib import Path


def try_lock(descriptor: int, shared: bool = False) -> bool:
    """Lock the file of ``descriptor`` unless another process holds it; ``shared`` locks coexist. Never waits."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Free the lock of ``descriptor``, which stays open."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def lock_file(path: str | Path) -> int | None:
    """Lock the file at ``path``, created if missing, and return the descriptor, which holds the lock until closed.

    Returns None when another process holds it. Raises OSError.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if try_lock(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def is_held(path: Path) -> bool:
    """Whether any process holds the lock at ``path``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
