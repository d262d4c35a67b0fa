"""Weights from files: the released haiku trees, timm's `dm_nfnet_f*`, this project's checkpoints.

timm's names and shapes are those of its `nfnet.py`
(https://github.com/huggingface/pytorch-image-models). Its network differs on purpose from the
released one: batch-norm's epsilon under the standard deviation of a filter, and the exact gelu
(`--activation=gelu_erf`). So do its logits, slightly.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nfnet.errors import UserError
from nfnet.model import NFNet, parameter_shapes
from nfnet.variants import VARIANTS, Bottleneck
from nfnet.weights.checkpoint_reader import read_checkpoint
from nfnet.weights.haiku_pickle import HaikuTree, read_haiku, write_haiku
from nfnet.weights.parameter_names import Kind, ParameterName, parameter_names

_BOTTLENECKS: tuple[Bottleneck, ...] = ("paper", "released")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
  """A network's parameters and what is known about the network.

  Attributes:
    parameters: nested dictionaries of float32 NumPy arrays, as `nfnet.model.apply` takes them.
    variant: name.
    bottleneck: that the shapes show; "paper" where both give the same.
    num_classes: width of the classifier.
    metadata: what a checkpoint of this project says about its experiment; None for other files.
  """

  parameters: dict[str, Any]
  variant: str
  bottleneck: Bottleneck
  num_classes: int
  metadata: dict[str, Any] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
  """How a kind of file names and arranges parameters.

  Attributes:
    label: a parameter's name in the file.
    to_file: array of ours -> view of it as in the file.
    from_file: the inverse.
  """

  label: Callable[[ParameterName], str]
  to_file: Callable[[Kind, np.ndarray], np.ndarray]
  from_file: Callable[[Kind, np.ndarray], np.ndarray]


def _to_timm(kind: Kind, array: np.ndarray) -> np.ndarray:
  match kind:
    case "filter":
      return np.transpose(array, (3, 2, 0, 1))
    case "gain":
      return array[:, None, None, None]
    case "matrix":
      return array.T
    case "matrix_as_filter":
      return array.T[:, :, None, None]
    case "bias" | "scalar":
      return array


def _from_timm(kind: Kind, array: np.ndarray) -> np.ndarray:
  match kind:
    case "filter":
      return np.transpose(array, (2, 3, 1, 0))
    case "gain":
      return array[:, 0, 0, 0]
    case "matrix":
      return array.T
    case "matrix_as_filter":
      return array[:, :, 0, 0].T
    case "bias" | "scalar":
      return array


_HAIKU = _Layout(
  label=lambda name: f"{name.haiku_module}/{name.haiku_leaf}",
  to_file=lambda kind, array: array,
  from_file=lambda kind, array: array,
)
_CHECKPOINT = dataclasses.replace(_HAIKU, label=lambda name: "/".join(name.path))
_TIMM = _Layout(label=lambda name: name.timm, to_file=_to_timm, from_file=_from_timm)


def load_weights(
  path: str,
  variant: str | None = None,
  *,
  bottleneck: Bottleneck | None = None,
  prefer_ema: bool = True,
) -> Weights:
  """Reads weights of any kind; the kind is told by the content, not by the name.

  Args:
    path: a haiku file, a safetensors file of timm's layout, a workdir of this project, or one
      checkpoint in it.
    variant: what it must be; None takes what it is.
    bottleneck: what it must be; None takes what it is. See `Variant.blocks`.
    prefer_ema: of a checkpoint, take the moving average where one was kept.

  Raises:
    UserError: the file cannot be read, is refused, or holds another network.
  """
  source = f"weights {path!r}"
  if os.path.isdir(path):
    parameters, metadata = read_checkpoint(path, prefer_ema=prefer_ema)
    model = metadata["experiment"]["model"]
    if variant not in (None, model["variant"]):
      raise UserError(f"{source} were trained as variant {model['variant']}, not {variant}")
    tensors = dict(_flatten(parameters))
    weights = _fit(tensors, _CHECKPOINT, model["variant"], bottleneck, source)
    return dataclasses.replace(weights, metadata=metadata)
  if _is_safetensors(path):
    return _fit(_read_safetensors(path), _TIMM, variant, bottleneck, source)
  return _fit(dict(_flatten(read_haiku(path))), _HAIKU, variant, bottleneck, source)


def from_haiku(tree: HaikuTree, variant: str | None = None) -> Weights:
  """Weights from a haiku tree {module: {leaf: array}}.

  Args:
    tree: as `nfnet.weights.haiku_pickle.read_haiku` gives it.
    variant: what it must be; None takes what it is.

  Raises:
    UserError: the tree is not that variant's; names the first parameter that differs.
  """
  return _fit(dict(_flatten(tree)), _HAIKU, variant, None, "haiku tree")


def to_haiku(parameters: Mapping[str, Any], variant: str) -> HaikuTree:
  """The haiku tree {module: {leaf: array}} of `parameters`."""
  tree: HaikuTree = {}
  for name in parameter_names(variant):
    array = np.asarray(_get(parameters, name.path))
    tree.setdefault(name.haiku_module, {})[name.haiku_leaf] = array
  return tree


def to_timm(parameters: Mapping[str, Any], variant: str) -> dict[str, np.ndarray]:
  """The state dict that timm has for `parameters`."""
  return {
    name.timm: np.asarray(_to_timm(name.kind, np.asarray(_get(parameters, name.path))), order="C")
    for name in parameter_names(variant)
  }


def save_haiku(path: str, parameters: Mapping[str, Any], variant: str) -> None:
  """Writes a file of the released format.

  Raises:
    UserError: the file cannot be written.
  """
  write_haiku(path, to_haiku(parameters, variant))


def save_timm(path: str, parameters: Mapping[str, Any], variant: str) -> None:
  """Writes a safetensors file that timm's `dm_nfnet_f*` loads.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    safetensors.numpy.save_file(to_timm(parameters, variant), path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f"weights {path!r} cannot be written: {error}") from error


