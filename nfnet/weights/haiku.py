"""Converts parameters to and from the layout of the released weights, {module: {leaf: array}}.

`haiku_pickle` reads and writes the files themselves, `haiku_and_timm_names` has the names.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nfnet.weights.haiku_and_timm_names import parameter_names
from nfnet.weights.haiku_pickle import HaikuTree, write_haiku
from nfnet.weights.network_matching import Layout, Weights, flatten, match_network, parameter_at

HAIKU = Layout(
  label=lambda name: f"{name.haiku_module}/{name.haiku_leaf}",
  to_file=lambda kind, array: array,
  from_file=lambda kind, array: array,
)


def from_haiku(tree: HaikuTree, variant: str | None = None) -> Weights:
  """Returns the weights in a haiku tree.

  Args:
    tree: tree as `nfnet.weights.haiku_pickle.read_haiku` returns it.
    variant: variant that the tree must have; None accepts any.

  Raises:
    UserError: the tree is not that variant's; the message names the first parameter that differs.
  """
  tensors = dict(flatten(tree))
  return match_network(tensors, HAIKU, variant=variant, bottleneck=None, source="haiku tree")


def to_haiku(parameters: Mapping[str, Any], variant: str) -> HaikuTree:
  """Returns the haiku tree of `parameters`."""
  tree: HaikuTree = {}
  for name in parameter_names(variant):
    array = np.asarray(parameter_at(parameters, name.path))
    tree.setdefault(name.haiku_module, {})[name.haiku_leaf] = array
  return tree


def save_haiku(path: str, parameters: Mapping[str, Any], variant: str) -> None:
  """Writes a file of the released format.

  Raises:
    UserError: the file cannot be written.
  """
  write_haiku(path, to_haiku(parameters, variant))
