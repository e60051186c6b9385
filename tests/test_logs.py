"""The log: whole lines of JSON that no caller can break, and no disk or pipe that can hold up a request."""

import json
import logging
import os
import re
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api import logs
from llama_api.logs import JsonLog, LineWriter, LogFile, encode
from tests.support.fakes import in_threads, until

LONG = 30.0
BREAKS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


@pytest.fixture(autouse=True)
def logger():
    """The package's logger, left as it was found."""
    logger = logging.getLogger("llama_api")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


class Stdout:
    """A file in place of standard output."""

    def __init__(self, path):
        self.path, self.fd = path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def records(self):
        return parsed(self.path)


@pytest.fixture
def stdout(tmp_path, monkeypatch):
    stdout = Stdout(tmp_path / "stdout")
    monkeypatch.setattr(logs, "STDOUT", stdout.fd)
    yield stdout
    os.close(stdout.fd)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "api.log"


def parsed(path):
    """The records of a file, each of which must be a line of its own."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


# A line


def test_the_shape_of_a_line():
    """Time in UTC by RFC 3339, level, then the fields in the order given; one object, one line break."""
    line = encode("INFO", {"message": "GET / 200", "status": 200, "ms": 1.5, "none": None})
    record = json.loads(line)
    assert list(record) == ["time", "level", "message", "status", "ms", "none"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", record["time"])
    assert line.count(b"\n") == 1 and line.endswith(b"}\n")


@pytest.mark.parametrize("text", [*BREAKS, "a\r\n2026-01-01 forged", "\x00", "\x1b[31m", "\x7f", "\ud83d",
                                  "\udcff\u2028", "ä漢😀", '"}\n{"', "\\n"])
def test_no_text_breaks_a_line(text):
    """Whatever a caller sends, every reader of lines sees one line, which contains what was sent."""
    line = encode("INFO", {"path": text, text: 1})
    assert len(line.decode().splitlines()) == 1
    assert json.loads(line)["path"] == text


@settings(max_examples=100)
@given(st.dictionaries(st.text(st.characters(), max_size=5), st.recursive(
    st.text(st.characters(), max_size=5) | st.integers() | st.floats() | st.none() | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=2), max_leaves=4), max_size=4))
def test_any_fields_make_one_line(fields):
    """No value is refused: a log call never fails."""
    line = encode("ERROR", {**fields, "level": "ERROR"})
    assert len(line.decode().splitlines()) == 1 and json.loads(line)["level"] == "ERROR"


# The handler


def test_every_line_goes_to_stdout_and_to_the_file(stdout, path):
    """Both have the same lines in the same order."""
    log = JsonLog(str(path), "INFO")
    for number in range(100):
        log.write(logging.INFO, {"message": "m", "n": number})
    log.flush()
    assert stdout.records() == parsed(path) and [record["n"] for record in parsed(path)] == list(range(100))


def test_an_empty_path_is_stdout_alone(stdout, tmp_path):
    """Without a LOG_FILE no file is made."""
    log = JsonLog("", "INFO")
    log.write(logging.INFO, {"message": "m"})
    log.flush()
    assert len(stdout.records()) == 1 and [entry.name for entry in tmp_path.iterdir()] == ["stdout"]


def test_the_file_is_appended_to_and_not_for_everybody(stdout, path):
    """Existing content stays; other users cannot read a new file."""
    path.write_text('{"old": 1}\n')
    log = JsonLog(str(path), "INFO")
    log.write(logging.INFO, {"message": "m"})
    log.flush()
    assert [list(record)[0] for record in parsed(path)] == ["old", "time"]
    path.unlink()
    JsonLog(str(path), "INFO")
    assert path.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize("level, seen", [("DEBUG", 4), ("INFO", 3), ("WARNING", 2), ("ERROR", 1), ("CRITICAL", 0)])
def test_the_level_filters(stdout, level, seen):
    """Records below LOG_LEVEL are dropped, by whichever way they come."""
    log = JsonLog("", level)
    for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        log.write(number, {"message": "record"})
        logging.getLogger("llama_api.part").log(number, "logger")
    log.flush()
    messages = [record["message"] for record in stdout.records()]
    assert messages.count("record") == messages.count("logger") == seen


def test_the_packages_loggers_are_caught(stdout):
    """A logger's message carries its name, its request id and its stack, in one line."""
    log = JsonLog("", "INFO")
    try:
        raise ValueError("bad \u2028 luck")
    except ValueError:
        logging.getLogger("llama_api.part").exception("it %s", "failed", extra={"fields": {"request_id": "abc"}})
    log.flush()
    record, = stdout.records()
    assert (record["level"], record["message"], record["logger"], record["request_id"]) == (
        "ERROR", "it failed", "llama_api.part", "abc")
    assert record["stack"].startswith("Traceback") and record["stack"].endswith("luck")


