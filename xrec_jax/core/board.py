"""TensorBoard event files, written at once: no thread and no queue that training could wait for."""

from __future__ import annotations

import io
import os
import re
import socket
import struct
import time
from collections.abc import Mapping

from etils import epath
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

from xrec_jax.core.storage import files

_UPLOAD_S = 120.0  # an object store gets the whole file anew, so not at every record


class Board:
    """One event file of scalars.

    Args:
      folder: directory of the file; created if missing.
      purge_step: TensorBoard discards records of this and later steps from earlier files of the
        folder; None keeps them.

    Raises:
      OSError: if the file cannot be made, as every method may.
    """

    def __init__(self, folder: epath.PathLike, *, purge_step: int | None = None):
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self.path = epath.Path(folder) / name
        self._buffer = io.BytesIO()  # of a file in an object store
        self._file = -1  # descriptor of a local file
        self._uploaded = time.monotonic()
        self._remote = not files.is_local(folder)
        if not self._remote:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._add(event_pb2.Event(file_version="brain.Event:2"))
        # TensorBoard drops records at or after the step of a START event, so that steps which are
        # run again after a resume do not show twice.
        if purge_step is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(step=purge_step, session_log=start))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds the values of a step; characters that are invalid in a tag become underscores."""
        entries = [
            summary_pb2.Summary.Value(tag=re.sub(r"[^-/\w.]", "_", name), simple_value=value)
            for name, value in values.items()
        ]
        if entries:
            self._add(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=entries)))

    def close(self) -> None:
        """Uploads or closes the file; all records are on storage afterwards."""
        if self._remote:
            self._upload()
        elif self._file >= 0:
            descriptor, self._file = self._file, -1
            os.close(descriptor)

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:  # a run that failed; every record is written
            os.close(self._file)

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        # TFRecord framing: length, masked CRC of the length, payload, masked CRC of the payload.
        record = b"".join((length, _checksum(length), data, _checksum(data)))
        if self._remote:
            self._buffer.write(record)
            if time.monotonic() - self._uploaded > _UPLOAD_S:
                self._upload()
        # One unbuffered write a record: a kill cannot leave half a record in a user-space buffer.
        elif os.write(self._file, record) != len(record):
            raise OSError(f"only a part of {len(record)} bytes could be written")

    def _upload(self) -> None:
        self.path.write_bytes(self._buffer.getvalue())
        self._uploaded = time.monotonic()


def _checksum(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
