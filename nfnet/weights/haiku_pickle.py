"""Reads and writes the file format of the released weights, without executing what a file says.

The published files are dill pickles of `{module: {leaf: array}}`, despite their name "*.npz". A
pickle is a program that names functions and has them called. This reader therefore calls no
function of NumPy, dill or any other package. It replaces the few names that a pickled array needs
by the inert classes below, which only record their arguments; arrays are made from these records
after checks. Any other name is refused before anything is done with it.
"""

import math
import pickle
import re
from typing import Any, NoReturn

import numpy as np

from nfnet.errors import UserError

HaikuTree = dict[str, dict[str, np.ndarray]]


class _StandIn:
  """Replaces a class or function that a pickled array names."""

  def __setstate__(self, state: Any) -> NoReturn:
    # Without this, a pickle could set attributes of the class itself.
    raise pickle.UnpicklingError(f"state for {self!r}, which has none")


class _DType(_StandIn):
  """Replaces `numpy.dtype(code)`; of the state that follows, only the byte order matters."""

  def __init__(self, code: str, *_: Any):
    self.code = code
    self.byte_order = "="

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    self.byte_order = state[1]

  def to_numpy(self) -> np.dtype:
    # Weights are numbers; objects, strings, records and dates are refused.
    if not re.fullmatch(r"[biuf]\d{1,2}", self.code) or self.byte_order not in ("<", ">", "=", "|"):
      raise ValueError(f"elements of type {self.code!r} are not numbers")
    return np.dtype(self.code).newbyteorder(self.byte_order)


class _Array(_StandIn):
  """Replaces `numpy.ndarray`, as an argument and as what the functions below return."""

  def __init__(
    self,
    shape: Any = None,
    dtype: Any = None,
    order: Any = None,
    axes: Any = None,
    data: Any = None,
  ):
    self.shape, self.dtype, self.order, self.axes, self.data = shape, dtype, order, axes, data

  def __setstate__(self, state: tuple[Any, ...]) -> None:
    _, self.shape, self.dtype, is_fortran, self.data = state
    self.order = "F" if is_fortran else "C"

  def to_numpy(self) -> np.ndarray:
    # The type is checked first, because the data of an array of objects are a list.
    dtype = self.dtype.to_numpy()
    expected_bytes = math.prod(self.shape) * dtype.itemsize
    if len(self.data) != expected_bytes:
      raise ValueError(f"{len(self.data)} bytes where {self.shape} needs {expected_bytes}")
    flat = np.frombuffer(self.data, dtype)
    if self.order == "K":
      return flat.reshape(self.shape).transpose(self.axes)
    return flat.reshape(self.shape, order=self.order)


class _Reconstruct(_StandIn):
  """Replaces `_reconstruct(ndarray, (0,), b"b")`, an empty array whose state follows."""

  def __new__(cls, *_: Any) -> _Array:
    return _Array()


class _FromBuffer(_StandIn):
  """Replaces `_frombuffer(data, dtype, shape, order, axes)`, which pickle protocol 5 writes."""

  def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    return _Array(shape, dtype, order, axes, data)


class _Scalar(_StandIn):
  """Replaces `scalar(dtype, data)`."""

  def __new__(cls, dtype: Any, data: Any) -> _Array:
    return _Array((), dtype, "C", None, data)


class _DillArray(_StandIn):
  """Replaces `_create_array(function, arguments, state, attributes)`, which dill writes."""

  def __new__(cls, function: Any, arguments: Any, state: Any, *_: Any) -> _Array:
    array = _Array()
    array.__setstate__(state)
    return array


class _Latin1(_StandIn):
  """Replaces `_codecs.encode(text, "latin1")`, by which protocols 0 to 2 write bytes."""

  def __new__(cls, text: str, _: str) -> bytes:
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
  ("numpy", "dtype"): _DType,
  ("numpy", "ndarray"): _Array,
  # Each name appears twice: first as in NumPy 1, then as in NumPy 2.
  ("numpy.core.multiarray", "_reconstruct"): _Reconstruct,
  ("numpy._core.multiarray", "_reconstruct"): _Reconstruct,
  ("numpy.core.multiarray", "scalar"): _Scalar,
  ("numpy._core.multiarray", "scalar"): _Scalar,
  ("numpy.core.numeric", "_frombuffer"): _FromBuffer,
  ("numpy._core.numeric", "_frombuffer"): _FromBuffer,
  ("dill._dill", "_create_array"): _DillArray,
  ("_codecs", "encode"): _Latin1,
}


class _Unpickler(pickle.Unpickler):
  def find_class(self, module: str, name: str) -> type[_StandIn]:
    if (module, name) not in _STAND_INS:
      raise UserError(
        f"it names {module}.{name}, which no array needs and which may be harmful; nothing was "
        "executed; get the file from a source that you trust"
      )
    return _STAND_INS[module, name]

  def persistent_load(self, identifier: Any) -> NoReturn:
    raise UserError(f"it refers to an external object, {identifier!r}; nothing was executed")


def read_haiku(path: str) -> HaikuTree:
  """Reads a file that pickle or dill wrote with any protocol.

  Args:
    path: path of a pickle of `{module: {leaf: array}}`.

  Returns:
    The tree; its arrays may be read-only.

  Raises:
    UserError: the file cannot be read, names anything but arrays, or holds another structure.
  """
  try:
    with open(path, "rb") as file:
      tree = _Unpickler(file).load()
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be read: {error.strerror}") from error
  except UserError as error:
    raise UserError(f"weights {path!r} are refused: {error}") from error
  # On damaged pickles the parser raises a dozen types, MemoryError and IndexError among them.
  except Exception as error:
    raise UserError(
      f"weights {path!r} are neither a haiku pickle nor a safetensors file, or are damaged "
      f"({type(error).__name__}: {error})"
    ) from error
  return _checked(tree, path)


def write_haiku(path: str, tree: HaikuTree) -> None:
  """Writes `tree` in the format of the released files: a pickle that names nothing but NumPy.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    with open(path, "wb") as file:
      # Python 3.4 and later read protocol 4.
      pickle.dump(tree, file, protocol=4)
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be written: {error.strerror}") from error


def _checked(tree: Any, path: str) -> HaikuTree:
  if not isinstance(tree, dict):
    raise UserError(f"weights {path!r} hold a {_type_name(tree)}, not modules of arrays")
  result: HaikuTree = {}
  for module, leaves in tree.items():
    if not isinstance(module, str) or not isinstance(leaves, dict):
      raise UserError(f"weights {path!r}: {module!r} holds a {_type_name(leaves)}, not arrays")
    result[module] = {}
    for leaf, array in leaves.items():
      if not isinstance(leaf, str) or not isinstance(array, _Array):
        raise UserError(f"weights {path!r}: {module}/{leaf} is a {_type_name(array)}, not an array")
      try:
        result[module][leaf] = array.to_numpy()
      # The records may be anything: a shape that is text, an element type that is an array.
      except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(
          f"weights {path!r}: {module}/{leaf} is not a valid array: {error}"
        ) from error
  return result


def _type_name(value: Any) -> str:
  return type(value).__name__.lstrip("_").lower()
