"""The slots of an Ollama that all processes of a machine share: each is a file lock, which ends with its holder.

Each Ollama has one directory, which may belong to another user or be planted: links in it are not followed, nothing is
overwritten, and its content is trusted for nothing but the slots.
"""

import errno
import hashlib
import os
import stat
import tempfile
import time
from urllib.parse import urlsplit

from ..file_locks import try_lock, unlock

FOLDER = "llama-api-slots"
# Visible to all services of a machine, unlike /tmp (systemd's PrivateTmp), and emptied at boot.
BASES = ("/run/lock", "/dev/shm")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EVERYBODY = 0o777 | stat.S_ISVTX
OPENING_TRIES = 20  # of a folder that another user is just creating


def identity(url: str) -> str:
    """A name for the Ollama at ``url``: the host's letter case, the default port and a last slash do not change it."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    canonical = f"{parts.scheme}://{parts.hostname}:{port}{parts.path.rstrip('/')}"
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def open_folder(url: str) -> int:
    """Open the directory of the slots of the Ollama at ``url``, created if missing, and return its descriptor.

    It is in systemd's $RUNTIME_DIRECTORY, which instances of our unit share, else in a directory visible to all
    services. Raises OSError when none is writable.
    """
    name = identity(url)
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    for base in (*([runtime] if runtime else ()), *BASES):
        try:
            return _open_below(base, name)
        except OSError:
            pass  # missing, not writable or not usable: try the next one
    return _open_below(tempfile.gettempdir(), name)


def _open_below(base: str, name: str) -> int:
    outer = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        folder = _ours(FOLDER, outer)
    finally:
        os.close(outer)
    try:
        return _ours(name, folder)
    finally:
        os.close(folder)


def _ours(name: str, parent: int) -> int:
    """Open the directory ``name`` in ``parent`` for use by all users, created if missing."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        pass
    for attempt in range(OPENING_TRIES):
        try:
            return _opened(name, parent)
        except PermissionError:  # its creator has not opened it to others yet
            if attempt == OPENING_TRIES - 1:
                raise
            time.sleep(0.005)
    raise AssertionError("unreachable")


def _opened(name: str, parent: int) -> int:
    folder = os.open(name, _FOLDER_FLAGS, dir_fd=parent)
    try:
        found = os.fstat(folder)
        if found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) != _EVERYBODY:
            os.fchmod(folder, _EVERYBODY)
        elif found.st_uid not in (0, os.geteuid()) and not found.st_mode & stat.S_ISVTX:
            raise OSError(f"{name} lets others swap the files in it")
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
            raise PermissionError(f"{name} cannot be written")
        return folder
    except BaseException:
        os.close(folder)
        raise


class Unusable(OSError):
    """The name of our file is taken by something else, or another user is just creating the file."""


_UNUSABLE = {errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO}


def open_file(folder: int, name: str, writable: bool = True) -> int:
    """Open the file ``name`` in ``folder``, created for all users if missing.

    Raises Unusable, or another OSError if no file can be opened or created.
    """
    try:
        file = _open_or_make(folder, name, writable)
    except OSError as error:
        if error.errno in _UNUSABLE:
            raise Unusable(error.errno, error.strerror, name) from error
        raise
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(file)
        raise Unusable(errno.EINVAL, "not a plain file", name)
    return file


def _open_or_make(folder: int, name: str, writable: bool) -> int:
    how = _FILE_FLAGS | (os.O_RDWR if writable else os.O_RDONLY)
    try:  # not O_CREAT at once: the kernel refuses that for another's file in such a folder (fs.protected_regular)
        return os.open(name, how, dir_fd=folder)
    except FileNotFoundError:
        pass
    try:
        file = os.open(name, how | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    except FileExistsError:
        return os.open(name, how, dir_fd=folder)
    os.fchmod(file, 0o666)
    return file


class SlotFiles:
    """At most ``number`` slots of one Ollama, each a lock on a file in ``folder``, counted over all processes.

    Processes with different numbers may use the same folder: each keeps to its own number and counts all held slots.
    """

    def __init__(self, folder: int, number: int):
        self._folder, self._number = folder, number
        self._files: dict[int, int] = {}  # by slot
        self._held: set[int] = set()

    def take(self) -> int | None:
        """Lock a free slot and return it, or None."""
        for slot in range(self._number):
            if slot in self._held or (file := self._opened(slot)) is None or not try_lock(file):
                continue
            self._held.add(slot)
            # Processes with a larger number use files beyond ours, which count too.
            if self._exists(self._number) and len(self._held) + self.held_elsewhere() > self._number:
                self.give_back(slot)
                return None
            return slot
        return None

    def give_back(self, slot: int) -> None:
        """Unlock ``slot``."""
        self._held.discard(slot)
        unlock(self._files[slot])

    def close(self) -> None:
        """Close the files, which gives all slots back."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()
        self._held.clear()

    def held_elsewhere(self) -> int:
        """How many slots other processes hold."""
        count = slot = 0
        while self._exists(slot):
            if slot not in self._held:
                file = self._opened(slot)
                # Shared, so that simultaneous counts do not count each other.
                if file is not None and try_lock(file, shared=True):
                    unlock(file)
                else:
                    count += 1
            slot += 1
        return count

    def _opened(self, slot: int) -> int | None:
        """The file of ``slot``, created if missing; None if that fails, which counts as held."""
        if slot not in self._files:
            try:
                self._files[slot] = open_file(self._folder, f"slot-{slot}", writable=False)
            except OSError:  # another user is just creating it, or it was planted
                return None
        return self._files[slot]

    def _exists(self, slot: int) -> bool:
        """Whether the file of ``slot`` exists; the files are created in order."""
        if slot in self._files:
            return True
        try:
            os.stat(f"slot-{slot}", dir_fd=self._folder, follow_symlinks=False)
        except OSError:
            return False
        return True
