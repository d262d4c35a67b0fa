"""Arranges the parameters of equal blocks: separate for each block, or stacked.

In the separate arrangement each block has its number as key: {"blocks": {"0": ..., "1": ...,
"2": ...}}. A program that runs equal blocks as one loop needs their parameters as one array with a
leading axis: {"blocks": {"0": ..., "1:3": ...}}, where a key is a range of blocks, written as a
slice. Both hold the same numbers. Any tree that contains parameters, gradients or momentum can have
either arrangement.

A training state is stacked where the program loops. Stacking inside the step would copy every
parameter each time, and an optimizer of some 1,700 separate arrays takes minutes to compile.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BLOCKS = "blocks"
_BLOCKS_MAX = 1000


def block_key(blocks: range) -> str:
  """Returns the key of one block or of a stack of several."""
  return f"{blocks.start}:{blocks.stop}" if len(blocks) > 1 else f"{blocks.start}"


def is_stacked(key: str) -> bool:
  """Returns whether a key denotes a stack of several blocks."""
  return ":" in key


def arrange_blocks(tree: Any, keys: Iterable[str] | None = None) -> Any:
  """Returns the same parameters with their blocks arranged under the given keys.

  Args:
    tree: nested dictionaries, in which every dictionary called "blocks" is arranged. Leaves are
      NumPy or JAX arrays, or `jax.ShapeDtypeStruct` with or without a sharding.
    keys: keys of the result, which together cover all blocks; None gives each block its own key.

  Raises:
    KeyError: a block that a key covers is missing.
  """
  if not isinstance(tree, Mapping):
    return tree
  keys = None if keys is None else tuple(keys)
  return {
    name: _arrange(value, keys) if name == BLOCKS else arrange_blocks(value, keys)
    for name, value in tree.items()
  }


def _arrange(blocks: Mapping[str, Any], keys: tuple[str, ...] | None) -> Mapping[str, Any]:
  if keys is not None and set(blocks) == set(keys):
    return blocks
  single = {}
  for key, block in blocks.items():
    if is_stacked(key):
      for position, i in enumerate(_range(key)):
        single[str(i)] = jax.tree.map(lambda leaf, at=position: _take(leaf, at), block)
    else:
      single[key] = block
  if keys is None:
    return single
  return {
    key: jax.tree.map(_stack, *(single[str(i)] for i in _range(key)))
    if is_stacked(key)
    else single[key]
    for key in keys
  }


def _range(key: str) -> range:
  blocks = range(*map(int, key.split(":")))
  # The key may be from a file; a loop over billions of blocks would not end.
  if len(blocks) > _BLOCKS_MAX:
    raise ValueError(f"{key[:80]} is not a range of at most {_BLOCKS_MAX} blocks")
  return blocks


def _take(leaf: Any, position: int) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return _described(leaf, leaf.shape[1:], lambda spec: spec[1:])
  return leaf[position]


def _stack(*leaves: Any) -> Any:
  first = leaves[0]
  if isinstance(first, jax.ShapeDtypeStruct):
    return _described(first, (len(leaves), *first.shape), lambda spec: (None, *spec))
  # Arrays on the host stay on the host.
  return np.stack(leaves) if isinstance(first, np.ndarray | np.generic) else jnp.stack(leaves)


def _described(leaf: jax.ShapeDtypeStruct, shape: tuple[int, ...], new_spec) -> Any:
  sharding = leaf.sharding
  if sharding is not None:
    spec = jax.sharding.PartitionSpec(*new_spec(tuple(sharding.spec)))
    sharding = jax.sharding.NamedSharding(sharding.mesh, spec)
  return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=sharding)
