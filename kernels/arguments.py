"""Checks the arguments of the public ops before anything is computed with them.

JAX broadcasts what happens to fit, and refuses the rest from inside of an op. What these functions
refuse is a ValueError of one line, with the argument's name, what it is, and what it must be. They
look at shapes and dtypes only, which are known while a program is traced.
"""

import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from kernels.dispatch import Implementation
from kernels.scaled_ws_conv.formulas import Standardization

_TEXT_CHARACTERS_MAX = 80
_COUNT_MAX = 2**31 - 1


def check_arrays(**arrays: tuple[Any, str]) -> None:
  """Checks that arrays have the axes that an op names, and that axes of one name are equally long.

  Args:
    **arrays: for each argument, its value and the names of its axes, such as "height width images
      channels". A name that is a number is the axis's length; "_" is an axis of any length.

  Raises:
    ValueError: an argument is not an array of floats, or has other axes.
  """
  lengths: dict[str, tuple[Any, str]] = {}
  for name, (value, axes) in arrays.items():
    check_floats(name, value)
    # By NumPy, since jax2onnx, while it exports, replaces JAX's function by one that traces.
    shape, axis_names = np.shape(value), axes.split()
    wanted = f"must be [{', '.join(axis_names)}]" if axis_names else "must be a scalar"
    if len(shape) != len(axis_names):
      raise ValueError(f"{name} has the shape {list(shape)}; {wanted}")
    for axis, length in zip(axis_names, shape, strict=True):
      if axis == "_":
        continue
      default = (int(axis), "") if axis.isdecimal() else (length, name)
      known, first = lengths.setdefault(axis, default)
      if length != known:
        whose = f", where {axis} is {known} in {first}" if first else ""
        raise ValueError(f"{name} has the shape {list(shape)}; {wanted}{whose}")


def given(**arrays: tuple[Any, str]) -> dict[str, tuple[Any, str]]:
  """Returns those of the arrays for `check_arrays` that are not None."""
  return {name: one for name, one in arrays.items() if one[0] is not None}


def check_floats(name: str, value: Any) -> None:
  """Raises ValueError unless an argument is an array of floats or a number."""
  if isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool):
    return
  is_array = isinstance(value, jax.Array | np.ndarray)
  if not is_array or not jnp.issubdtype(value.dtype, jnp.floating):
    found = f"is {value.dtype}" if is_array else f"is {shown(value)}"
    raise ValueError(f"{name} {found}; must be an array of floats")


def check_type(name: str, value: Any, kind: type, cure: str) -> None:
  """Raises ValueError unless an argument has a type, which the cure says how to make."""
  if not isinstance(value, kind):
    raise ValueError(f"{name} is {shown(value)}; must be {kind.__name__}, {cure}")


def check_same_shapes(trees: Mapping[str, Any]) -> None:
  """Checks that mappings from names to arrays have the names and shapes of the first of them.

  Args:
    trees: the mappings by the names of the arguments.

  Raises:
    ValueError: one is not a mapping of arrays of floats, or has other names or shapes.
  """
  (first_name, first), *_ = trees.items()
  for name, tree in trees.items():
    if not isinstance(tree, Mapping):
      raise ValueError(f"{name} is {shown(tree)}; must be a dictionary of arrays by name")
    if other := sorted(map(str, tree.keys() ^ first.keys())):
      raise ValueError(
        f"{name} and {first_name} do not have the same names: {shown(other[0])} is in one of them"
      )
    for key, value in tree.items():
      check_floats(f"{name}[{shown(key)}]", value)
      if np.shape(value) != np.shape(first[key]):
        raise ValueError(
          f"{name}[{shown(key)}] has the shape {list(np.shape(value))}; must be "
          f"{list(np.shape(first[key]))}, as in {first_name}"
        )


def check_sequence(name: str, value: Any, length: int | None, content: str) -> None:
  """Raises ValueError unless an argument is a tuple or list of a length; None is any but 0."""
  if not isinstance(value, list | tuple):
    raise ValueError(f"{name} is {shown(value)}; must be a tuple of {content}")
  if length is None and not value:
    raise ValueError(f"{name} is empty; must be a tuple of {content}")
  if length is not None and len(value) != length:
    raise ValueError(f"{name} has the length {len(value)}; must be {length} {content}")


def check_options(**options: Any) -> None:
  """Checks the arguments of ops that are not arrays, by their names.

  Args:
    **options: values of any of the names that `_OPTIONS` has.

  Raises:
    ValueError: a value is of another kind or outside of its bounds.
  """
  for name, value in options.items():
    is_allowed, description = _OPTIONS[name]
    if not is_allowed(value):
      raise ValueError(f"{name}={shown(value)}: must be {description}")


def shown(value: Any) -> str:
  """Returns a value as a message shows it: a short text or number, or the type of anything else."""
  if isinstance(value, str):
    dots = "..." if len(value) > _TEXT_CHARACTERS_MAX else ""
    return repr(value[:_TEXT_CHARACTERS_MAX]) + dots
  if isinstance(value, int) and value.bit_length() > 128:
    return f"an integer of {value.bit_length()} bits"
  if value is None or isinstance(value, bool | int | float):
    return repr(value)
  return f"a value of type {type(value).__name__}"


def _is_count(value: Any) -> bool:
  try:
    return not isinstance(value, bool) and 1 <= operator.index(value) <= _COUNT_MAX
  except TypeError:
    return False


def _is_flag(value: Any) -> bool:
  return isinstance(value, bool)


def _is_floating_dtype(value: Any) -> bool:
  try:
    # NumPy takes None for float64.
    return value is not None and jnp.issubdtype(jnp.dtype(value), jnp.floating)
  except (TypeError, ValueError):
    return False


def _is_finite(value: Any) -> bool:
  try:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
  except OverflowError:
    return False


def _is_one_of(choices: Sequence[str]):
  return lambda value: isinstance(value, str) and value in choices


_COUNT = (_is_count, "a whole number of at least 1")
_FLAG = (_is_flag, "True or False")
_OPTIONS = {
  "stride": _COUNT,
  "groups": _COUNT,
  "pool": _FLAG,
  "returns_input": _FLAG,
  "stacked": _FLAG,
  "unpacks": _FLAG,
  "activation": (
    lambda value: value is None or callable(value),
    "a function of an array, such as jax.nn.relu, or None",
  ),
  "alpha": (_is_finite, "a finite number"),
  "dtype": (_is_floating_dtype, "a floating-point type, such as jnp.bfloat16"),
  "gradient_dtype": (
    lambda value: value is None or _is_floating_dtype(value),
    "a floating-point type, such as jnp.float32, or None for no gradient",
  ),
  "standardization": (_is_one_of(get_args(Standardization)), "'released' or 'timm'"),
  "implementation": (_is_one_of(get_args(Implementation)), "'reference' or 'pallas'"),
}
"""Rules of the options by their names: a test of the value, and what the value must be."""
