"""Slots that all processes of a machine share: one folder for each Ollama, a lock for each slot, freed at any death."""

import errno
import itertools
import os
import resource
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.upstreams import Slots
from llama_api.upstreams.queue_order import ALIVE_SECONDS
from llama_api.upstreams.slot_files import FOLDER, identity, open_folder
from tests.support.fakes import Clock, until

URL = "http://a:11434"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def ticking():
    """A clock on which nothing is too soon after anything."""
    return itertools.count(1000.0, 0.01).__next__


def folder_of(base, url=URL):
    """The path of the folder of an Ollama's slots."""
    os.close(open_folder(url))
    return next((base / FOLDER).iterdir())


@contextmanager
def limited(what, number):
    """Limit ``what`` this process may use."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (number, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


def no_more_files_than(number):
    """Leave this process that many files to open."""
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(number + 1)]  # each has the lowest number that is free
    for file in files:
        os.close(file)
    return limited(resource.RLIMIT_NOFILE, files[-1])


def full_disk():
    """Have each write of this process fail."""
    return limited(resource.RLIMIT_FSIZE, 0)


# The folder


@pytest.mark.parametrize("one, other, same", [
    ("http://a:1", "http://A:1/", True), ("http://a", "http://a:80", True), ("https://a", "https://a:443", True),
    ("http://a/x", "http://a/x/", True), ("http://[::1]:1", "http://[::1]:1/", True),
    ("http://a", "https://a", False), ("http://a:1", "http://a:2", False), ("http://a", "http://b", False),
    ("http://a/x", "http://a/X", False), ("http://a:11434", "http://a", False)])
def test_two_urls_of_one_ollama_are_one(one, other, same):
    """Letter case of the host, the default port and a trailing slash do not count; all else does."""
    assert (identity(one) == identity(other)) is same


def test_a_folder_is_for_everybody(slots_base):
    """Whatever the umask: services of several users share it, and none can take another's files away."""
    before = os.umask(0o077)
    try:
        Slots(URL, 1).take(1.0)
    finally:
        os.umask(before)
    for path in (slots_base / FOLDER, folder_of(slots_base)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o1777
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder_of(slots_base).iterdir()} == {0o666}


@as_root
def test_services_of_two_users_count_together(monkeypatch):
    """Though each makes files that the other finds."""
    with tempfile.TemporaryDirectory() as base:  # pytest's own can be entered by its owner alone
        os.chmod(base, 0o1777)
        monkeypatch.setenv("RUNTIME_DIRECTORY", base)
        ours = Slots(URL, 3, ticking())
        ours.take(1.0)
        child = os.fork()
        if child == 0:
            failed = True
            try:
                os.setuid(12345)
                theirs = Slots(URL, 3, ticking())
                failed = [theirs.take(1.0), theirs.take(1.0), theirs.take(1.0), theirs.held] != [1, 2, None, 3]
            finally:
                os._exit(failed)
        assert os.waitpid(child, 0)[1] == 0
        assert [ours.take(1.0), ours.take(1.0), ours.take(1.0)] == [1, 2, None]


@pytest.mark.parametrize("plant", ["link", "file", pytest.param("open", marks=as_root)])
def test_a_planted_folder_is_not_used(slots_base, tmp_path_factory, monkeypatch, plant):
    """A link, a file or another user's open folder in its place: the next base is taken, and nothing is followed."""
    other, fallback = tmp_path_factory.mktemp("other"), tmp_path_factory.mktemp("fallback")
    monkeypatch.setattr("llama_api.upstreams.slot_files.BASES", (str(fallback),))
    planted = slots_base / FOLDER
    if plant == "link":
        planted.symlink_to(other)
    elif plant == "file":
        planted.write_text("mine")
    else:
        planted.mkdir()
        os.chown(planted, 12345, 12345)
        planted.chmod(0o777)
    assert Slots(URL, 1).take(1.0) == 0
    assert not list(other.iterdir()) and (fallback / FOLDER).is_dir()


