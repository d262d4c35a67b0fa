"""Loads weights from files: released haiku trees, timm's `dm_nfnet_f*`, this project's checkpoints.

`load_weights` reads all of these, `load_checkpoint` checkpoints only. `load` returns no more than
the parameters.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any, get_args

import jax
import jax.numpy as jnp

from nfnet.activations import ACTIVATIONS, Numerics
from nfnet.errors import UserError, check_flag, quoted
from nfnet.foreign_files.known_starts import known_mistake
from nfnet.foreign_files.regular_files import open_regular
from nfnet.images.resizing import EvaluationResize
from nfnet.model import NFNet, check_model
from nfnet.system.paths import as_path, is_in_bucket, path_or_bucket, path_text
from nfnet.variants import Bottleneck, get_variant
from nfnet.weights.checkpoint_reader import read_checkpoint
from nfnet.weights.class_names import read_class_names
from nfnet.weights.haiku import HAIKU
from nfnet.weights.haiku_pickle import read_haiku
from nfnet.weights.network_matching import Layout, Weights, flatten, match_network
from nfnet.weights.safetensors_file import is_safetensors, read_safetensors
from nfnet.weights.timm import TIMM

_KNOWN_SETTINGS = {
  ("model", "activation"): tuple(ACTIVATIONS),
  ("model", "bottleneck"): get_args(Bottleneck),
  ("model", "numerics"): get_args(Numerics),
  ("data", "evaluation_resize"): get_args(EvaluationResize),
}
"""Values that a checkpoint's experiment may have in the fields that choose among networks."""

_ZIP_START = b"PK\x03\x04"

_CHECKPOINT = Layout(
  label=lambda name: "/".join(name.path),
  to_file=lambda kind, array: array,
  from_file=lambda kind, array: array,
)


def load_weights(
  path: str,
  variant: str | None = None,
  *,
  bottleneck: Bottleneck | None = None,
  prefer_ema: bool = True,
) -> Weights:
  """Reads weights of any kind, which is recognized by the content, not by the name.

  Args:
    path: path of a haiku file, of a safetensors file in timm's layout, of a workdir of this
      project, or of one checkpoint in a workdir, here or in a bucket (`gs://BUCKET/PATH`).
    variant: variant that the weights must have; None accepts any.
    bottleneck: bottleneck that the weights must have; None accepts any. See `Variant.blocks`.
    prefer_ema: whether to take a checkpoint's moving average of the parameters where it has one.

  Raises:
    UserError: the file cannot be read, is refused, or holds another network.
  """
  path = path_or_bucket("weights", path)
  if is_checkpoint(path):
    return load_checkpoint(path, variant, bottleneck=bottleneck, prefer_ema=prefer_ema)
  with _here(path) as file:
    _refuse_other_files(file, path)
    if is_safetensors(file):
      tensors, layout = read_safetensors(file), TIMM
    else:
      tensors, layout = dict(flatten(read_haiku(file))), HAIKU
  return match_network(
    tensors, layout, variant=variant, bottleneck=bottleneck, source=f"weights {path!r}"
  )


def is_checkpoint(path: str) -> bool:
  """Returns whether weights are those of a checkpoint, which is a folder, rather than of a file.

  Args:
    path: path of the weights, here or in a bucket.

  Raises:
    UserError: the bucket cannot be read.
  """
  try:
    return as_path(path).is_dir()
  except OSError as error:
    raise UserError(f"weights {path!r} cannot be read: {error.strerror}") from error


@contextlib.contextmanager
def _here(path: str) -> Iterator[str]:
  """Yields the path of a file, or of a copy of one in a bucket."""
  if not is_in_bucket(path):
    yield path
    return
  # Importing it takes a while, and few need it.
  from nfnet.buckets.temporary_copies import temporary_copies

  place = as_path(path)
  with temporary_copies(place.parent, [place.name]) as copy:
    yield str(copy / place.name)


def _refuse_other_files(file: str, path: str) -> None:
  """Raises a UserError about a file that people often have in the place of weights at a path."""
  try:
    mistake = known_mistake(file)
    with open_regular(file) as opened:
      is_zip = opened.read(len(_ZIP_START)) == _ZIP_START
  except OSError:
    # Whoever reads the file says so.
    return
  if mistake is not None:
    raise UserError(f"weights {path!r} are {mistake}")
  if is_zip:
    raise UserError(
      f"weights {path!r} are a zip archive, as torch.save and numpy.savez write: save the tensors "
      "with safetensors.numpy.save_file, under timm's names"
    )


