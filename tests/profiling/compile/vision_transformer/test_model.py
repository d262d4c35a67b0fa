"""The cost model of ViTs: sizes as published, and a forward pass against one written plainly."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from profiling.compile.vision_transformer.model import (
  VISION_TRANSFORMERS,
  VisionTransformer,
  apply,
)

SMALL = VisionTransformer(width=32, depth=3, mlp_width=48, heads=4, patch_pixels=4)
PIXELS, CLASSES = 16, 5


def parameters_of(model):
  generator = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(generator.normal(size=x.shape) * 0.3, x.dtype),
    model.parameter_shapes(PIXELS, CLASSES),
  )


def plain(parameters, image):
  """Logits of one image, in NumPy and float64, token by token and head by head."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters)

  def norm(of, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * of["scale"] + of["bias"]

  def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

  def attend(of, x, others):
    result = of["out"]["bias"] + np.zeros_like(x)
    for head in range(SMALL.heads):
      q, k, v = (
        source @ of[name]["weight"][:, head] + of[name]["bias"][head]
        for name, source in (("queries", x), ("keys", others), ("values", others))
      )
      weights = np.exp(q @ k.T / math.sqrt(q.shape[-1]))
      result = result + weights / weights.sum(-1, keepdims=True) @ v @ of["out"]["weight"][head]
    return result

  def mlp(of, x):
    hidden = gelu(x @ of["expand"]["weight"] + of["expand"]["bias"])
    return hidden @ of["contract"]["weight"] + of["contract"]["bias"]

  side = SMALL.patch_pixels
  patches = [
    image[row : row + side, column : column + side].reshape(-1)
    for row in range(0, PIXELS, side)
    for column in range(0, PIXELS, side)
  ]
  embedding = p["embedding"]
  x = np.stack(patches) @ embedding["weight"] + embedding["bias"] + embedding["position"]
  for i in range(SMALL.depth):
    layer = jax.tree.map(lambda stacked, i=i: stacked[i], p["layers"])
    normalized = norm(layer["attention_norm"], x)
    x = x + attend(layer, normalized, normalized)
    x = x + mlp(layer, norm(layer["mlp_norm"], x))
  pooled = attend(p["head"], p["head"]["query"], norm(p["norm"], x))
  pooled = pooled + mlp(p["head"], norm(p["head"]["mlp_norm"], pooled))
  return pooled[0] @ p["classifier"]["weight"] + p["classifier"]["bias"]


@pytest.mark.parametrize("rematerialize", [False, True])
def test_a_forward_pass_is_that_of_the_papers(rematerialize):
  parameters = parameters_of(SMALL)
  images = np.random.default_rng(1).normal(size=(2, PIXELS, PIXELS, 3))
  found = apply(
    SMALL,
    parameters,
    jnp.asarray(images, jnp.float32),
    dtype=jnp.dtype("float32"),
    rematerialize=rematerialize,
  )
  expected = np.stack([plain(parameters, image) for image in images])
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_multiply_adds_are_those_that_xla_counts():
  # Wide, so that what is not a product is little of it; of one layer, since XLA counts a loop once.
  model = VisionTransformer(width=256, depth=1, mlp_width=512, heads=4, patch_pixels=4)
  shapes = model.parameter_shapes(PIXELS, CLASSES)
  images = jax.ShapeDtypeStruct((1, PIXELS, PIXELS, 3), jnp.float32)
  forward = functools.partial(apply, model, dtype=jnp.dtype("float32"), rematerialize=False)
  counted = jax.jit(forward).lower(shapes, images).cost_analysis()["flops"]
  assert counted == pytest.approx(2 * model.macs(PIXELS, CLASSES), rel=0.05)


@pytest.mark.parametrize(
  ("name", "parameters_million", "forward_flops"),
  # Parameters as published. 9e21 FLOP for 16e9 and 40e9 images: paper A's text on the two.
  [("SoViT-400m/14", 428, 9e21 / 40e9), ("ViT-g/14", 1011, 9e21 / 16e9), ("ViT-G/14", 1843, None)],
)
def test_sizes_as_published(name, parameters_million, forward_flops):
  model = VISION_TRANSFORMERS[name]
  leaves = jax.tree.leaves(model.parameter_shapes(224, 1000))
  found = sum(math.prod(leaf.shape) for leaf in leaves) / 1e6
  # Published counts differ in head and classifier.
  assert found == pytest.approx(parameters_million, rel=0.03)
  if forward_flops is not None:
    assert 2 * model.macs(224, 1000) == pytest.approx(forward_flops, rel=0.07)
