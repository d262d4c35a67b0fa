import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.export.program import make_program
from nfnet.images.normalization import normalize
from nfnet.model import NFNet, apply, parameter_shapes


@pytest.mark.parametrize(
  ("input_dtype", "compute_dtype"), [("uint8", "float32"), ("float32", "bfloat16")]
)
def test_a_program_computes_what_the_network_does(classifier, images, input_dtype, compute_dtype):
  program = make_program(classifier, input_dtype=input_dtype, compute_dtype=compute_dtype)
  model = NFNet("tiny", 5, numerics="timm", compute_dtype=jnp.dtype(compute_dtype))
  expected = apply(model, classifier.parameters, normalize(images))
  given = images if input_dtype == "uint8" else normalize(images)
  assert (program.images(3).shape, program.images(3).dtype) == (given.shape, given.dtype)
  outputs = jax.jit(program.function)(program.weights, given)
  scale = np.abs(expected).max()
  # bfloat16 rounds at other places where XLA fuses otherwise.
  tolerance = 1e-5 if compute_dtype == "float32" else 0.02
  np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=tolerance * scale)
  np.testing.assert_allclose(
    outputs["probabilities"], jax.nn.sigmoid(outputs["logits"]), rtol=1e-6, atol=1e-7
  )


def test_weights_are_what_a_program_reads(classifier):
  """Gains are in the filters, except in the stem, which standardizes its own."""
  float32, bfloat16 = (
    make_program(classifier, input_dtype="uint8", compute_dtype=dtype).weights
    for dtype in ("float32", "bfloat16")
  )
  shapes = {
    jax.tree_util.keystr(path, simple=True, separator="/"): shape.shape
    for path, shape in jax.tree.leaves_with_path(parameter_shapes(classifier.model))
  }
  kept = {name for name in shapes if not name.endswith("/gain") or name.startswith("stem/")}
  assert float32.keys() == bfloat16.keys() == kept
  assert {name: value.shape for name, value in float32.items()} == {
    name: shapes[name] for name in kept
  }
  for name, value in bfloat16.items():
    is_rounded = name.endswith("/weight") and not name.startswith("stem/")
    assert (value.dtype == np.uint16) == is_rounded, name
  name = "blocks/1/conv1/weight"
  np.testing.assert_allclose(
    bfloat16[name].view(jnp.bfloat16).astype(np.float32), float32[name], rtol=2**-8
  )
