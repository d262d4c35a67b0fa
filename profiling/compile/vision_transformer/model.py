"""Defines the vision transformers (ViT) that paper A compares NFNets with, to estimate their cost.

They are compiled but never trained. The network is that of Dosovitskiy et al.,
https://arxiv.org/abs/2010.11929, with the attention-pooling head of Zhai et al.,
https://arxiv.org/abs/2106.04560. Parameters are float32, activations have the compute dtype, and
the layers are one loop.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_LAYER_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionTransformer:
  """One size of the network.

  Attributes:
    width: channels of a token.
    depth: number of layers.
    mlp_width: hidden channels of a layer's MLP.
    heads: attention heads of a layer.
    patch_pixels: side of the patch of pixels that becomes a token.
  """

  width: int
  depth: int
  mlp_width: int
  heads: int
  patch_pixels: int = 14

  def tokens(self, pixels: int) -> int:
    """Returns the number of tokens of a square image."""
    return (pixels // self.patch_pixels) ** 2

  def parameter_shapes(self, pixels: int, num_classes: int) -> dict[str, Any]:
    """Returns a `jax.ShapeDtypeStruct` for each parameter; those of the layers are stacked."""
    layer = self._layer_shapes()
    return {
      "embedding": {
        "weight": _shape(3 * self.patch_pixels**2, self.width),
        "bias": _shape(self.width),
        "position": _shape(self.tokens(pixels), self.width),
      },
      "layers": jax.tree.map(lambda one: _shape(self.depth, *one.shape), layer),
      "norm": self._norm_shapes(),
      # The head is one more layer, whose query is a learned token.
      "head": {**layer, "query": _shape(1, self.width)},
      "classifier": {"weight": _shape(self.width, num_classes), "bias": _shape(num_classes)},
    }

  def macs(self, pixels: int, num_classes: int) -> int:
    """Returns the multiply-adds of a forward pass of one image."""
    tokens, width = self.tokens(pixels), self.width
    matrices = 4 * width**2 + 2 * width * self.mlp_width
    attention = 2 * tokens * width
    # In the head, one token attends to all others and goes through the MLP.
    head = 2 * tokens * width**2 + 2 * width**2 + attention + 2 * width * self.mlp_width
    return (
      tokens * 3 * self.patch_pixels**2 * width
      + self.depth * tokens * (matrices + attention)
      + head
      + width * num_classes
    )

  def _norm_shapes(self) -> dict[str, Any]:
    return {"scale": _shape(self.width), "bias": _shape(self.width)}

  def _layer_shapes(self) -> dict[str, Any]:
    width, head_width = self.width, self.width // self.heads
    projection = {
      "weight": _shape(width, self.heads, head_width),
      "bias": _shape(self.heads, head_width),
    }
    return {
      "attention_norm": self._norm_shapes(),
      **dict.fromkeys(("queries", "keys", "values"), projection),
      "out": {"weight": _shape(self.heads, head_width, width), "bias": _shape(width)},
      "mlp_norm": self._norm_shapes(),
      "expand": {"weight": _shape(width, self.mlp_width), "bias": _shape(self.mlp_width)},
      "contract": {"weight": _shape(self.mlp_width, width), "bias": _shape(width)},
    }


def apply(
  model: VisionTransformer,
  parameters: Any,
  images: Float[Array, "n height width 3"],
  *,
  dtype: jnp.dtype,
  rematerialize: bool,
) -> Float[Array, "n classes"]:
  """Returns float32 logits.

  Args:
    model: size of the network.
    parameters: tree like `VisionTransformer.parameter_shapes`, float32.
    images: normalized images.
    dtype: compute dtype, of activations and products.
    rematerialize: whether the backward pass recomputes the inside of each layer.
  """
  layer = functools.partial(_layer, dtype=dtype)
  if rematerialize:
    layer = jax.checkpoint(layer)
  x = _embed(model, parameters["embedding"], images, dtype)
  x, _ = jax.lax.scan(lambda x, one: (layer(one, x), None), x, parameters["layers"])
  x = _normalize(parameters["norm"], x)
  head = parameters["head"]
  query = jnp.broadcast_to(head["query"].astype(dtype)[None], (x.shape[0], 1, model.width))
  pooled = _attend(head, query, x, dtype)
  pooled += _mlp(head, _normalize(head["mlp_norm"], pooled), dtype)
  pooled = pooled[:, 0].astype(jnp.float32)
  classifier = parameters["classifier"]
  return pooled @ classifier["weight"] + classifier["bias"][None, :]


def _embed(model: VisionTransformer, parameters: Any, images: Array, dtype: jnp.dtype) -> Array:
  """Returns the tokens [n, tokens, width] of images."""
  count, height, width, _ = images.shape
  side = model.patch_pixels
  patches = images.reshape(count, height // side, side, width // side, side, 3)
  patches = jnp.swapaxes(patches, 2, 3).reshape(count, model.tokens(height), -1)
  x = _matmul(parameters, patches.astype(dtype), dtype)
  return x + parameters["position"].astype(dtype)[None]


def _layer(parameters: Any, x: Array, *, dtype: jnp.dtype) -> Array:
  """Returns attention and MLP, each on the normalized tokens and added to them."""
  normalized = _normalize(parameters["attention_norm"], x)
  x += _attend(parameters, normalized, normalized, dtype)
  return x + _mlp(parameters, _normalize(parameters["mlp_norm"], x), dtype)


def _attend(parameters: Any, x: Array, others: Array, dtype: jnp.dtype) -> Array:
  """Returns what the tokens of `x` gather from `others` by multi-head attention."""

  def project(name, of):
    weight, bias = (parameters[name][part].astype(dtype) for part in ("weight", "bias"))
    return jnp.einsum("ntw,whd->nthd", of, weight) + bias[None, None]

  queries, keys, values = project("queries", x), project("keys", others), project("values", others)
  scale = dtype.type(1 / math.sqrt(queries.shape[-1]))
  similarity = jnp.einsum("nqhd,nkhd->nhqk", queries * scale, keys)
  attention = jax.nn.softmax(similarity.astype(jnp.float32)).astype(dtype)
  mixed = jnp.einsum("nhqk,nkhd->nqhd", attention, values)
  weight, bias = (parameters["out"][part].astype(dtype) for part in ("weight", "bias"))
  return jnp.einsum("nqhd,hdw->nqw", mixed, weight) + bias[None, None]


def _mlp(parameters: Any, x: Array, dtype: jnp.dtype) -> Array:
  hidden = jax.nn.gelu(_matmul(parameters["expand"], x, dtype))
  return _matmul(parameters["contract"], hidden, dtype)


def _matmul(parameters: Any, x: Array, dtype: jnp.dtype) -> Array:
  return x @ parameters["weight"].astype(dtype) + parameters["bias"].astype(dtype)[None, None]


def _normalize(parameters: Any, x: Array) -> Array:
  wide = x.astype(jnp.float32)
  mean = jnp.mean(wide, axis=-1, keepdims=True)
  variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
  normalized = (wide - mean) * jax.lax.rsqrt(variance + _LAYER_NORM_EPSILON)
  scale, bias = (parameters[name][None, None] for name in ("scale", "bias"))
  return (normalized * scale + bias).astype(x.dtype)


def _shape(*sides: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(sides, jnp.float32)


VISION_TRANSFORMERS = {
  "SoViT-400m/14": VisionTransformer(width=1152, depth=27, mlp_width=4304, heads=16),
  "ViT-g/14": VisionTransformer(width=1408, depth=40, mlp_width=6144, heads=16),
  "ViT-G/14": VisionTransformer(width=1664, depth=48, mlp_width=8192, heads=16),
}
"""Sizes as published: https://arxiv.org/abs/2305.13035 (SoViT) and https://arxiv.org/abs/2106.04560."""
