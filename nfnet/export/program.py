"""Makes a program of a network: a pure function of weights and images that is fit for serving.

The program normalizes images, runs the network, and returns logits and probabilities. Its weights
are an argument, since those of an F7+ have 3.3 GB, and a program that held them would exceed the
2 GB of a protocol buffer and be in memory twice.

They are not the network's parameters. Filters are standardized here, once, in the compute dtype and
with the gains of filters and activations and the blocks' betas in them: for one image on a CPU,
that is a quarter of the time of an F0. All blocks are unrolled, which makes it three to four times
as fast there as loops over stacked weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import kernels
from kernels.scaled_ws_conv.filters import from_rows, to_rows
from nfnet.block_arrangement import arrange_blocks
from nfnet.images.normalization import normalize
from nfnet.inference import Classifier
from nfnet.model import (
  NFNet,
  Parameters,
  apply_segment,
  parameter_name,
  parameter_shapes,
  segments,
  standardized,
)

InputDtype = Literal["uint8", "float32"]
"""A program takes RGB from 0 to 255, or normalized images."""
ComputeDtype = Literal["float32", "bfloat16"]
Weights = Mapping[str, Any]
"""Arrays by the names of the parameters that they were made of."""
_BITS = jnp.dtype(jnp.uint16)
"""Dtype of weights whose elements are the bits of bfloat16."""
_STEM = "stem/"
"""Begins the names of parameters that `nfnet.model.standardized` leaves as they are."""


class Program(NamedTuple):
  """A function for serving, and what it is called with.

  Attributes:
    function: function of weights and images that returns "logits" and "probabilities" in a
      dictionary, both float32 [n, classes].
    weights: NumPy arrays of float32 or, for bfloat16, of its 16 bits as uint16: NumPy has no
      bfloat16 of its own, and safetensors reads none into NumPy.
    pixels: side of the images, [n, pixels, pixels, 3].
    input_dtype: dtype of the images.
  """

  function: Callable[[Weights, Array], dict[str, Array]]
  weights: dict[str, np.ndarray]
  pixels: int
  input_dtype: InputDtype

  def images(self, count: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of a number of images, which may be a symbolic dimension."""
    return jax.ShapeDtypeStruct((count, self.pixels, self.pixels, 3), jnp.dtype(self.input_dtype))


def make_program(
  classifier: Classifier, *, input_dtype: InputDtype, compute_dtype: ComputeDtype
) -> Program:
  """Returns the program of a network with its weights.

  Args:
    classifier: the network.
    input_dtype: dtype of the program's images.
    compute_dtype: dtype of activations and matrix products.
  """
  original = classifier.model
  model = NFNet(
    original.variant,
    original.num_classes,
    activation=original.activation_name,
    numerics=original.numerics,
    alpha=original.blocks[0].alpha,
    bottleneck=original.bottleneck,
    block_execution="unrolled",
    compute_dtype=jnp.dtype(compute_dtype),
  )

  def function(weights: Weights, images: Array) -> dict[str, Array]:
    x = normalize(images) if input_dtype == "uint8" else images
    parameters = _parameters(weights)
    for segment in segments(model, images.shape[0], keys=None):
      x = apply_segment(model, segment, segment.select(parameters), x)
    probabilities = jax.nn.sigmoid if classifier.is_multi_label else jax.nn.softmax
    return {"logits": x, "probabilities": probabilities(x)}

  weights = _weights(model, classifier.parameters)
  return Program(function, weights, classifier.pixels, input_dtype)


def _weights(model: NFNet, parameters: Parameters) -> dict[str, np.ndarray]:
  """Returns the weights of a network's program."""
  shapes = {
    parameter_name(path): shape.shape
    for path, shape in jax.tree.leaves_with_path(parameter_shapes(model))
  }
  arranged = arrange_blocks(parameters, model.block_keys)
  weights = {}
  for path, value in jax.tree.leaves_with_path(
    standardized(model, arranged, gradient_dtype=None), is_leaf=_are_filters
  ):
    name = parameter_name(path)
    if _are_filters(value):
      value = from_rows(value.rows, shapes[name][2]).reshape(shapes[name])
    elif value.ndim == 2:
      # Fully connected layers round their weights.
      value = value.astype(model.compute_dtype)
    elif name.endswith("/gain") and not name.startswith(_STEM):
      continue
    value = np.asarray(value)
    weights[name] = value.view(_BITS) if value.dtype == jnp.bfloat16 else value
  return weights


def _parameters(weights: Weights) -> dict[str, Any]:
  """Returns weights in nested dictionaries, as the network's segments take them."""
  nested: dict[str, Any] = {}
  for name, value in weights.items():
    *outer, last = name.split("/")
    inner = nested
    for key in outer:
      inner = inner.setdefault(key, {})
    if value.dtype == _BITS:
      value = jax.lax.bitcast_convert_type(value, jnp.bfloat16)
    if value.ndim == 4 and not name.startswith(_STEM):
      # The network turns the rows back into filters; compiled, neither happens.
      rows = to_rows(value.reshape(-1, *value.shape[2:]))
      value = kernels.StandardizedFilters(rows, gradient_sink=None)
    inner[last] = value
  return nested


def _are_filters(value: Any) -> bool:
  return isinstance(value, kernels.StandardizedFilters)
