"""Reads the protocol buffer `tf.train.Example` without TensorFlow.

    Example  { Features features = 1 }
    Features { map<string, Feature> feature = 1 }        an entry has key = 1, value = 2
    Feature  { BytesList = 1 | FloatList = 2 | Int64List = 3 }, each with repeated value = 1

The encoding is described at https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {_FIXED64: 8, _FIXED32: 4}
_VARINT_BYTES_MAX = 10
_BYTES_LIST, _INT64_LIST = 1, 3


def read_example(encoded: bytes) -> dict[str, list[bytes] | list[int]]:
  """Returns the values of each feature that has bytes or integers; floats are left out.

  Raises:
    ValueError: the bytes are not such a message.
  """
  found: dict[str, list[bytes] | list[int]] = {}
  for features in _messages(memoryview(encoded), 1):
    for entry in _messages(features, 1):
      name, feature = "", memoryview(b"")
      for number, value in _fields(entry):
        if number == 1:
          name = bytes(_message(value)).decode()
        elif number == 2:
          feature = _message(value)
      for number, value in _fields(feature):
        if number == _BYTES_LIST:
          found[name] = [bytes(one) for one in _messages(_message(value), 1)]
        elif number == _INT64_LIST:
          found[name] = list(_integers(_message(value)))
  return found


def _integers(message: memoryview) -> Iterator[int]:
  for number, value in _fields(message):
    if number != 1:
      continue
    if isinstance(value, int):
      yield _signed(value)
      continue
    place = 0
    while place < len(value):
      packed, place = _varint(value, place)
      yield _signed(packed)


def _signed(value: int) -> int:
  value &= 2**64 - 1
  return value - 2**64 if value >= 2**63 else value


def _messages(message: memoryview, wanted: int) -> Iterator[memoryview]:
  for number, value in _fields(message):
    if number == wanted:
      yield _message(value)


def _message(value: memoryview | int) -> memoryview:
  if isinstance(value, int):
    raise ValueError("a number is in the place of a message")
  return value


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
  """Yields number and value of each field: an integer, or the bytes of anything else."""
  place = 0
  while place < len(message):
    tag, place = _varint(message, place)
    number, kind = tag >> 3, tag & 7
    if kind == _VARINT:
      value, place = _varint(message, place)
      yield number, value
      continue
    if kind == _LENGTH:
      size_bytes, place = _varint(message, place)
    elif kind in _FIXED_BYTES:
      size_bytes = _FIXED_BYTES[kind]
    else:
      raise ValueError(f"a field has the unknown wire type {kind}")
    if size_bytes > len(message) - place:
      raise ValueError("a field is longer than its message")
    yield number, message[place : place + size_bytes]
    place += size_bytes


def _varint(message: memoryview, place: int) -> tuple[int, int]:
  """Returns an integer and the place after it."""
  value = 0
  for index in range(_VARINT_BYTES_MAX):
    if place + index >= len(message):
      raise ValueError("a number is cut off")
    byte = message[place + index]
    value |= (byte & 0x7F) << 7 * index
    if byte < 0x80:
      return value, place + index + 1
  raise ValueError("a number is longer than ten bytes")
