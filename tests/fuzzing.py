"""Mutates valid files, and feeds the results to a reader in a child process with bounds.

A test of a reader of foreign bytes looks like this:

    def read(content: bytes) -> None:
      path.write_bytes(content)
      read_it(path)

    assert run_bounded(read, itertools.islice(mutations(seeds, rng), count)) == []
"""

import faulthandler
import mmap
import os
import pathlib
import random
import resource
import signal
import struct
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from nfnet.errors import UserError

SECONDS_MAX = 10
MEMORY_BYTES_MAX = 2**30
MESSAGE_CHARACTERS_MAX = 3000

_INTERESTING_BYTES = (0x00, 0x01, 0x0A, 0x1B, 0x20, 0x22, 0x28, 0x2E, 0x5B, 0x7B, 0x7F, 0x80, 0xFF)
_INTERESTING_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1)
_INTERESTING_TEXTS = (
  *(b"\x1b[31m\x1b]0;title\x07", b"\r\n", b"\xff\xfe", b"../../etc/passwd", b"NaN", b"1e999"),
  *(b"null", b"true", b"-1", b"9" * 5000, b"[" * 2000, b'{"a":' * 2000, b"(" * 2000),
)


class Finding(NamedTuple):
  """What a reader should not have done with one input.

  Attributes:
    kind: "error" for an exception other than `UserError`, "message" for one that is not a line of
      printable characters, "hang", "memory", or "crash".
    detail: the traceback, the message, or the figure.
    content: the input.
  """

  kind: str
  detail: str
  content: bytes


def mutations(seeds: bytes | Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
  """Yields mutations of valid files without end: one to eight changes to one of the seeds each."""
  seeds = [seeds] if isinstance(seeds, bytes) else list(seeds)
  while True:
    content = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 8))):
      rng.choice(_CHANGES)(content, rng, seeds)
    yield bytes(content)


def run_bounded(
  read: Callable[[bytes], object],
  inputs: Iterable[bytes],
  *,
  seconds_max: float = SECONDS_MAX,
  memory_bytes_max: int = MEMORY_BYTES_MAX,
  inputs_per_process: int = 10**6,
) -> list[Finding]:
  """Feeds inputs to a reader in a forked process, which is forked again after it has died.

  Args:
    read: function of the bytes of one input, which may raise `UserError` only.
    inputs: bytes of the inputs.
    seconds_max: time that the reader may take for one input.
    memory_bytes_max: memory that the reader may add to the process for one input.
    inputs_per_process: inputs after which the process is forked again, for a reader that leaves
      threads behind, whose stacks fill the address space.

  Returns:
    One finding for each input that broke a rule; each line of a `UserError` has to be printable,
    and there may be only one.
  """
  inputs = list(inputs)
  findings: list[Finding] = []
  start = 0
  while start < len(inputs):
    part = inputs[: start + inputs_per_process]
    start = _run_until_death(
      read, part, start, findings, seconds_max=seconds_max, memory_bytes_max=memory_bytes_max
    )
  return findings


def describe(findings: Sequence[Finding]) -> str:
  """Returns the first findings as text, for the message of an assertion."""
  return f"{len(findings)} findings\n" + "\n".join(
    f"{finding.kind} with {finding.content[:200]!r}: {finding.detail}" for finding in findings[:5]
  )


def _run_until_death(
  read: Callable[[bytes], object],
  inputs: Sequence[bytes],
  start: int,
  findings: list[Finding],
  *,
  seconds_max: float,
  memory_bytes_max: int,
) -> int:
  """Appends the findings of one child process, and returns the index at which the next starts."""
  # The child writes the index of its input here, so that the parent knows it after a crash.
  place = mmap.mmap(-1, 8)
  place[:] = struct.pack("<q", start)
  from_child, to_parent = os.pipe()
  with warnings.catch_warnings():
    # JAX has threads; the child uses none of them.
    warnings.simplefilter("ignore")
    child = os.fork()
  if not child:
    os.close(from_child)
    with os.fdopen(to_parent, "wb") as pipe:
      _work(read, inputs, start, place, pipe, memory_bytes_max)
    os._exit(0)
  os.close(to_parent)
  os.set_blocking(from_child, False)
  received = bytearray()
  index, since, status = start, time.monotonic(), None
  hung = False
  while status is None:
    time.sleep(0.01)
    received += _available(from_child)
    done, code = os.waitpid(child, os.WNOHANG)
    if done:
      status = code
    (current,) = struct.unpack("<q", place[:])
    if current != index:
      index, since = current, time.monotonic()
    elif status is None and time.monotonic() - since > seconds_max:
      hung = True
      os.kill(child, signal.SIGKILL)
      _, status = os.waitpid(child, 0)
  received += _available(from_child)
  os.close(from_child)
  findings.extend(_unpack(received, inputs))
  (index,) = struct.unpack("<q", place[:])
  if hung:
    findings.append(Finding("hang", f"over {seconds_max} s", inputs[index]))
  elif status:
    findings.append(
      Finding("crash", f"exit status {os.waitstatus_to_exitcode(status)}", inputs[index])
    )
  else:
    return len(inputs)
  return index + 1


