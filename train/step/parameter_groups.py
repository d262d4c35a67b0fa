"""The role of each parameter in training, as one explicit record per parameter.

`PARAMETER_GROUPS` is the only place that decides which parameters AGC clips, which ones weight
decay applies to, and along which axis each is divided among the parameter shards. The optimizer and
`train.step.sharding.parameters` read `ParameterRole`s and never look at names or shapes.

Paper B, section 4.1, and the code released with it: AGC clips every parameter but the classifier's
weight; weight decay is switched off for gains, biases and skip gains.
"""

import dataclasses
import re
from typing import Any

import jax
from jax.sharding import Mesh

from kernels.layout import LANES, is_stored_by_output, tile_rows
from nfnet.block_arrangement import BLOCKS, is_stacked
from nfnet.model import CLASSIFIER_WEIGHT, NFNet, parameter_name
from train.step.model import arranged_parameter_shapes
from train.step.sharding.mesh import SHARD_AXIS


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterGroup:
  """The parameters whose names match a pattern, and what training does with them.

  Attributes:
    pattern: regular expression that matches the whole name, for example "blocks/3/conv0/weight".
    clipped: whether AGC clips the gradient.
    decayed: whether L2 weight decay is added to the gradient.
    sharded_axis: axis that is divided among the parameter shards, counted from the last one (-1);
      None keeps the parameter whole on every device.
    travels_in_rows: whether kernels get the parameter as `kernels.StandardizedFilters`, of which a
      shard must have rows that fill tiles.
    fully_connected: whether it is a weight of a fully connected layer.
  """

  pattern: str
  clipped: bool
  decayed: bool
  sharded_axis: int | None
  travels_in_rows: bool = False
  fully_connected: bool = False


_TILE_ROWS = tile_rows(2)
"""Rows of bfloat16 that fill a tile of a TPU's memory."""

PARAMETER_GROUPS = (
  # Divided along its inputs: none of its units is clipped, so none has to stay on one device, and
  # its outputs are the classes, whose number is rarely divisible by the number of shards.
  ParameterGroup(
    pattern=CLASSIFIER_WEIGHT, clipped=False, decayed=True, sharded_axis=-2, fully_connected=True
  ),
  # Each of these is one unit of AGC as a whole.
  ParameterGroup(
    pattern=r".*/(gain|bias|skip_gain)", clipped=True, decayed=False, sharded_axis=None
  ),
  # Divided along their outputs, so that the norm of every unit is computed on one device.
  ParameterGroup(
    pattern=rf"({BLOCKS}/[^/]+/conv[^/]*|final_conv)/weight",
    clipped=True,
    decayed=True,
    sharded_axis=-1,
    travels_in_rows=True,
  ),
  ParameterGroup(
    pattern=rf"{BLOCKS}/[^/]+/squeeze_excite/(squeeze|excite)/weight",
    clipped=True,
    decayed=True,
    sharded_axis=-1,
    fully_connected=True,
  ),
  ParameterGroup(pattern=r".*/weight", clipped=True, decayed=True, sharded_axis=-1),
)
"""Groups in order of precedence: the first one whose pattern matches a name applies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterRole:
  """The role of one parameter in training.

  Attributes:
    clipped: whether AGC clips the gradient.
    decayed: whether L2 weight decay is added to the gradient.
    stacked: whether the first axis counts equal blocks, each of which has norms of its own.
    sharded_axis: axis that is divided among the parameter shards; None if the parameter is whole on
      every device.
    has_gradient_kernel: whether a kernel computes the gradient, in the dtype in which it travels.
      It is a divided weight of a fully connected layer, stored as its parts are, since it would be
      copied otherwise.
  """

  clipped: bool
  decayed: bool
  stacked: bool
  sharded_axis: int | None
  has_gradient_kernel: bool


def parameter_roles(model: NFNet, mesh: Mesh | None = None) -> Any:
  """Returns the role of every parameter of a network, in the arrangement in which its blocks run.

  Args:
    model: the network.
    mesh: mesh from `train.step.sharding.mesh.make_mesh`; None stands for one device.

  Returns:
    `ParameterRole`s in a tree like `train.step.model.arranged_parameter_shapes(model)`.

  Raises:
    ValueError: a parameter is in no group.
  """
  parameter_shards = 1 if mesh is None else mesh.shape[SHARD_AXIS]
  has_kernels = model.implementation == "pallas"
  return jax.tree_util.tree_map_with_path(
    lambda path, x: parameter_role(
      parameter_name(path), x.shape, parameter_shards, has_kernels=has_kernels
    ),
    arranged_parameter_shapes(model),
  )


def parameter_role(
  name: str, shape: tuple[int, ...], parameter_shards: int = 1, *, has_kernels: bool = False
) -> ParameterRole:
  """Returns the role of one parameter; an axis that the shards cannot divide evenly stays whole.

  Args:
    name: keys joined by slashes, for example "blocks/3/conv0/weight", or "blocks/3:5/conv0/weight"
      for two stacked blocks.
    shape: shape of the parameter, including the axis of a stack.
    parameter_shards: number of devices that hold one copy of the parameters together.
    has_kernels: whether kernels run the network.

  Raises:
    ValueError: the parameter is in no group.
  """
  group = _group_of(name)
  axis = None if group.sharded_axis is None else len(shape) + group.sharded_axis
  parts = parameter_shards * (_TILE_ROWS if has_kernels and group.travels_in_rows else 1)
  is_divided = axis is not None and parameter_shards > 1 and shape[axis] % parts == 0
  has_gradient_kernel = has_kernels and group.fully_connected and is_divided
  if has_gradient_kernel:
    part = tuple(n // parameter_shards if i == axis else n for i, n in enumerate(shape))
    by_output = is_stored_by_output(shape)
    fills_lanes = by_output or shape[-1] % LANES == 0
    has_gradient_kernel = fills_lanes and is_stored_by_output(part) == by_output
  return ParameterRole(
    clipped=group.clipped,
    decayed=group.decayed,
    stacked=any(map(is_stacked, name.split("/"))),
    sharded_axis=axis if is_divided else None,
    has_gradient_kernel=has_gradient_kernel,
  )


def _group_of(name: str) -> ParameterGroup:
  for group in PARAMETER_GROUPS:
    if re.fullmatch(group.pattern, name):
      return group
  raise ValueError(
    f"parameter {name!r} matches no pattern of PARAMETER_GROUPS in {__name__}; add one"
  )
