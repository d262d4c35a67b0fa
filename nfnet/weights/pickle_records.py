"""Reads a pickle of arrays into inert records: no function is called that a file could name.

A pickle is a program. `pickle.Unpickler` runs it, and even where every name is refused a few bytes
of it can ask for gigabytes (a memo of 2**30 entries), for hours (numbers of a million digits), or
for more nesting than the stack of C holds. So this module does not run pickles. The opcodes are
parsed by `pickletools.genops` of the standard library, which executes nothing, and those few that
NumPy and dill write for a dictionary of arrays are carried out here, in plain Python, on records
that only hold their arguments. Nothing here recurses over what a file says or computes with a
number of more than 64 bits; each opcode takes time and memory in proportion to its bytes.
"""

import dataclasses
import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

import numpy as np

from nfnet.errors import UserError, format_count, quoted, shortened

OPCODES_MAX = 200_000
"""An F7+ has about 70,000; this many take less than half a second."""
NESTING_MAX = 16
_DIMENSIONS_MAX = 8
_INTEGER_BITS_MAX = 64
_KEY_CHARACTERS_MAX = 256
"""A module's name is repeated for each of its leaves, of which a small file may have thousands; the
longest of an F7+ has 47 characters."""
_ELEMENT_TYPES = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
_BYTE_ORDERS = ("<", ">", "=", "|")


class PickledList:
  """Replaces a list or set, whose items are dropped: no array needs one."""


class PickledTuple(tuple):
  """A tuple that knows how deeply it is nested."""

  depth: int


class PickledDict(dict):
  """A dictionary with short keys, which holds only dictionaries without further ones.

  Each of these has one place, so that there are no more leaves than the file has opcodes for.

  Attributes:
    holds_dicts: whether a value is a dictionary.
    is_held: whether this is a value of a dictionary.
  """

  holds_dicts = False
  is_held = False

  def put(self, key: Any, value: Any) -> None:
    """Sets an item.

    Raises:
      ValueError: the key is neither short text nor an integer, or dictionaries are nested three
        deep, or one of them has two places.
    """
    if not isinstance(key, str | int):
      raise ValueError(f"the key of a dictionary is {quoted(key)}")
    if isinstance(key, str) and len(key) > _KEY_CHARACTERS_MAX:
      raise ValueError(f"the key of a dictionary has {len(key)} characters")
    if isinstance(value, PickledDict):
      if value is self or value.holds_dicts or self.is_held:
        raise ValueError("dictionaries are nested more than two deep")
      if value.is_held:
        raise ValueError("a dictionary is in two places")
      self.holds_dicts = value.is_held = True
    self[key] = value


@dataclasses.dataclass(frozen=True)
class Name:
  """A class or function that a file names; it is looked up in a table of this module only."""

  module: str
  name: str


@dataclasses.dataclass
class PickledText:
  """Replaces `_codecs.encode(text, "latin1")`, by which protocols 0 to 2 write bytes."""

  text: str

  def __len__(self) -> int:
    return len(self.text)


@dataclasses.dataclass
class ElementType:
  """Replaces `numpy.dtype(code)`; of the state that follows, only the byte order matters."""

  code: Any
  byte_order: Any = "="

  def to_numpy(self) -> np.dtype:
    """Returns the type.

    Raises:
      ValueError: it is not one of numbers; objects, strings, records and dates are refused.
    """
    if self.code not in _ELEMENT_TYPES or self.byte_order not in _BYTE_ORDERS:
      raise ValueError(f"elements of type {quoted(self.code)} are not numbers")
    return np.dtype(self.code).newbyteorder(self.byte_order)