@pytest.mark.parametrize("plant", ["link", "hard link", "fifo", "folder"])
def test_a_planted_slot_counts_as_held(slots_base, plant):
    """Anything but a plain file of its own is neither followed nor written; the other slots work."""
    path, victim = folder_of(slots_base) / "slot-0", slots_base / "victim"
    victim.write_text("keep")
    {"link": lambda: path.symlink_to(victim), "hard link": lambda: path.hardlink_to(victim),
     "fifo": lambda: os.mkfifo(path), "folder": path.mkdir}[plant]()
    slots = Slots(URL, 2)
    assert slots.take(1.0) == 1 and slots.take(2.0) is None
    assert victim.read_text() == "keep"


def test_a_planted_seat_is_passed_over(slots_base):
    """The order does without an entry that cannot be an entry."""
    (folder_of(slots_base) / "queue-0").symlink_to(slots_base / "nowhere")
    one, other = Slots(URL, 1), Slots(URL, 1)
    one.announce(1.0)
    assert not one.older_elsewhere(2.0) and other.older_elsewhere(2.0) and other.take(2.0) is None


def test_without_files_to_open_a_seat_is_not_looked_for_for_ever():
    """A refusal may be temporary: the caller for a slot gets the error, and the next one gets the slot."""
    taken, slots = Slots(URL, 1), Slots(URL, 2)
    assert taken.held == 0
    with no_more_files_than(2), pytest.raises(OSError) as caught:
        slots.take(1.0)
    assert caught.value.errno == errno.EMFILE
    assert slots.take(1.0) == 0


def test_a_seat_that_cannot_be_opened_now_is_heard_later():
    """Too many open files cost no slot, and delay nobody for longer than they last."""
    here, there = Slots(URL, 2, ticking()), Slots(URL, 2, Clock())
    assert here.take(1.0) == 0
    there.announce(1.0)
    with no_more_files_than(0):
        assert not here.older_elsewhere(2.0)
    assert here.older_elsewhere(2.0)


def test_a_full_disk_costs_the_order_alone():
    """Slots are taken and given back as ever; once there is room the others hear whose turn it is."""
    here, there = Slots(URL, 1, ticking()), Slots(URL, 1, ticking())
    with full_disk():
        assert here.take(1.0) == 0 and there.take(2.0) is None
        there.announce(2.0)
        assert not here.older_elsewhere(3.0)
        here.give_back(0)
        assert there.take(2.0) == 0
        there.announce(None)
    there.announce(2.0)
    assert here.older_elsewhere(3.0)


def test_a_seat_has_its_place_on_the_disk_from_the_start(slots_base):
    """A disk that becomes full before somebody waits no longer matters."""
    assert Slots(URL, 1).take(1.0) == 0
    assert (folder_of(slots_base) / "queue-0").stat().st_size > 0