def _fit(
  tensors: Mapping[str, np.ndarray],
  layout: _Layout,
  variant: str | None,
  bottleneck: Bottleneck | None,
  source: str,
) -> Weights:
  """Checks that `tensors` are all parameters of one network and nothing else; arranges them."""
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
    raise UserError(f"{source}: {looks}; name a variant to see what differs from it")
  raise UserError(f"{source} do not fit {variant}: {mismatch(*wanted[0])}; {looks}")


def _first_mismatch(
  tensors: Mapping[str, np.ndarray],
  layout: _Layout,
  variant: str,
  bottleneck: Bottleneck,
  num_classes: int,
) -> str | None:
  names = _names(layout, variant)
  # First, because it is cheap and rules most variants out.
  for label in names:
    if label not in tensors:
      return f"there is no {label}"
  for label in tensors:
    if label not in names:
      return f"{label} is no parameter of it"
  shapes = parameter_shapes(NFNet(variant, num_classes, bottleneck=bottleneck))
  for label, name in names.items():
    # Takes no memory, and saves writing the arrangement of shapes down a second time.
    stand_in = np.broadcast_to(np.float32(0), _get(shapes, name.path).shape)
    needed = layout.to_file(name.kind, stand_in).shape
    if tensors[label].shape != needed:
      return f"{label} has shape {tensors[label].shape}, must be {needed}"
  return None


@functools.cache
def _names(layout: _Layout, variant: str) -> dict[str, ParameterName]:
  return {layout.label(name): name for name in parameter_names(variant)}


def _num_classes(tensors: Mapping[str, np.ndarray], layout: _Layout) -> int:
  """Length of the classifier's bias; 1 if there is none, which will then be missed."""
  *_, bias = _names(layout, "F0")
  shape = tensors[bias].shape if bias in tensors else ()
  return shape[0] if len(shape) == 1 else 1


def _arrange(
  tensors: Mapping[str, np.ndarray],
  layout: _Layout,
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
    folder[name.path[-1]] = layout.from_file(name.kind, tensor).astype(np.float32, copy=False)
  return Weights(
    parameters=parameters,
    variant=variant,
    bottleneck=bottleneck,
    num_classes=num_classes,
    metadata=None,
  )


def _is_safetensors(path: str) -> bool:
  """Whether the file begins as one: 8 bytes of length, then JSON."""
  try:
    with open(path, "rb") as file:
      return file.read(9)[8:] == b"{"
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be read: {error.strerror}") from error


def _read_safetensors(path: str) -> dict[str, np.ndarray]:
  try:
    return safetensors.numpy.load_file(path)
  # Element types without a NumPy equivalent end as KeyError or TypeError.
  except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
    raise UserError(f"weights {path!r} cannot be read, the file may be damaged: {error}") from error


def _flatten(tree: Mapping[str, Any], prefix: str = ""):
  """Pairs of "outer/inner" names and arrays."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{key}/")
    else:
      yield f"{prefix}{key}", np.asarray(value)


def _get(parameters: Mapping[str, Any], path: tuple[str, ...]) -> Any:
  for key in path:
    parameters = parameters[key]
  return parameters
