"""What reaches a terminal, and what happens when nobody reads it any more."""

import os
import subprocess
import sys

from xrec_jax import cli
from xrec_jax.core.logging import log
from xrec_jax.core.runtime.terminal import one_line, printable


def test_texts_of_files_do_not_steer_a_terminal(capsys):
    log("title \x1b[2J\x9b1m \x07\r over\u202eturned\ud83d, น้ำ\u200cน\tand\n東京")
    assert capsys.readouterr().out == (
        "title \\x1b[2J\\x9b1m \\x07\\r over\\u202eturned\\ud83d, น้ำ\u200cน\tand\n東京\n"
    )
    assert printable("") == ""
    assert one_line("a\nb\u2028c\u2029d\te") == "a\\nb\\u2028c\\u2029d\te"


def test_an_error_is_one_line_whatever_it_names(capsys):
    status = cli.main(["recommend", "--workdir=a\nb\x1b[31m", "--output=o.jsonl"])
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and "a\\nb\\x1b[31m" in error


def test_a_reader_that_goes_away_ends_nothing(tmp_path):
    """`xrec ... | head -1`: what follows is said to nobody, and everything is saved."""
    done = tmp_path / "done"
    code = (
        "import pathlib, sys\n"
        "from xrec_jax.core.runtime.terminal import show\n"
        "for number in range(9):\n"
        "    show('line' * 20000)\n"
        "    show('error' * 20000, error=True)\n"
        f"pathlib.Path({str(done)!r}).write_text('saved')\n"
    )
    for stream in ("stdout", "stderr"):
        read, write = os.pipe()
        os.close(read)  # the reader has gone
        other = {"stdout": "stderr", "stderr": "stdout"}[stream]
        found = subprocess.run(
            [sys.executable, "-c", code], check=False, **{stream: write, other: subprocess.PIPE}
        )
        os.close(write)
        assert found.returncode == 0 and done.read_text() == "saved"
        heard = found.stderr if other == "stderr" else found.stdout
        assert heard.count(b"\n") == 9 and b"Traceback" not in heard
        done.unlink()