def test_without_a_place_in_common_the_temporary_one_serves(monkeypatch, tmp_path):
    """Neither systemd's folder nor those of the machine: then at least the workers of one service share."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/nonexistent")
    monkeypatch.setattr("llama_api.upstreams.slot_files.BASES", ("/nonexistent", "/proc"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert Slots(URL, 1).take(1.0) == 0 and Slots(URL, 1).take(2.0) is None


# The slots


def test_slots_are_taken_and_given_back(slots_base):
    """Each slot is held once, by whomever; what is given back is free for all."""
    here, there = (Slots(url, 3, ticking()) for url in (URL, "http://A:11434/"))
    mine = [here.take(1.0), here.take(1.0)]
    theirs = there.take(1.0)
    assert None not in [*mine, theirs] and here.take(1.0) is None is there.take(1.0)
    assert (here.running, there.running, here.share) == (2, 1, 1.0)
    here.give_back(mine[0])
    assert here.running == 1 and round(there.share, 2) == 0.67
    assert there.take(1.0) == mine[0] and here.take(1.0) is None


def test_other_ollamas_have_slots_of_their_own():
    """A slot of one says nothing of another."""
    assert [Slots(url, 1).take(1.0) for url in ("http://a", "http://b", "http://a/x")] == [0, 0, 0]


@given(st.data())
def test_different_numbers_are_counted_together(tmp_path_factory, data):
    """Each process begins nothing as long as all together hold its own number or more, whatever the holes."""
    os.environ["RUNTIME_DIRECTORY"] = str(tmp_path_factory.mktemp("slots"))
    numbers = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    processes = [Slots(URL, number, ticking()) for number in numbers]
    held = []
    for _ in range(data.draw(st.integers(0, 30))):
        if held and data.draw(st.booleans()):
            process, slot = held.pop(data.draw(st.integers(0, len(held) - 1)))
            process.give_back(slot)
        else:
            process = data.draw(st.sampled_from(processes))
            slot = process.take(1.0)
            assert (slot is None) == (len(held) >= process.number)
            if slot is not None:
                held.append((process, slot))
        assert sum(process.running for process in processes) == len(held)
        assert processes[0].share == len(held) / processes[0].number


HOLD = """
import sys
from llama_api.upstreams import Slots
slots = Slots(sys.argv[1], 1)
print(slots.take(1.0), flush=True)
slots.announce(1.0)
sys.stdin.read()
"""


def test_a_killed_process_frees_its_slot_and_its_seat(slots_base):
    """``kill -9`` of a holder frees its slot at once, and its entry goes to the next process."""
    here = Slots(URL, 1)
    with subprocess.Popen([sys.executable, "-c", HOLD, URL], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"0\n"
        assert here.take(0.5) is None
        other.send_signal(signal.SIGKILL)
        other.wait()
        until(lambda: here.take(2.0) is not None)
    Slots(URL, 1).announce(1.0)
    assert sorted(path.name for path in folder_of(slots_base).iterdir()) == ["queue-0", "queue-1", "slot-0"]


# The order


def test_whoever_waits_longest_goes_first():
    """A slot is left to the one elsewhere who waits for longer; equals and younger ones do not count."""
    one, other = Slots(URL, 1, Clock()), Slots(URL, 1, Clock())
    one.announce(10.0)
    assert other.take(11.0) is None and other.older_elsewhere(10.5)
    assert not other.older_elsewhere(10.0) and not other.older_elsewhere(9.0)
    assert one.take(10.0) == 0
    one.announce(None)
    one.give_back(0)
    assert other.take(11.0) == 0


def test_who_gives_no_sign_of_life_is_passed_over():
    """A stopped process holds up no other; once it continues, its entry counts again."""
    clock = Clock()
    one, other = Slots(URL, 1, clock), Slots(URL, 1, clock)
    one.announce(10.0)
    assert other.older_elsewhere(11.0)
    clock.tick(2 * ALIVE_SECONDS)
    assert not other.older_elsewhere(11.0)
    one.announce(10.0)
    assert other.older_elsewhere(11.0)


def test_who_may_not_take_it_holds_nobody_up():
    """One who waits longest, but has reached its own number, leaves the slot to who has a larger one."""
    small, large = Slots(URL, 1, Clock()), Slots(URL, 3, clock := Clock())
    large.take(1.0)
    small.announce(2.0)
    assert large.take(3.0) is not None
    clock.tick(0.01)
    large.give_back(1)
    large.give_back(0)
    assert large.take(3.0) is None and small.take(2.0) is not None


def test_work_of_long_ago_counts_less():
    """Half after a minute."""
    clock = Clock()
    slots = Slots(URL, 4, clock)
    slots.take(1.0), slots.take(1.0)
    assert slots.work == 2.0
    clock.tick(60)
    assert slots.work == 1.0