@dataclasses.dataclass(eq=False)
class Array:
  """Replaces `numpy.ndarray`. The fields are whatever the file says, until they are checked."""

  shape: Any = None
  element_type: Any = None
  order: Any = None
  axes: Any = None
  data: Any = None

  def size_bytes(self) -> int:
    """Returns the length of the array's data, having checked everything that `to_numpy` relies on.

    Raises:
      ValueError: the fields are not those of an array of numbers, or contradict each other.
    """
    if not isinstance(self.element_type, ElementType):
      raise ValueError(f"its element type is {quoted(self.element_type)}")
    # The type is checked first, because the data of an array of objects are a list.
    itemsize = self.element_type.to_numpy().itemsize
    shape = self.shape
    if (
      not isinstance(shape, tuple) or len(shape) > _DIMENSIONS_MAX or not all(map(_is_size, shape))
    ):
      raise ValueError("its shape is not a tuple of a few sizes")
    if not isinstance(self.data, bytes | bytearray | PickledText):
      raise ValueError(f"its data are {quoted(self.data)}, not bytes")
    needed = math.prod(shape) * itemsize
    if len(self.data) != needed:
      raise ValueError(
        f"{format_count(len(self.data), 'byte')} where {tuple(shape)} needs {needed}"
      )
    if self.order == "K":
      if not isinstance(self.axes, tuple) or not all(map(_is_size, self.axes)):
        raise ValueError("its axes are not a tuple of integers")
    elif self.order not in ("C", "F"):
      raise ValueError(f"its order is {quoted(self.order)}")
    return needed

  def to_numpy(self) -> np.ndarray:
    """Returns the array, which may be read-only.

    Raises:
      ValueError: see `size_bytes`.
    """
    self.size_bytes()
    if isinstance(self.data, PickledText):
      self.data = self.data.text.encode("latin1")
    flat = np.frombuffer(self.data, self.element_type.to_numpy())
    if self.order == "K":
      return flat.reshape(self.shape).transpose(self.axes)
    return flat.reshape(self.shape, order=self.order)

  def set_state(self, state: Any) -> None:
    """Sets the fields from what `numpy.ndarray.__setstate__` takes."""
    _, self.shape, self.element_type, is_fortran, self.data = _as_tuple(state, 5, 5)
    if not isinstance(is_fortran, bool):
      raise ValueError(f"its order is {quoted(is_fortran)}")
    self.order = "F" if is_fortran else "C"


def _is_size(value: Any) -> bool:
  return type(value) is int and 0 <= value < 2**48


def _as_tuple(value: Any, length_min: int, length_max: int) -> tuple[Any, ...]:
  if not isinstance(value, tuple) or not length_min <= len(value) <= length_max:
    raise ValueError("the arguments of an array are not what NumPy writes")
  return value


def _element_type(arguments: Any) -> ElementType:
  return ElementType(_as_tuple(arguments, 1, 4)[0])


def _reconstruct(arguments: Any) -> Array:
  """Replaces `_reconstruct(ndarray, (0,), b"b")`, an empty array whose state follows."""
  return Array()


def _from_buffer(arguments: Any) -> Array:
  """Replaces `_frombuffer(data, dtype, shape, order, axes)`, which pickle protocol 5 writes."""
  data, element_type, shape, order, *axes = _as_tuple(arguments, 4, 5)
  return Array(shape, element_type, order, axes[0] if axes else None, data)


def _scalar(arguments: Any) -> Array:
  """Replaces `scalar(dtype, data)`."""
  element_type, data = _as_tuple(arguments, 2, 2)
  return Array(PickledTuple(), element_type, "C", None, data)


def _dill_array(arguments: Any) -> Array:
  """Replaces `_create_array(function, arguments, state, attributes)`, which dill writes."""
  array = Array()
  array.set_state(_as_tuple(arguments, 3, 4)[2])
  return array


def _latin1(arguments: Any) -> PickledText:
  text, encoding = _as_tuple(arguments, 2, 2)
  if not isinstance(text, str) or encoding != "latin1":
    raise ValueError("the bytes of an array are not encoded as NumPy writes them")
  return PickledText(text)


def _class_only(arguments: Any) -> NoReturn:
  raise ValueError("numpy.ndarray is called, which NumPy never writes")


_CALLS: dict[Name, Callable[[Any], Any]] = {
  Name("numpy", "dtype"): _element_type,
  Name("numpy", "ndarray"): _class_only,
  # Each name appears twice: first as in NumPy 1, then as in NumPy 2.
  Name("numpy.core.multiarray", "_reconstruct"): _reconstruct,
  Name("numpy._core.multiarray", "_reconstruct"): _reconstruct,
  Name("numpy.core.multiarray", "scalar"): _scalar,
  Name("numpy._core.multiarray", "scalar"): _scalar,
  Name("numpy.core.numeric", "_frombuffer"): _from_buffer,
  Name("numpy._core.numeric", "_frombuffer"): _from_buffer,
  Name("dill._dill", "_create_array"): _dill_array,
  Name("_codecs", "encode"): _latin1,
}


