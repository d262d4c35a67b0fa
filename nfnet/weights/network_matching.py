"""Finds the network whose parameters a file holds, and arranges them as this project does.

Each file format (`haiku`, `timm`, `load`) has a `Layout`: how it names and stores parameters.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from nfnet.errors import UserError, shortened
from nfnet.model import NFNet, parameter_shapes
from nfnet.variants import VARIANTS, Bottleneck
from nfnet.weights.haiku_and_timm_names import Kind, ParameterName, parameter_names

_BOTTLENECKS: tuple[Bottleneck, ...] = ("paper", "released")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """Holds a network's parameters and what is known about the network.

  Attributes:
    parameters: nested dictionaries of float32 NumPy arrays, as `nfnet.model.apply` takes them.
    variant: name of the variant.
    bottleneck: bottleneck according to the shapes; "paper" where both have the same shapes.
    num_classes: width of the classifier.
    metadata: what a checkpoint of this project says about its experiment; None for other files.
    class_names: one name for each class; None if the file does not name them.
  """

  parameters: dict[str, Any]
  variant: str
  bottleneck: Bottleneck
  num_classes: int
  metadata: dict[str, Any] | None
  class_names: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Describes how a kind of file names and stores parameters.

  Attributes:
    label: function that returns a parameter's name in the file.
    to_file: function from one of this project's arrays to a view of it as the file stores it.
    from_file: inverse of `to_file`.
  """

  label: Callable[[ParameterName], str]
  to_file: Callable[[Kind, np.ndarray], np.ndarray]
  from_file: Callable[[Kind, np.ndarray], np.ndarray]


def match_network(
  tensors: Mapping[str, np.ndarray],
  layout: Layout,
  *,
  variant: str | None,
  bottleneck: Bottleneck | None,
  source: str,
) -> Weights:
  """Checks that `tensors` are exactly the parameters of one network, and arranges them.

  Args:
    tensors: arrays by their names in the file.
    layout: layout of the file.
    variant: variant that the tensors must fit; None tries all.
    bottleneck: bottleneck that the tensors must fit; None tries both. See `Variant.blocks`.
    source: name of the file in error messages.

  Raises:
    UserError: the tensors fit no such network; the message names the first difference.
  """
  num_classes = _num_classes(tensors, layout)

  def mismatch(variant: str, bottleneck: Bottleneck) -> str | None:
    return _first_mismatch(tensors, layout, variant, bottleneck, num_classes)

  wanted = [
    (v, b)
    for v in ([variant] if variant else VARIANTS)
    for b in ([bottleneck] if bottleneck else _BOTTLENECKS)
  ]
  found = next((network for network in wanted if mismatch(*network) is None), None)
  if found is not None:
    return _arrange(tensors, layout, *found, num_classes, source)
  similar = next(((v, b) for v in VARIANTS for b in _BOTTLENECKS if mismatch(v, b) is None), None)
  looks = (
    "they fit no variant"
    if similar is None
    else "they look like {} ({} bottleneck)".format(*similar)
  )
  if variant is None:
    raise UserError(f"{source}: {looks}{_difference(tensors, layout, mismatch)}")
  raise UserError(f"{source} do not fit {variant}: {mismatch(*wanted[0])}; {looks}")


def _difference(
  tensors: Mapping[str, np.ndarray],
  layout: Layout,
  mismatch: Callable[[str, Bottleneck], str | None],
) -> str:
  """Returns the first difference from the variant whose parameters have the most similar names."""
  differing = {v: len(_names(layout, v).keys() ^ tensors.keys()) for v in VARIANTS}
  closest = min(differing, key=differing.__getitem__)
  names = _names(layout, closest)
  if not names.keys() & tensors.keys():
    found = shortened(next(iter(tensors), "nothing"))
    return f", as none of their names is known: the first is {found}, and not {next(iter(names))}"
  return f"; the closest is {closest}, but {mismatch(closest, 'paper')}"


def _first_mismatch(
  tensors: Mapping[str, np.ndarray],
  layout: Layout,
  variant: str,
  bottleneck: Bottleneck,
  num_classes: int,
) -> str | None:
  names = _names(layout, variant)
  # Names first: comparing them is cheap and rules out most variants.
  for label in names:
    if label not in tensors:
      return f"{label} is missing"
  for label in tensors:
    if label not in names:
      return f"{shortened(label)} is not a parameter of it"
  shapes = parameter_shapes(NFNet(variant, num_classes, bottleneck=bottleneck))
  for label, name in names.items():
    # This view takes no memory, and lets `to_file` serve for shapes as well.
    stand_in = np.broadcast_to(np.float32(0), parameter_at(shapes, name.path).shape)
    needed = layout.to_file(name.kind, stand_in).shape
    if tensors[label].shape != needed:
      return f"{label} has shape {tensors[label].shape}, must be {needed}"
  return None


@functools.cache
def _names(layout: Layout, variant: str) -> dict[str, ParameterName]:
  return {layout.label(name): name for name in parameter_names(variant)}


def _num_classes(tensors: Mapping[str, np.ndarray], layout: Layout) -> int:
  """Returns the length of the classifier's bias; 1 if it is missing, which is reported later."""
  *_, bias = _names(layout, "F0")
  shape = tensors[bias].shape if bias in tensors else ()
  return max(1, shape[0]) if len(shape) == 1 else 1


def _arrange(
  tensors: Mapping[str, np.ndarray],
  layout: Layout,
  variant: str,
  bottleneck: Bottleneck,
  num_classes: int,
  source: str,
) -> Weights:
  parameters: dict[str, Any] = {}
  for label, name in _names(layout, variant).items():
    tensor = tensors[label]
    if not np.issubdtype(tensor.dtype, np.floating):
      raise UserError(f"{source}: {label} is {tensor.dtype}, not floating point")
    folder = parameters
    for key in name.path[:-1]:
      folder = folder.setdefault(key, {})
    # What float64 has beyond float32 becomes infinite, which is refused.
    with np.errstate(over="ignore"):
      array = layout.from_file(name.kind, tensor).astype(np.float32, copy=False)
    if not np.isfinite(array).all():
      raise UserError(
        f"{source}: {label} has values that are not finite in float32: the training that made the "
        "file diverged, or the file is damaged"
      )
    folder[name.path[-1]] = array
  return Weights(
    parameters=parameters,
    variant=variant,
    bottleneck=bottleneck,
    num_classes=num_classes,
    metadata=None,
  )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
  """Yields pairs of "outer/inner" names and arrays."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from flatten(value, f"{prefix}{key}/")
    else:
      yield f"{prefix}{key}", np.asarray(value)


def parameter_at(parameters: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  """Returns the entry of nested dictionaries at a path of keys."""
  for key in path:
    parameters = parameters[key]
  return parameters