def test_a_new_log_replaces_the_old_one(stdout, logger):
    """Two applications in one process do not log twice."""
    JsonLog("", "INFO")
    second = JsonLog("", "WARNING")
    assert logger.handlers == [second] and logger.level == logging.WARNING and not logger.propagate


def test_a_file_that_cannot_be_opened_is_a_warning(stdout, tmp_path):
    """The log goes on to stdout, which says so."""
    for path in (tmp_path, tmp_path / "missing" / "api.log", "/dev/null/x"):
        log = JsonLog(str(path), "INFO")
        log.write(logging.INFO, {"message": "on"})
        log.flush()
        warning, line = stdout.records()[-2:]
        assert warning["level"] == "WARNING" and str(path) in warning["message"] and line["message"] == "on"


def test_many_threads_mix_no_lines(stdout, path):
    """Eight threads of a thousand records: each is there once, whole, and in its thread's order."""
    log = JsonLog(str(path), "INFO")
    assert in_threads(8, lambda thread: [log.write(logging.INFO, {"t": thread, "n": n, "pad": "x" * n})
                                         for n in range(500)] and None) == [None] * 8
    log.flush(), until(lambda: path.read_text().count("\n") == 4000)
    for records in (parsed(path), stdout.records()):
        assert all([record["n"] for record in records if record["t"] == thread] == list(range(500))
                   for thread in range(8))


# A pipe without a reader


def test_a_stuck_stdout_holds_up_nobody(monkeypatch, path):
    """With a full pipe in place of stdout, logging returns at once and the file has every line."""
    reader, writer = os.pipe()
    monkeypatch.setattr(logs, "STDOUT", writer)
    log = JsonLog(str(path), "INFO")
    done = threading.Event()

    def work():
        for number in range(5000):
            log.write(logging.INFO, {"n": number, "pad": "x" * 100})
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(LONG)
    until(lambda: path.read_text().count("\n") == 5000)
    got = b""
    while got.count(b"\n") < 5000:
        got += os.read(reader, 1 << 20)
    assert [json.loads(line)["n"] for line in got.splitlines()] == list(range(5000))
    os.close(reader)
    until(lambda: not log._writers[0]._writing)
    os.close(writer)


def test_a_closed_stdout_is_no_error(monkeypatch, path):
    """A stdout that is gone takes nothing, and the file still has all."""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(logs, "STDOUT", writer)
    log = JsonLog(str(path), "INFO")
    log.write(logging.INFO, {"message": "m"})
    log.flush()
    assert len(parsed(path)) == 1 and not log._writers[0]._lines
    os.close(writer)


class Destination:
    """Takes batches, and can be stopped from taking more."""

    def __init__(self):
        self.batches, self.entered, self.open = [], threading.Event(), threading.Event()

    def __call__(self, data):
        self.entered.set()
        self.open.wait(LONG)
        self.batches.append(data)

    def lines(self):
        return b"".join(self.batches).splitlines()


def test_lines_beyond_the_bound_are_dropped_and_counted(monkeypatch):
    """Behind a stuck destination only so many lines are kept; once it moves, a line says how many are lost."""
    monkeypatch.setattr(logs, "LINES_KEPT", 100)
    destination = Destination()
    writer = LineWriter(destination, 1)
    writer.put(b"first\n")
    assert destination.entered.wait(LONG)
    for number in range(250):
        writer.put(b"%d\n" % number)
    assert len(writer._lines) == 100
    destination.open.set()
    until(lambda: len(destination.lines()) == 102)
    lines = destination.lines()
    assert lines[0] == b"first" and lines[1:101] == [b"%d" % number for number in range(100)]
    assert json.loads(lines[101])["message"] == "150 log lines were dropped"
    writer.put(b"after\n")
    until(lambda: destination.lines()[-1] == b"after")
    assert len(destination.lines()) == 103


