"""Processes that look for each other, as threads: who comes, who does not, who does not fit."""

import re
import socket
import threading
import time

import pytest

from tests import runs
from xrec_jax.core.errors import UserError
from xrec_jax.core.runtime import distributed, rendezvous


@pytest.fixture
def coordinator():
    return f"127.0.0.1:{runs.free_port()}"


class Process(threading.Thread):
    """A process that looks for the others, and how that ended."""

    def __init__(self, coordinator, process, processes=2, timeout=20.0, **other):
        super().__init__(daemon=True)
        self.said = None
        self.work = lambda: rendezvous.gather(
            coordinator, processes=processes, process=process, timeout=timeout, **other
        )
        self.start()

    def run(self):
        try:
            self.work()
            self.said = "go"
        except UserError as error:
            self.said = str(error)


def ends(*processes):
    for process in processes:
        process.join(30)
        assert not process.is_alive()
    return [process.said for process in processes]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_all_go_on_once_all_are_there(coordinator, order):
    started = []
    for process in order:
        started.append(Process(coordinator, process, processes=3))
        time.sleep(0.1)
    assert ends(*started) == ["go"] * 3
    # JAX can have the port at once.
    socket.create_server(("", rendezvous.address(coordinator)[1])).close()


def test_one_alone_needs_nobody(coordinator):
    assert ends(Process(coordinator, 0, processes=1)) == ["go"]


def test_who_does_not_come_is_named_on_all(coordinator, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "_EVERY_S", 0.2)
    first, second = (Process(coordinator, n, processes=4, timeout=1.0) for n in (0, 2))
    said = ends(first, second)
    assert said[0] == said[1]
    assert re.match(
        r"processes 1 and 3 of 4 did not come to .* within 1 s; .*START_TIMEOUT", said[0]
    )
    error = capsys.readouterr().err
    assert "xrec: waiting for processes 1 and 3 (" in error
    assert "xrec: waiting for the other processes (" in error


def test_a_process_0_that_does_not_come(coordinator, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "_EVERY_S", 0.2)
    (said,) = ends(Process(coordinator, 1, timeout=0.6))
    assert f"process 0 did not come to XREC_COORDINATOR={coordinator} within 0.6 s (" in said
    assert "waiting for process 0 at" in capsys.readouterr().err


def test_one_that_goes_away_may_come_again(coordinator):
    first = Process(coordinator, 0)
    while True:
        try:
            gone = socket.create_connection(rendezvous.address(coordinator))
            break
        except OSError:
            time.sleep(0.05)
    mine = {"process": 1, "processes": 2, "code": rendezvous.code_version(), "command": ""}
    other = Process(coordinator, 0)  # somebody else wants the port meanwhile
    assert "cannot listen on port" in ends(other)[0]
    gone.sendall(b"GET / HTTP/1.1\r\n\r\n")
    gone.close()
    with socket.create_connection(rendezvous.address(coordinator)) as again:
        rendezvous._send(again, mine)
        assert ends(first) == ["go"]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (dict(process=1, processes=3), r"process 1 was told XREC_PROCESSES=3 and process 0 .*=2"),
        (dict(process=1, command="report"), "process 1 is to report and process 0 to run"),
        (dict(process=1, code="old"), r"process 1 runs other code \(old\) than process 0 \(xrec"),
    ],
)
def test_what_does_not_fit_ends_both_with_the_same_line(coordinator, second, said, monkeypatch):
    first = Process(coordinator, 0, command="run")
    mine = {"processes": 2, "code": rendezvous.code_version(), "command": "run"} | second
    host, port = rendezvous.address(coordinator)
    deadline = time.monotonic() + 20
    with pytest.raises(UserError, match=said) as caught:
        rendezvous._join(host, port, mine, coordinator=coordinator, timeout=20.0, deadline=deadline)
    assert ends(first) == [str(caught.value)]


def test_a_number_that_two_have(coordinator):
    started = [Process(coordinator, n, processes=3) for n in (0, 1, 1)]
    said = ends(*started)
    assert said[0] == "two processes have XREC_PROCESS=1; number them from 0 to 2"
    assert said[0] in said[1:]


def test_something_else_that_listens_there(coordinator, monkeypatch):
    monkeypatch.setattr(rendezvous, "_EVERY_S", 0.2)
    with socket.create_server(("127.0.0.1", rendezvous.address(coordinator)[1])) as server:
        process = Process(coordinator, 1, timeout=1.0)
        other, _ = server.accept()
        other.sendall(b"220 mail.example.org\r\n")
        (said,) = ends(process)
        other.close()
    assert "(what listens there is not process 0 of a run)" in said


@pytest.mark.parametrize(
    "coordinator", ["here", "here:", ":1234", "here:port", "here:0", "here:70000", "here:12:"]
)
def test_an_address_without_a_port_is_one_line(coordinator, monkeypatch):
    for name, value in (("COORDINATOR", coordinator), ("PROCESSES", "2"), ("PROCESS", "0")):
        monkeypatch.setenv(f"XREC_{name}", value)
    with pytest.raises(UserError, match=r"XREC_COORDINATOR=here.*must be host:port|XREC_.*=:1234"):
        distributed.initialize()


@pytest.mark.parametrize(("process", "processes"), [("2", "2"), ("-1", "2"), ("0", "0")])
def test_numbers_that_do_not_fit_are_one_line(process, processes, monkeypatch):
    for name, value in (
        ("COORDINATOR", "127.0.0.1:9"),
        ("PROCESSES", processes),
        ("PROCESS", process),
    ):
        monkeypatch.setenv(f"XREC_{name}", value)
    with pytest.raises(UserError, match=f"XREC_PROCESS={process} of XREC_PROCESSES={processes}"):
        distributed.initialize()


@pytest.mark.parametrize("seconds", ["soon", "0", "-1", "nan", "1e9"])
def test_a_time_to_wait_must_be_seconds(seconds, monkeypatch):
    monkeypatch.setenv("XREC_COORDINATOR", "127.0.0.1:9")
    monkeypatch.setenv("XREC_START_TIMEOUT", seconds)
    with pytest.raises(UserError, match=r"XREC_START_TIMEOUT='.*' must be seconds above 0"):
        distributed.initialize()


def test_addresses():
    assert rendezvous.address("node-1.example:123") == ("node-1.example", 123)
    assert rendezvous.address("[::1]:123") == ("::1", 123)