def _work(read, inputs, start, place, pipe, memory_bytes_max) -> None:
  """Reads the inputs one after the other, in the child."""
  faulthandler.disable()
  # A reader that asks for far too much gets a MemoryError and does not disturb other programs.
  limit = _status_bytes("VmSize") + 2 * memory_bytes_max
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  for index in range(start, len(inputs)):
    place[:] = struct.pack("<q", index)
    # Sets the greatest amount of memory so far to the present one.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS")
    try:
      kind, detail = _try(read, inputs[index])
    except BaseException:
      kind, detail = "error", traceback.format_exc()[-2000:]
    added = _status_bytes("VmHWM") - before
    if added > memory_bytes_max:
      kind, detail = "memory", f"{added / 1e6:.0f} MB; {detail}"
    if kind:
      text = f"{kind}\n{detail}".encode("utf-8", "backslashreplace")
      pipe.write(struct.pack("<qi", index, len(text)) + text)
      pipe.flush()


def _try(read: Callable[[bytes], object], content: bytes) -> tuple[str, str]:
  """Returns kind and detail of a finding, or two empty texts."""
  try:
    read(content)
  except UserError as error:
    message = str(error)
    # Readers put the exceptions of parsers into messages.
    if "MemoryError" in message:
      return "memory", message[:300]
    if not message.isprintable() or len(message) > MESSAGE_CHARACTERS_MAX:
      return "message", ascii(message[:MESSAGE_CHARACTERS_MAX])
  return "", ""


def _available(descriptor: int) -> bytes:
  received = bytearray()
  try:
    while part := os.read(descriptor, 65536):
      received += part
  except BlockingIOError:
    pass
  return bytes(received)


def _unpack(received: bytearray, inputs: Sequence[bytes]) -> Iterator[Finding]:
  place = 0
  while place + 12 <= len(received):
    index, length = struct.unpack_from("<qi", received, place)
    kind, _, detail = received[place + 12 : place + 12 + length].decode().partition("\n")
    yield Finding(kind, detail, inputs[index])
    place += 12 + length


def _status_bytes(name: str) -> int:
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(f"{name}:"):
      return int(line.split()[1]) * 1024
  raise KeyError(name)


def _place(content: bytearray, rng: random.Random) -> int:
  # Headers are at the beginning, where most of what a reader decides is decided.
  return rng.randrange(min(len(content), rng.choice((64, 1024, 2**40))) or 1)


def _flip_bit(content, rng, seeds):
  if content:
    content[_place(content, rng)] ^= 1 << rng.randrange(8)


def _set_byte(content, rng, seeds):
  if content:
    content[_place(content, rng)] = rng.choice((*_INTERESTING_BYTES, rng.randrange(256)))


def _set_integer(content, rng, seeds):
  width = rng.choice((1, 2, 4, 8))
  value = rng.choice(_INTERESTING_INTEGERS) % 2 ** (8 * width)
  place = _place(content, rng)
  content[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _delete(content, rng, seeds):
  place = _place(content, rng)
  del content[place : place + rng.choice((1, 1, 2, 4, 16, 256))]


def _cut(content, rng, seeds):
  del content[_place(content, rng) :]


def _repeat(content, rng, seeds):
  place = _place(content, rng)
  part = content[place : place + rng.choice((1, 2, 8, 64))]
  content[place:place] = part * rng.choice((1, 2, 16, 1000))


def _insert(content, rng, seeds):
  place = _place(content, rng)
  content[place:place] = rng.choice((*_INTERESTING_TEXTS, rng.randbytes(rng.randrange(1, 9))))


def _replace_number(content, rng, seeds):
  """Replaces a decimal number, which JSON, CSV and TOML are full of."""
  digits = [i for i, byte in enumerate(content[:4096]) if 0x30 <= byte <= 0x39]
  if digits:
    place = rng.choice(digits)
    content[place : place + 1] = rng.choice(
      (b"-1", b"0", b"1e999", b"NaN", b"null", b"2.5", b'"a"', b"[]", b"{}", b"9" * 30, b"9" * 5000)
    )


def _splice(content, rng, seeds):
  other = rng.choice(seeds)
  place, from_place = _place(content, rng), _place(bytearray(other), rng)
  length = rng.choice((4, 16, 64, 1024))
  content[place : place + rng.choice((0, length))] = other[from_place : from_place + length]


_CHANGES = (
  *(_flip_bit, _set_byte, _set_integer, _delete, _cut, _repeat, _insert, _replace_number, _splice),
)