def test_a_batch_holds_whole_lines_up_to_its_size():
    """Lines are written together as long as they fit, so that a pipe takes each batch at once; a longer one alone."""
    destination = Destination()
    writer = LineWriter(destination, 10)
    lines = [b"1234\n", b"1234\n", b"12\n", b"1234567\n", b"x" * 50 + b"\n", b"1\n"]
    for line in lines:
        writer.put(line)
    destination.open.set()
    writer.flush(LONG)
    assert b"".join(destination.batches) == b"".join(lines)
    assert all(batch.endswith(b"\n") and (len(batch) <= 10 or batch.count(b"\n") == 1) for batch in destination.batches)


def test_a_flush_ends_though_the_destination_is_stuck():
    """The end of the process waits so long and no longer."""
    destination = Destination()
    writer = LineWriter(destination, 10)
    writer.put(b"line\n")
    began = time.monotonic()
    writer.flush(0.05)
    assert time.monotonic() - began < LONG and destination.batches == []
    destination.open.set()
    writer.flush(LONG)
    assert destination.lines() == [b"line"]


def test_no_wake_up_is_lost():
    """Lines that come one by one, just as the writer goes to sleep, are all written."""
    destination = Destination()
    destination.open.set()
    writer = LineWriter(destination, 1 << 20)
    for number in range(20):
        writer.put(b"%d\n" % number)
        until(lambda: len(destination.lines()) == number + 1)


# The file


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def file(path, complaints):
    return LogFile(str(path), complaints.append)


def test_the_file_may_be_rotated(file, path, tmp_path, complaints):
    """After logrotate has renamed it, lines go to a new file; the old one is complete."""
    file.write(b"1\n")
    path.rename(tmp_path / "api.log.1")
    file.write(b"2\n")
    assert (tmp_path / "api.log.1").read_bytes() == b"1\n" and path.read_bytes() == b"2\n" and complaints == []


def test_the_file_may_be_rotated_and_made_anew(file, path, tmp_path):
    """With logrotate's ``create`` the new file is already there."""
    file.write(b"1\n")
    path.rename(tmp_path / "api.log.1")
    path.write_bytes(b"")
    file.write(b"2\n")
    assert path.read_bytes() == b"2\n"


def test_the_file_may_be_deleted_or_truncated(file, path, complaints):
    """A deleted file is created again, a truncated one is filled from its beginning."""
    file.write(b"1\n")
    path.unlink()
    file.write(b"2\n")
    assert path.read_bytes() == b"2\n"
    os.truncate(path, 0)
    file.write(b"3\n")
    assert path.read_bytes() == b"3\n" and complaints == []


def test_no_descriptor_is_left_over_by_rotations(file, path):
    """A hundred rotations leave as many open files as before."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        path.unlink()
        file.write(b"%d\n" % number)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_directory_that_vanishes_is_complained_of_and_comes_back(tmp_path, complaints):
    """While its directory is gone the lines are let go; afterwards the file is written again."""
    directory = tmp_path / "logs"
    directory.mkdir()
    path = directory / "api.log"
    file = LogFile(str(path), complaints.append)
    path.unlink()
    directory.rmdir()
    file.write(b"1\n")
    directory.mkdir()
    file.write(b"2\n")
    assert path.read_bytes() == b"2\n" and len(complaints) == 1


def test_a_full_disk_fails_nobody(complaints):
    """A write without room is complained of once, not once a line."""
    file = LogFile("/dev/full", complaints.append)
    for _ in range(5):
        file.write(b"line\n")
    assert len(complaints) == 1 and "No space left" in complaints[0]


def test_a_full_disk_is_told_on_stdout(stdout):
    """The whole log on a full disk: every line is on stdout, and one that says what is wrong."""
    log = JsonLog("/dev/full", "INFO")
    for number in range(3):
        log.write(logging.INFO, {"n": number})
        log.flush()
    until(lambda: len(stdout.records()) == 4)
    assert [record["n"] for record in stdout.records() if "n" in record] == [0, 1, 2]
    assert sum("cannot write the log file" in record.get("message", "") for record in stdout.records()) == 1


def test_after_half_a_line_the_next_begins_on_its_own(path, complaints):
    """When a disk took only the first part of a line, what follows is whole."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    file = LogFile(str(path), complaints.append)
    os.set_blocking(file._fd, False)  # a full pipe now behaves like a full disk
    file.write(b"x" * 1_000_000 + b"\n")
    assert len(complaints) == 1
    half = os.read(reader, 1_000_000)
    file.write(b"whole\n")
    file.write(b"next\n")
    assert set(half) == {ord("x")} and os.read(reader, 100) == b"\nwhole\nnext\n"
    os.close(reader)
    os.close(file._fd)
