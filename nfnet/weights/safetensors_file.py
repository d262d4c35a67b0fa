"""Reads safetensors files that anybody may have made, and writes our own.

A file (https://github.com/huggingface/safetensors) is 8 bytes with the length of a header, the
header in JSON, and the elements of the arrays. The package `safetensors` writes files, but for
NumPy it reads no bfloat16, lets the second of two arrays with one name win, and parses headers of
100 MB.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from nfnet.errors import UserError, format_count, quoted, short_text
from nfnet.foreign_files.json_text import check_structure, parse_json
from nfnet.foreign_files.regular_files import open_regular

_HEADER_BYTES_MAX = 4 * 2**20
"""The header of an F7+ has 0.2 MB."""
_DIMENSIONS_MAX = 8
_LENGTH_BYTES = 8
_ENTRY = {"dtype": str, "shape": [range(2**48)], "data_offsets": [range(2**48)]}
_ELEMENT_TYPES = {
  "F64": np.dtype("<f8"),
  "F32": np.dtype("<f4"),
  "F16": np.dtype("<f2"),
  "BF16": np.dtype(ml_dtypes.bfloat16),
}


def is_safetensors(path: str) -> bool:
  """Returns whether a file begins as safetensors files do: 8 bytes of length, then JSON.

  Raises:
    UserError: the file cannot be read.
  """
  try:
    with open_regular(path) as file:
      return file.read(_LENGTH_BYTES + 1)[_LENGTH_BYTES:] == b"{"
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be read: {error.strerror}") from error


def read_safetensors(path: str) -> dict[str, np.ndarray]:
  """Reads the arrays of a safetensors file by their names.

  Returns:
    Arrays of float64, float32 or float16 as they are stored; bfloat16 becomes float32, which has
    all of its values.

  Raises:
    UserError: the file cannot be read, contradicts itself, or holds elements of another type.
  """
  try:
    with open_regular(path) as file:
      return _read(file)
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be read: {error.strerror}") from error
  except UserError as error:
    raise UserError(f"weights {path!r} cannot be read: {error}") from error
  except ValueError as error:
    raise UserError(
      f"weights {path!r} cannot be read, the file may be damaged: {short_text(error)}"
    ) from error


def write_safetensors(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by their names.

  Raises:
    UserError: the file cannot be written.
  """
  path = pathlib.Path(path)
  try:
    # The package lets nobody else read a file. One that is there keeps its mode, and a new one has
    # the mode that the umask leaves.
    path.open("ab").close()
    mode = path.stat().st_mode
    safetensors.numpy.save_file(dict(arrays), path)
    path.chmod(mode)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"weights {str(path)!r} cannot be written: {error}") from error


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
  size_bytes = os.fstat(file.fileno()).st_size
  header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
  if header_bytes > min(size_bytes - _LENGTH_BYTES, _HEADER_BYTES_MAX):
    raise ValueError(
      f"a header of {format_count(header_bytes, 'byte')} in a file of {size_bytes:,}; it may have "
      f"{_HEADER_BYTES_MAX:,}"
    )
  header = parse_json(file.read(header_bytes))
  check_structure(header, dict)
  header.pop("__metadata__", None)
  check_structure(header, {str: _ENTRY})
  entries = {name: _checked(name, entry) for name, entry in header.items()}
  tensors = {}
  place = 0
  # The format allows neither gaps nor overlaps.
  for name, (element_type, shape, begin, end) in sorted(
    entries.items(), key=lambda one: one[1][2:]
  ):
    if begin != place:
      raise ValueError(f"the elements of {quoted(name)} do not follow those before them")
    if end - begin > size_bytes - _LENGTH_BYTES - header_bytes - place:
      raise ValueError(f"the elements of {quoted(name)} end after the file does")
    file.seek(_LENGTH_BYTES + header_bytes + begin)
    array = np.fromfile(file, element_type, math.prod(shape)).reshape(shape)
    is_bfloat16 = element_type == ml_dtypes.bfloat16
    tensors[name] = array.astype(np.float32) if is_bfloat16 else array
    place = end
  if place != size_bytes - _LENGTH_BYTES - header_bytes:
    raise ValueError("the file goes on after the elements of its arrays")
  return {name: tensors[name] for name in header}


def _checked(name: str, entry: dict[str, Any]) -> tuple[np.dtype, tuple[int, ...], int, int]:
  """Returns element type, shape, and the places at which the elements begin and end."""
  if entry.keys() != _ENTRY.keys():
    raise ValueError(f"{quoted(name)} has other fields than {', '.join(_ENTRY)}")
  element_type, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
  if element_type not in _ELEMENT_TYPES:
    raise UserError(
      f"{quoted(name)} has elements of type {quoted(element_type)}; weights have one of "
      f"{', '.join(_ELEMENT_TYPES)}"
    )
  if len(shape) > _DIMENSIONS_MAX or len(offsets) != 2:
    raise ValueError(
      f"{quoted(name)} has {format_count(len(shape), 'dimension')} and "
      f"{format_count(len(offsets), 'offset')}"
    )
  needed = math.prod(shape) * _ELEMENT_TYPES[element_type].itemsize
  if offsets[1] - offsets[0] != needed:
    raise ValueError(
      f"{quoted(name)} has {format_count(offsets[1] - offsets[0], 'byte')} where "
      f"{tuple(shape)} needs {needed}"
    )
  return _ELEMENT_TYPES[element_type], tuple(shape), *offsets
