"""Converts parameters to and from the layout of timm's `dm_nfnet_f*`, a state dict of PyTorch.

Names and shapes are those of timm's `nfnet.py`
(https://github.com/huggingface/pytorch-image-models); `haiku_and_timm_names` has the names. timm's
network deliberately differs from the released one, and its logits by 1 to 4 %: batch
normalization's epsilon is added to the variance of a filter, and gelu is exact. `numerics="timm"`
of `nfnet.model.NFNet` applies parameters in this way.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nfnet.weights.haiku_and_timm_names import Kind, parameter_names
from nfnet.weights.network_matching import Layout, parameter_at
from nfnet.weights.safetensors_file import write_safetensors


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


TIMM = Layout(label=lambda name: name.timm, to_file=_to_timm, from_file=_from_timm)


def to_timm(parameters: Mapping[str, Any], variant: str) -> dict[str, np.ndarray]:
  """Returns `parameters` as a state dict of timm's network."""
  return {
    name.timm: np.asarray(
      _to_timm(name.kind, np.asarray(parameter_at(parameters, name.path))), order="C"
    )
    for name in parameter_names(variant)
  }


def save_timm(path: str, parameters: Mapping[str, Any], variant: str) -> None:
  """Writes a safetensors file that timm's `dm_nfnet_f*` loads.

  Raises:
    UserError: the file cannot be written.
  """
  write_safetensors(path, to_timm(parameters, variant))
