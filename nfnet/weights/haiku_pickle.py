"""Reads and writes the file format of the released weights, without executing what a file says.

The published files are dill pickles of `{module: {leaf: array}}`, despite their name "*.npz".
`pickle_records` reads them into records that only hold what the file says; arrays are made from
these here, after checks.
"""

import os
import pickle
from typing import Any

import numpy as np

from nfnet.errors import UserError, quoted, short_text, shortened
from nfnet.foreign_files.regular_files import open_regular
from nfnet.weights.pickle_records import Array, PickledDict, read_records

HaikuTree = dict[str, dict[str, np.ndarray]]


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
    with open_regular(path) as file:
      size_bytes = os.fstat(file.fileno()).st_size
      tree = read_records(file, size_bytes)
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be read: {error.strerror}") from error
  except UserError as error:
    raise UserError(f"weights {path!r} are refused: {error}") from error
  # On damaged pickles pickletools raises half a dozen types.
  except Exception as error:
    raise UserError(
      f"weights {path!r} are neither a haiku pickle nor a safetensors file, or are damaged "
      f"({short_text(error)})"
    ) from error
  return _checked(tree, path, size_bytes)


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


def _checked(tree: Any, path: str, size_bytes: int) -> HaikuTree:
  if not isinstance(tree, PickledDict):
    raise UserError(f"weights {path!r} hold {_type_name(tree)}, not modules of arrays")
  result: HaikuTree = {}
  arrays: dict[Array, np.ndarray] = {}
  left_bytes = size_bytes
  for module, leaves in tree.items():
    if not isinstance(module, str) or not isinstance(leaves, PickledDict):
      raise UserError(f"weights {path!r}: {quoted(module)} holds {_type_name(leaves)}, not arrays")
    result[module] = {}
    for leaf, array in leaves.items():
      label = shortened(f"{module}/{leaf}")
      if not isinstance(leaf, str) or not isinstance(array, Array):
        raise UserError(f"weights {path!r}: {label} is {_type_name(array)}, not an array")
      try:
        if array not in arrays:
          # Text of protocols 0 to 2 can be encoded any number of times.
          left_bytes -= array.size_bytes()
          if left_bytes < 0:
            raise ValueError("the arrays together are larger than the file")
          arrays[array] = array.to_numpy()
      # NumPy has bounds of its own.
      except ValueError as error:
        raise UserError(
          f"weights {path!r}: {label} is not a valid array: {short_text(error)}"
        ) from error
      result[module][leaf] = arrays[array]
  return result


def _type_name(value: Any) -> str:
  if value is None:
    return "nothing"
  name = type(value).__name__.lower().removeprefix("pickled")
  return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
