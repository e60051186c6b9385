"""The directory in which the workers share their figures, in files that prometheus_client maps into memory."""

import os
import shutil
import tempfile

MEMORY = "/dev/shm"
ROOM = 16 * 2**20  # bytes free; the figures of a worker take less than 100 KB
# logind removes a regular user's (not a system user's) files from /dev/shm when that user logs out.
LOGIND = "/run/systemd/users"
FIRST_PERSON = 1000


def make_directory() -> str:
    """Make the directory, in memory if possible, as a full disk under its files would kill a worker."""
    return tempfile.mkdtemp(prefix="llama_api-", dir=MEMORY if _is_fit() else None)


def _is_fit() -> bool:
    """Whether files in ``MEMORY`` have room, and stay."""
    if os.geteuid() >= FIRST_PERSON and os.path.isdir(LOGIND):
        return False
    try:
        return os.access(MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(MEMORY).free >= ROOM
    except OSError:
        return False
