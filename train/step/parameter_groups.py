"""Which parameters are clipped and which decay.

Paper B, section 4.1 and the code released with it: AGC clips every parameter but the classifier's
weight; gains, biases and skip gains do not decay.
"""

import dataclasses
import re
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
  """What the optimizer does with the parameters whose name `pattern` matches as a whole."""

  pattern: str
  clipped: bool
  decayed: bool


PARAMETER_GROUPS = (
  ParameterGroup(r"classifier/weight", clipped=False, decayed=True),
  ParameterGroup(r".*/(gain|bias|skip_gain)", clipped=True, decayed=False),
  ParameterGroup(r".*/weight", clipped=True, decayed=True),
)
"""In order: the first that matches counts."""


def parameter_name(path: tuple[Any, ...]) -> str:
  """Keys joined by slashes, for example "blocks/3/conv0/weight"."""
  return "/".join(str(key.key) for key in path)


def assign_groups(parameters: Any, groups: tuple[ParameterGroup, ...] = PARAMETER_GROUPS) -> Any:
  """A tree like `parameters` of the group that each belongs to.

  Args:
    parameters: nested dictionaries.
    groups: the first match counts.

  Raises:
    ValueError: a parameter is in no group, or a group has no parameter.
  """
  used = set()

  def assign(path, _):
    name = parameter_name(path)
    for group in groups:
      if re.fullmatch(group.pattern, name):
        used.add(group)
        return group
    raise ValueError(f"parameter {name!r} is in no group")

  assigned = jax.tree_util.tree_map_with_path(assign, parameters)
  if idle := [group.pattern for group in groups if group not in used]:
    raise ValueError(f"no parameter matches {', '.join(idle)}")
  return assigned
