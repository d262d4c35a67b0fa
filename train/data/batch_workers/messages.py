"""Sends Python objects between a process and its data workers; arrays travel in shared memory.

The bytes of a message are in an anonymous file in memory (memfd), whose descriptor goes through a
Unix socket. Such a file has no name that could be left behind, is freed with its last user however
that one ends, and is not counted against /dev/shm, which Docker limits to 64 MiB.
"""

import errno
import mmap
import os
import pickle
import socket
import struct
import tempfile
from typing import Any, NamedTuple

# Number of parts, then their sizes: the pickle itself, and the arrays in it.
_PARTS_MAX = 15
_HEADER = struct.Struct(f"<{1 + _PARTS_MAX}Q")
_ALIGNMENT_BYTES = 64


class Failure(NamedTuple):
  """A message that says what went wrong instead of a batch.

  Attributes:
    error: what was raised.
    text: its traceback.
  """

  error: Exception
  text: str


def send(connection: socket.socket, message: Any) -> None:
  """Sends an object.

  Raises:
    OSError: the other process is gone, or memory or files ran out.
  """
  buffers: list[pickle.PickleBuffer] = []
  pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
  parts = [memoryview(pickled), *(buffer.raw() for buffer in buffers)]
  sizes = [part.nbytes for part in parts]
  descriptor = _open_memory()
  try:
    for part, offset in zip(parts, _offsets(sizes), strict=True):
      written = 0
      while written < part.nbytes:
        written += os.pwrite(descriptor, part[written:], offset + written)
    header = _HEADER.pack(len(sizes), *sizes, *[0] * (_PARTS_MAX - len(sizes)))
    socket.send_fds(connection, [header], [descriptor])
  finally:
    os.close(descriptor)


def receive(connection: socket.socket) -> Any:
  """Waits for an object and returns it; its arrays lie in the memory that the sender has filled.

  Raises:
    EOFError: the other process is gone.
    OSError: the other process is gone, or memory or files ran out.
  """
  header, descriptors, _, _ = socket.recv_fds(connection, _HEADER.size, 1, socket.MSG_WAITALL)
  try:
    if len(header) < _HEADER.size:
      raise EOFError("the other process is gone")
    if not descriptors:
      # The kernel drops a descriptor that would exceed the limit of this process.
      raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    count, *sizes = _HEADER.unpack(header)
    offsets = _offsets(sizes[:count])
    memory = memoryview(mmap.mmap(descriptors[0], offsets[-1] + sizes[count - 1]))
  finally:
    for descriptor in descriptors:
      os.close(descriptor)
  parts = [memory[start : start + size] for start, size in zip(offsets, sizes, strict=False)]
  return pickle.loads(parts[0], buffers=parts[1:])


def _open_memory() -> int:
  """Returns the descriptor of a new file without a name."""
  if hasattr(os, "memfd_create"):
    return os.memfd_create("nfnets-batch")
  # macOS has no files in memory.
  with tempfile.TemporaryFile() as file:
    return os.dup(file.fileno())


def _offsets(sizes: list[int]) -> list[int]:
  """Returns where each part begins."""
  offsets = [0]
  for size in sizes[:-1]:
    offsets.append(offsets[-1] + -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES)
  return offsets
