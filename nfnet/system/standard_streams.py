"""Standard output and error that never end a program, whatever becomes of those who read them.

A reader may leave (`| head`), the disk behind a redirection may be full, the terminal may be
closed, or the stream may never have been open (`>&-`). Python would raise an error in the middle of
the work, or print one while it shuts down. `keep_running_without_readers` has such output dropped
instead, and `StandardStreams.error` says afterwards why output was lost.
"""

import dataclasses
import errno
import io
import os
import select
import sys
from typing import Any

_DESCRIPTORS = {"stdin": 0, "stdout": 1, "stderr": 2}


class LenientFile(io.FileIO):
  """A file whose `write` drops what cannot be written and keeps the first error.

  Attributes:
    error: the first error, or None.
  """

  def __init__(self, descriptor: int, patience_seconds: float | None = None):
    """Opens a descriptor, which stays open when this object is closed.

    Args:
      descriptor: an open file descriptor.
      patience_seconds: time to wait for a reader that does not read, before its output is dropped;
        None waits forever.
    """
    super().__init__(descriptor, "w", closefd=False)
    self.error: OSError | None = None
    self._patience_seconds = patience_seconds
    self._is_stalled = False

  def write(self, data: Any) -> int:
    """Writes all of the data if that is possible, and always claims that it was."""
    view = memoryview(data).cast("B")
    try:
      while view and self._waits_for_reader():
        # At most this much can be written to a pipe without waiting once it is reported as ready.
        view = view[super().write(view[: select.PIPE_BUF]) or 0 :]
    except OSError as error:
      self.error = self.error or error
    return len(data) if isinstance(data, bytes | bytearray) else memoryview(data).nbytes

  def _waits_for_reader(self) -> bool:
    """Waits until something can be written; returns False if the reader does not read."""
    poll = select.poll()
    poll.register(self.fileno(), select.POLLOUT)
    if self._patience_seconds is None:
      milliseconds = None
    else:
      # A reader that has kept the program waiting once is not waited for again until it reads.
      milliseconds = 0 if self._is_stalled else 1000 * self._patience_seconds
    self._is_stalled = not poll.poll(milliseconds)
    return not self._is_stalled


@dataclasses.dataclass(frozen=True)
class StandardStreams:
  """The streams that `keep_running_without_readers` has changed, by name ("stdout", "stderr")."""

  files: dict[str, LenientFile]

  def flush(self) -> None:
    """Writes what is still in memory."""
    for name in self.files:
      getattr(sys, name).flush()

  def error(self) -> OSError | None:
    """Returns why standard output was lost; None if it was not, or if its reader has left.

    A reader that leaves has read what it wanted, as `head` does.
    """
    file = self.files.get("stdout")
    if file is None or file.error is None or file.error.errno == errno.EPIPE:
      return None
    return file.error


def is_output_lost() -> bool:
  """Returns whether standard output has been lost, so that what only prints may end."""
  binary = getattr(sys.stdout, "buffer", None)
  file = getattr(binary, "raw", None)
  return isinstance(file, LenientFile) and file.error is not None


def keep_running_without_readers(patience_seconds: float | None = None) -> StandardStreams:
  """Drops whatever cannot be written to standard output and error until the program ends.

  The streams remain the same objects, so that it does not matter who has kept a reference to them.
  Characters that a stream cannot encode are escaped. A descriptor that is not open is opened on
  /dev/null, because the next file to be opened would get its number and receive the output.

  Args:
    patience_seconds: time to wait for a reader that does not read, before its output is dropped;
      None waits forever, as a pager needs.
  """
  _open_missing_descriptors()
  files = {}
  for name in ("stdout", "stderr"):
    stream = getattr(sys, name)
    # Something else may have taken the place of the stream, such as a test's capture.
    if not isinstance(stream, io.TextIOWrapper) or stream.fileno() != _DESCRIPTORS[name]:
      continue
    file = LenientFile(_DESCRIPTORS[name], patience_seconds)
    try:
      stream.flush()
    except OSError as error:
      # What was printed before is lost; the new buffer takes the place of the one that holds it.
      file.error = error
    # Calling __init__ again gives the object another buffer; CPython's own tests do so.
    stream.__init__(
      io.BufferedWriter(file),
      encoding=stream.encoding,
      errors="backslashreplace",
      line_buffering=True if stream.write_through else stream.line_buffering,
    )
    files[name] = file
  return StandardStreams(files)


def _open_missing_descriptors() -> None:
  for name, descriptor in _DESCRIPTORS.items():
    try:
      os.fstat(descriptor)
    except OSError:
      # The lowest free number is given out first, so this is the descriptor.
      os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if getattr(sys, name) is None:
      mode = "r" if name == "stdin" else "w"
      stream = open(os.devnull, mode, encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
      setattr(sys, name, stream)