def load(
  path: str | os.PathLike, model: NFNet | None = None, *, prefer_ema: bool = True
) -> dict[str, Any]:
  """Returns the parameters in a file or checkpoint, for `nfnet.model.apply`.

  Args:
    path: see `load_weights`.
    model: network for which they are; it is compared with the file. None accepts any.
    prefer_ema: see `load_weights`.

  Returns:
    Nested dictionaries of float32 arrays on JAX's default device.

  Raises:
    UserError: the file cannot be read, is refused, or holds parameters of another network.
    ValueError: an argument is of another kind.
  """
  path = path_text("path", path)
  if model is not None:
    check_model(model)
  check_flag("prefer_ema", prefer_ema)
  weights = load_weights(path, model and model.variant, prefer_ema=prefer_ema)
  if model is not None:
    _check_model(weights, model, path)
  return jax.tree.map(jnp.asarray, weights.parameters)


def _check_model(weights: Weights, model: NFNet, path: str) -> None:
  """Raises a UserError if weights of the model's variant are not the model's."""
  found = {"num_classes": weights.num_classes, "bottleneck": weights.bottleneck}
  needed = {"num_classes": model.num_classes, "bottleneck": model.bottleneck}
  if model.variant[-1] != "+":
    # Both bottlenecks are the same there.
    del found["bottleneck"]
  if (trained := trained_formulas(weights)) is not None:
    found |= trained
    needed |= {"activation": model.activation_name, "numerics": model.numerics}
  for name, value in found.items():
    if value != needed[name]:
      other_way = (
        "; or, for a new classifier, load them without the network and replace "
        'parameters["classifier"] by that of nfnet.initial_parameters'
      )
      raise UserError(
        f"weights {path!r} have {name}={value!r}, the network has {needed[name]!r}: build it with "
        f"NFNet({model.variant!r}, {', '.join(f'{key}={one!r}' for key, one in found.items())})"
        f"{other_way if name == 'num_classes' else ''}"
      )


def trained_formulas(weights: Weights) -> dict[str, str] | None:
  """Returns activation and numerics that a checkpoint was trained with; None for other files."""
  if weights.metadata is None:
    return None
  settings = {"activation": "gelu", "numerics": "released"}
  trained = weights.metadata.get("experiment", {}).get("model", {})
  return {name: trained.get(name, default) for name, default in settings.items()}


def load_checkpoint(
  path: str,
  variant: str | None = None,
  *,
  bottleneck: Bottleneck | None = None,
  prefer_ema: bool = True,
) -> Weights:
  """Reads the weights of a checkpoint, and checks that they are of the network that it names.

  Args:
    path: path of a workdir of this project, or of one checkpoint.
    variant: see `load_weights`.
    bottleneck: see `load_weights`.
    prefer_ema: see `load_weights`.

  Returns:
    The weights; their metadata name a variant and formulas that this version knows.

  Raises:
    UserError: there is no checkpoint, it cannot be read, or it holds another network.
  """
  source = f"weights {path!r}"
  parameters, metadata = read_checkpoint(path, prefer_ema=prefer_ema)
  trained_variant = _trained_variant(metadata, source)
  if variant not in (None, trained_variant):
    raise UserError(f"{source} were trained as variant {trained_variant}, not {variant}")
  weights = match_network(
    dict(flatten(parameters)),
    _CHECKPOINT,
    variant=trained_variant,
    bottleneck=bottleneck or metadata["experiment"]["model"].get("bottleneck"),
    source=source,
  )
  class_names = read_class_names(metadata, weights.num_classes, source=source)
  return dataclasses.replace(weights, metadata=metadata, class_names=class_names)


def _trained_variant(metadata: dict[str, Any], source: str) -> str:
  """Returns the variant that a checkpoint's metadata names.

  Raises:
    UserError: the metadata does not describe a network that this version knows.
  """
  try:
    experiment = metadata["experiment"]
    variant = experiment["model"]["variant"]
  except KeyError as error:
    raise UserError(f"{source}: its metadata does not say which network it is") from error
  try:
    get_variant(variant)
  except ValueError as error:
    raise UserError(f"{source}: this version knows no variant {quoted(variant)}") from error
  for (section, field), known in _KNOWN_SETTINGS.items():
    value = experiment.get(section, {}).get(field)
    if value is not None and value not in known:
      raise UserError(f"{source}: this version knows no {field} {quoted(value)}")
  return variant