class _BoundedFile:
  """A file whose `read` never asks for more than the file holds, however much is asked of it."""

  def __init__(self, file: BinaryIO, size_bytes: int):
    self._file = file
    self._left_bytes = size_bytes

  def read(self, size_bytes: int) -> bytes:
    content = self._file.read(min(size_bytes, self._left_bytes))
    self._left_bytes -= len(content)
    return content

  def readline(self) -> bytes:
    content = self._file.readline(self._left_bytes)
    self._left_bytes -= len(content)
    return content


def read_records(file: BinaryIO, size_bytes: int) -> Any:
  """Reads a pickle.

  Args:
    file: file that is open at the pickle's beginning.
    size_bytes: length of the file; no more is read.

  Returns:
    What the pickle holds: a record, a `PickledDict`, a `PickledTuple`, a `PickledList`, text,
    bytes, a number, a truth value or None.

  Raises:
    UserError: the pickle names what no array needs.
    Exception: of many types: the pickle is damaged, exceeds a bound of this module, or holds what
      no array needs.
  """
  machine = _Machine()
  opcodes = pickletools.genops(_BoundedFile(file, size_bytes))
  for count, (opcode, argument, _) in enumerate(opcodes, 1):
    if count > OPCODES_MAX:
      raise ValueError(f"it has more than {OPCODES_MAX} opcodes")
    if opcode.name == "STOP":
      return machine.pop()
    machine.step(opcode.name, argument)
  raise ValueError("it has no end")


