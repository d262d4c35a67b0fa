"""Loads weights from files: released haiku trees, timm's `dm_nfnet_f*`, this project's checkpoints.

`load_weights` reads all of these.
"""

import dataclasses
import os

from nfnet.activations import ACTIVATIONS
from nfnet.errors import UserError, quoted
from nfnet.system.paths import local_path
from nfnet.variants import Bottleneck, get_variant
from nfnet.weights.checkpoint_reader import read_checkpoint
from nfnet.weights.haiku import HAIKU
from nfnet.weights.haiku_pickle import read_haiku
from nfnet.weights.network_matching import Layout, Weights, flatten, match_network
from nfnet.weights.safetensors_file import is_safetensors, read_safetensors
from nfnet.weights.timm import TIMM

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
      project, or of one checkpoint in a workdir.
    variant: variant that the weights must have; None accepts any.
    bottleneck: bottleneck that the weights must have; None accepts any. See `Variant.blocks`.
    prefer_ema: whether to take a checkpoint's moving average of the parameters where it has one.

  Raises:
    UserError: the file cannot be read, is refused, or holds another network.
  """
  path = local_path("weights", path)
  source = f"weights {path!r}"
  if os.path.isdir(path):
    parameters, metadata = read_checkpoint(path, prefer_ema=prefer_ema)
    trained_variant = metadata.get("experiment", {}).get("model", {}).get("variant")
    if trained_variant is None:
      raise UserError(
        f"{source}: the metadata name no variant, so it is no checkpoint of a network"
      )
    try:
      get_variant(trained_variant)
    except ValueError as error:
      raise UserError(f"{source}: {error}") from error
    activation = metadata["experiment"]["model"].get("activation", "gelu")
    if activation not in ACTIVATIONS:
      raise UserError(f"{source} have the activation {quoted(activation)}, which there is not")
    if variant not in (None, trained_variant):
      raise UserError(f"{source} were trained as variant {trained_variant}, not {variant}")
    tensors, layout, variant = dict(flatten(parameters)), _CHECKPOINT, trained_variant
  elif is_safetensors(path):
    tensors, layout, metadata = read_safetensors(path), TIMM, None
  else:
    tensors, layout, metadata = dict(flatten(read_haiku(path))), HAIKU, None
  weights = match_network(tensors, layout, variant=variant, bottleneck=bottleneck, source=source)
  return dataclasses.replace(weights, metadata=metadata)
