"""Checks what loops of other projects give to the optimizer, its clipping and SAM."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nfnet.errors import check_number, quoted
from nfnet.model import parameter_name


def check_scalar(name: str, value: Any, is_allowed: Any, description: str) -> None:
  """Checks a number, or a scalar of JAX or NumPy; of a traced one, only that it is a scalar.

  Args:
    name: see `nfnet.errors.check_number`, as for all further arguments.
    value: what the caller gives.
    is_allowed: whether a number is within the bounds.
    description: what the argument must be.

  Raises:
    ValueError: it is not a number, or outside of its bounds.
  """
  if isinstance(value, jax.core.Tracer) and value.ndim == 0:
    return
  is_array = isinstance(value, jax.Array | np.ndarray) and value.ndim == 0
  if is_array and jnp.issubdtype(value.dtype, jnp.number):
    value = value.item()
  check_number(name, value, is_allowed, description)


def check_parameters(parameters: Any) -> None:
  """Raises ValueError unless parameters are a tree of arrays of floats."""
  _shapes("parameters", parameters)


def check_alike(gradients: Any, parameters: Any) -> None:
  """Checks that gradients have the names and shapes of their parameters.

  Raises:
    ValueError: they differ, or something among them is not an array of floats.
  """
  shapes = [
    _shapes(name, tree) for name, tree in (("gradients", gradients), ("parameters", parameters))
  ]
  for name in [*shapes[1], *shapes[0]]:
    ours, theirs = (tree.get(name) for tree in shapes)
    if ours != theirs:
      ours, theirs = (
        "none" if shape is None else f"shape {list(shape)}" for shape in (ours, theirs)
      )
      raise ValueError(
        f"gradients and parameters differ in {quoted(name)}: {ours} and {theirs}; give gradients "
        "of a loss with respect to these parameters"
      )
  if jax.tree.structure(gradients) != jax.tree.structure(parameters):
    raise ValueError("gradients and parameters are in containers of different types")


def _shapes(what: str, tree: Any) -> dict[str, tuple[int, ...]]:
  try:
    leaves = jax.tree.leaves_with_path(tree)
  # Keys of a dictionary that cannot be sorted.
  except ValueError as error:
    raise ValueError(f"{what} are not a tree of arrays: the keys of a dictionary differ") from error
  shapes = {}
  for path, leaf in leaves:
    name = parameter_name(path)
    dtype = getattr(leaf, "dtype", None)
    if not isinstance(leaf, float) and (dtype is None or not jnp.issubdtype(dtype, jnp.floating)):
      found = quoted(leaf) if dtype is None else dtype
      raise ValueError(f"{what} have {quoted(name)} = {found}; must be a tree of arrays of floats")
    shapes[name] = jnp.shape(leaf)
  return shapes
