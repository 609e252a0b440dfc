"""What is said of a peer that is gone: by name, in place of a native stack."""

import subprocess
import sys

import pytest

from tests import tiny
from xrec_jax.core.runtime import peers

FATAL = (
    "F1129 14:41:59.895730   23616 client.h:80] Terminating process because the JAX distributed "
    "service detected fatal errors.\n"
)
UNHEALTHY = (
    "E1129 14:41:59.891461   23605 coordination_service.cc:1549] [10687] Use error polling to "
    "propagate the following error to all tasks: UNAVAILABLE: The following tasks are unhealthy "
    "(stopped sending heartbeats):\n1\n12\n"
    "The tasks have crashed. Check the task logs for an earlier error.\n"
    f"{FATAL}"
    "    @     0x7fd3f3040634  absl::lts_20260107::log_internal::LogMessage::SendToLog()\n"
)
CLOSED = (
    "W1129 14:41:33.727813   23235 preemption_sync_manager.cc:147] Failed to retrieve: "
    "UNAVAILABLE: Socket closed\n"
    f"{FATAL}"
    ':UNKNOWN:Error received from peer  {grpc_status:14, grpc_message:"Socket closed"}\n'
    "*** Check failure stack trace: ***\n"
)


@pytest.mark.parametrize(
    ("text", "who"),
    [
        (UNHEALTHY, "process 1, 12 is gone; "),
        (UNHEALTHY.replace("1\n12\n", "/job:jax_worker/replica:0/task:3\n"), "process 3 is gone; "),
        (CLOSED, "process 0 at here:1 is gone; "),
        ("F1129 client.h:80] something new", "another process of the run is gone; "),
    ],
    ids=["numbers", "a task", "the coordinator", "unknown"],
)
def test_who_is_gone(text, who):
    line = peers.gone(text, "here:1")
    assert line.startswith(who) and "\n" not in line
    assert "Start all processes again with the same command" in line


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("INTERNAL: Gloo AllGather failed: Connection closed by peer"), True),
        (RuntimeError("NCCL operation failed: remote process exited"), True),
        (ValueError("shapes (3,) and (4,) differ"), False),
        (KeyError("item"), False),
    ],
)
def test_errors_that_a_lost_peer_causes(error, lost):
    assert peers.lost_peer(error) == lost


PROGRAM = """
import ctypes, os, sys, time
from xrec_jax.core.runtime import peers
peers.NativeErrors(lambda text: peers.gone(text, "here:1"))
os.write(2, b"W1129 14:41:33.727813 1 other.cc:147] as before\\n")
time.sleep(0.2)
print("from python", file=sys.stderr)
os.write(2, sys.argv[1].encode())
ctypes.CDLL(None).abort()
"""


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (UNHEALTHY, peers.STATUS, f"xrec: error: {peers.gone(UNHEALTHY, '')}\n"),
        (
            "F1129 14:41:33.728054 1 memory.cc:80] no room\n    @ a stack\n",
            134,
            "F1129 14:41:33.728054 1 memory.cc:80] no room\n    @ a stack\n",
        ),
    ],
    ids=["over a peer", "over something else"],
)
def test_an_abort_over_a_peer_is_one_line_and_others_are_as_ever(text, status, said):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, text], cwd=tiny.CHECKOUT, capture_output=True, text=True
    )
    before = "W1129 14:41:33.727813 1 other.cc:147] as before\nfrom python\n"
    assert done.stderr == before + said and done.returncode == status


SLOW = """
import time
from xrec_jax.core.runtime import peers
fast = peers.NativeErrors._print
def slow(self, data):
    time.sleep(0.3)
    fast(self, data)
peers.NativeErrors._print = slow
"""


def test_an_abort_waits_for_lines_that_are_being_printed():
    """The lines are read already when the abort comes, so it finds none of them in the pipe."""
    aborts = PROGRAM.replace("ctypes.CDLL", "time.sleep(0.2)\nctypes.CDLL")
    text = "F1129 14:41:33.728054 1 memory.cc:80] no room\n    @ a stack\n    @ another\n"
    done = subprocess.run(
        [sys.executable, "-c", SLOW + aborts, text],
        cwd=tiny.CHECKOUT,
        capture_output=True,
        text=True,
    )
    assert done.stderr.endswith(text) and done.returncode == 134
