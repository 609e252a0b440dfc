"""Signals: the first asks for an end, a second one ends the process, `nohup` is respected."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests import tiny
from xrec_jax.core.runtime import stopping
from xrec_jax.core.runtime.stopping import SIGNALS, listening


def send(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def ended(monkeypatch):
    """Numbers of signals that would have ended the process at once."""
    found = []
    monkeypatch.setattr(stopping, "end_at_once", found.append)
    return found


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_asks_and_a_second_ends(number, ended, monkeypatch):
    monkeypatch.setattr(stopping, "_APART_S", 0.05)
    before = [signal.getsignal(one) for one in SIGNALS]
    with listening() as stop:
        assert not stop.is_set() and stop.number == 0
        send(number)
        assert stop.is_set() and stop.number == number
        time.sleep(0.1)
        assert ended == []
        send(number)
        deadline = time.monotonic() + 10
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
        assert ended == [number]
    assert [signal.getsignal(one) for one in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_one_signal_that_comes_twice_is_one(ended):
    """As `timeout` sends it: to its child, and to the whole group."""
    with listening() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.is_set()
    assert ended == []


def test_what_was_ignored_stays_ignored(ended):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            send(signal.SIGHUP)
            assert not stop.is_set()
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_nobody_asked_for_comes_again(ended):
    """It came during the last step, so the run must not go on with its next stage."""
    with pytest.raises(KeyboardInterrupt), listening():
        send(signal.SIGINT)


def test_the_first_signal_is_passed_on_once(ended):
    passed = []
    with listening(passed.append) as stop:
        send(signal.SIGHUP)
        send(signal.SIGHUP)
    assert passed == [signal.SIGHUP] and stop.number == signal.SIGHUP


def test_another_thread_listens_to_nothing():
    found = []

    def listen():
        with listening() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [False]


HANGING = """
import ctypes
from xrec_jax.core.runtime.stopping import listening
with listening():
    print("ready", flush=True)
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    lock(mutex)  # waits for ever, and gives way to no handler written in Python
"""


def test_a_second_signal_ends_what_hangs_in_compiled_code():
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tiny.CHECKOUT,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(stopping._APART_S + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "xrec: SIGINT again: ended at once, with what was saved before\n"
