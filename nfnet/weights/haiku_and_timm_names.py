"""Names each parameter in this project, in the released haiku files, and in timm.

Haiku files hold the parameter trees of the code released with paper B, with HWIO filters. timm's
`dm_nfnet_f*` have OIHW filters, gains of shape [O, 1, 1, 1], and squeeze-excite layers that are 1x1
convolutions.
"""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from nfnet.variants import get_variant

Kind = Literal["filter", "gain", "bias", "matrix", "matrix_as_filter", "scalar"]


@dataclasses.dataclass(frozen=True)
class ParameterName:
  """Names one parameter.

  Attributes:
    path: keys in this project's nested dictionaries.
    haiku_module: outer key in the haiku tree.
    haiku_leaf: inner key in the haiku tree.
    timm: key in timm's state dict.
    kind: kind of the array, which decides how timm stores it; "matrix_as_filter" is the weight of a
      fully connected layer that is a 1x1 convolution in timm.
  """

  path: tuple[str, ...]
  haiku_module: str
  haiku_leaf: str
  timm: str
  kind: Kind


def parameter_names(variant: str) -> Iterator[ParameterName]:
  """Yields the names of all parameters of a variant, in order from the images to the logits."""
  for i in range(4):
    yield from _conv(("stem", f"conv{i}"), f"NFNet/~/stem_conv{i}", f"stem.conv{i + 1}")
  for i, block in enumerate(get_variant(variant).blocks()):
    ours = ("blocks", str(i))
    haiku = "NFNet/~/nf_block" + (f"_{i}" if i else "")
    timm = f"stages.{block.stage}.{block.index_in_stage}"
    if block.has_projection:
      yield from _conv(
        (*ours, "conv_shortcut"), f"{haiku}/~/conv_shortcut", f"{timm}.downsample.conv"
      )
    for name, timm_name in (
      ("conv0", "conv1"),
      ("conv1", "conv2"),
      ("conv1b", "conv2b"),
      ("conv2", "conv3"),
    ):
      yield from _conv((*ours, name), f"{haiku}/~/{name}", f"{timm}.{timm_name}")
    for name, haiku_name, timm_name in (
      ("squeeze", "linear", "fc1"),
      ("excite", "linear_1", "fc2"),
    ):
      yield from _linear(
        (*ours, "squeeze_excite", name),
        f"{haiku}/~/squeeze_excite/~/{haiku_name}",
        f"{timm}.attn_last.{timm_name}",
        "matrix_as_filter",
      )
    yield ParameterName((*ours, "skip_gain"), haiku, "skip_gain", f"{timm}.skipinit_gain", "scalar")
  yield from _conv(("final_conv",), "NFNet/~/final_conv", "final_conv")
  yield from _linear(("classifier",), "NFNet/~/linear", "head.fc", "matrix")


def _conv(path: tuple[str, ...], haiku: str, timm: str) -> Iterator[ParameterName]:
  yield ParameterName((*path, "weight"), haiku, "w", f"{timm}.weight", "filter")
  yield ParameterName((*path, "gain"), haiku, "gain", f"{timm}.gain", "gain")
  yield ParameterName((*path, "bias"), haiku, "bias", f"{timm}.bias", "bias")


def _linear(path: tuple[str, ...], haiku: str, timm: str, kind: Kind) -> Iterator[ParameterName]:
  yield ParameterName((*path, "weight"), haiku, "w", f"{timm}.weight", kind)
  yield ParameterName((*path, "bias"), haiku, "b", f"{timm}.bias", "bias")
