"""The same numbers for TensorBoard.

`tensorboardX.SummaryWriter` writes from a thread of its own: when that thread
meets a full disk the program hangs, and a kill loses two minutes of events. So
its records are written here, in the program's own thread and into buckets too.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping

from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from qstar_jax.store import files
from qstar_jax.training.metrics_log import append_whole


def _to_tfrecord(content: bytes) -> bytes:
  """The TFRecord of `content`: length and content, each with its checksum."""
  length = struct.pack("<Q", len(content))
  return b"".join(
    [
      length,
      struct.pack("<I", masked_crc32c(length)),
      content,
      struct.pack("<I", masked_crc32c(content)),
    ]
  )


class TensorBoardLog:
  """One file of events, in a folder that holds one for every resume."""

  def __init__(self, folder: epath.Path):
    """Makes the folder if it is missing, and starts a new file."""
    files.make_folder(folder)
    name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}"
    self._path = folder / f"events.out.tfevents.{name}"
    self._append(Event(wall_time=time.time(), file_version="brain.Event:2"))

  def restart(self, step: int) -> None:
    """Hides earlier events of `step` and later: they will be made again."""
    start = SessionLog(status=SessionLog.START)
    self._append(Event(wall_time=time.time(), step=step, session_log=start))

  def add(self, step: int, time_: float, scalars: Mapping[str, float]) -> None:
    """Writes scalars by tag, at a step and a Unix time in seconds."""
    values = [
      Summary.Value(tag=tag, simple_value=value)
      for tag, value in scalars.items()
    ]
    self._append(
      Event(wall_time=time_, step=step, summary=Summary(value=values))
    )

  def _append(self, event: Event) -> None:
    append_whole(self._path, _to_tfrecord(event.SerializeToString()))