_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE")
_UNICODE_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8")
_LITERALS = frozenset((*_NUMBERS, *_TEXTS, *_UNICODE_TEXTS, *_BYTES))
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
  """The stack and the memo of a pickle."""

  def __init__(self):
    self._stack: list[Any] = []
    self._marks: list[int] = []
    self._memo: dict[int, Any] = {}

  def step(self, opcode: str, argument: Any) -> None:
    """Carries out one opcode."""
    if opcode in _LITERALS:
      if isinstance(argument, int) and argument.bit_length() > _INTEGER_BITS_MAX:
        raise ValueError(f"an integer has {argument.bit_length()} bits")
      self._stack.append(argument)
    elif opcode in _CONSTANTS:
      self._stack.append(_CONSTANTS[opcode])
    elif opcode in _TUPLES:
      self._push_tuple(self._pop_many(_TUPLES[opcode]))
    elif action := getattr(self, f"_do_{opcode.lower()}", None):
      action(argument)
    else:
      raise UserError(f"it uses the opcode {opcode}, which no array needs; nothing was executed")

  def pop(self) -> Any:
    return self._pop_many(1)[0]

  def _pop_many(self, count: int) -> list[Any]:
    # What lies below a mark is not yet anybody's argument.
    if len(self._stack) - (self._marks[-1] if self._marks else 0) < count:
      raise ValueError("its stack is empty where a value is needed")
    items = self._stack[len(self._stack) - count :]
    del self._stack[len(self._stack) - count :]
    return items

  def _pop_to_mark(self) -> list[Any]:
    if not self._marks:
      raise ValueError("its stack has no mark where one is needed")
    place = self._marks.pop()
    items = self._stack[place:]
    del self._stack[place:]
    return items

  def _top(self, kind: type) -> Any:
    if not self._stack or not isinstance(self._stack[-1], kind):
      raise ValueError("something is added to what is not a container")
    return self._stack[-1]

  def _push_tuple(self, items: list[Any]) -> None:
    value = PickledTuple(items)
    value.depth = 1 + max(
      (item.depth for item in items if isinstance(item, PickledTuple)), default=0
    )
    if value.depth > NESTING_MAX:
      raise ValueError(f"tuples are nested more than {NESTING_MAX} deep")
    self._stack.append(value)

  def _put_items(self, items: list[Any]) -> None:
    if len(items) % 2:
      raise ValueError("a dictionary has a key without a value")
    target = self._top(PickledDict)
    for key, value in zip(items[::2], items[1::2], strict=True):
      target.put(key, value)

  def _push_name(self, module: Any, name: Any) -> None:
    if not isinstance(module, str) or not isinstance(name, str):
      raise ValueError("a name is not text")
    found = Name(module, name)
    if found not in _CALLS:
      raise UserError(
        f"it names {shortened(f'{module}.{name}')}, which no array needs and which may be harmful; "
        "nothing was executed; get the file from a source that you trust"
      )
    self._stack.append(found)

  # One method for each opcode, named as in pickletools. Each takes the opcode's argument.

  def _do_proto(self, version: int) -> None:
    if version > 5:
      raise ValueError(f"pickle protocol {version} is unknown")

  def _do_frame(self, _: int) -> None:
    pass

  def _do_mark(self, _: None) -> None:
    if len(self._marks) >= NESTING_MAX:
      raise ValueError(f"containers are nested more than {NESTING_MAX} deep")
    self._marks.append(len(self._stack))

  def _do_pop(self, _: None) -> None:
    if self._marks and self._marks[-1] == len(self._stack):
      self._marks.pop()
    else:
      self.pop()

  def _do_pop_mark(self, _: None) -> None:
    self._pop_to_mark()

  def _do_dup(self, _: None) -> None:
    self._stack.append(self._top(object))

  def _do_tuple(self, _: None) -> None:
    self._push_tuple(self._pop_to_mark())

  def _do_empty_list(self, _: None) -> None:
    self._stack.append(PickledList())

  def _do_list(self, _: None) -> None:
    self._pop_to_mark()
    self._stack.append(PickledList())

  def _do_append(self, _: None) -> None:
    self.pop()
    self._top(PickledList)

  def _do_appends(self, _: None) -> None:
    self._pop_to_mark()
    self._top(PickledList)

  def _do_empty_dict(self, _: None) -> None:
    self._stack.append(PickledDict())

  def _do_dict(self, _: None) -> None:
    items = self._pop_to_mark()
    self._stack.append(PickledDict())
    self._put_items(items)

  def _do_setitem(self, _: None) -> None:
    self._put_items(self._pop_many(2))

  def _do_setitems(self, _: None) -> None:
    self._put_items(self._pop_to_mark())

  def _do_memoize(self, _: None) -> None:
    self._do_put(len(self._memo))

  def _do_put(self, place: int) -> None:
    # A dictionary: the place may be any number, and the memory is that of the entries there are.
    if place.bit_length() > _INTEGER_BITS_MAX:
      raise ValueError("a place in the memo is out of range")
    self._memo[place] = self._top(object)

  def _do_get(self, place: int) -> None:
    if place not in self._memo:
      raise ValueError("its memo has no entry where one is needed")
    self._stack.append(self._memo[place])

  _do_binput = _do_long_binput = _do_put
  _do_binget = _do_long_binget = _do_get

  def _do_global(self, module_and_name: str) -> None:
    module, _, name = module_and_name.partition(" ")
    self._push_name(module, name)

  def _do_inst(self, module_and_name: str) -> None:
    self._do_global(module_and_name)
    raise ValueError("an array is an instance, which NumPy never writes")

  def _do_stack_global(self, _: None) -> None:
    self._push_name(*self._pop_many(2))

  def _do_persid(self, identifier: Any) -> NoReturn:
    raise UserError(f"it refers to an external object, {quoted(identifier)}; nothing was executed")

  def _do_binpersid(self, _: None) -> NoReturn:
    self._do_persid(self.pop())

  def _do_reduce(self, _: None) -> None:
    name, arguments = self._pop_many(2)
    if not isinstance(name, Name):
      raise ValueError(f"{quoted(name)} is called")
    self._stack.append(_CALLS[name](arguments))

  def _do_build(self, _: None) -> None:
    state = self.pop()
    target = self._top(object)
    if isinstance(target, Array):
      target.set_state(state)
    elif isinstance(target, ElementType):
      target.byte_order = _as_tuple(state, 2, 9)[1]
    else:
      raise ValueError(f"state for {quoted(target)}, which has none")
