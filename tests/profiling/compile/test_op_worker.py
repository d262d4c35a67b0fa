import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.se_residual import reference
from nfnet.activations import scaled_activation
from profiling.compile.op_shapes import ConvShape, SqueezeExciteShape
from profiling.compile.op_worker import OpRequest, programs, programs_of

IMAGES = 3
SHAPE = SqueezeExciteShape(
  convolution=ConvShape(
    pixels=4, in_channels=8, out_channels=16, filter_pixels=1, activates_input=True
  ),
  squeeze_channels=5,
)
REQUEST = OpRequest(topology="v4:2x2x1", images=IMAGES, kernels="reference")


@pytest.fixture(scope="module")
def tail():
  return {program.direction: program for program in programs_of(SHAPE, REQUEST)}


def drawn(described, seed):
  """An array for each description, of a size that the sigmoid is not constant at."""
  generator = np.random.default_rng(seed)
  return jax.tree.map(
    lambda one: jnp.asarray(generator.normal(size=one.shape), one.dtype), described
  )


def expected(weight, gain, bias, beta, x, shortcut, gate, skip_gain, keep):
  return reference.conv_se_residual(
    x,
    weight,
    gain,
    bias,
    shortcut,
    gate,
    skip_gain,
    beta,
    keep,
    activation=scaled_activation("gelu", "released").function,
    alpha=0.2,
    standardization="released",
  )


def test_a_tail_is_the_convolution_and_all_of_squeeze_excite(tail):
  assert set(tail) == {"forward", "both", "convolution forward", "convolution both"}
  assert {program.label for program in tail.values()} == {SHAPE.label}
  arguments = drawn(tail["forward"].arguments, seed=1)
  *_, skip_gain, keep = arguments
  assert (skip_gain.shape, keep.shape) == ((), (IMAGES,))
  result = tail["forward"].function(*arguments)
  np.testing.assert_allclose(
    np.float32(result), np.float32(expected(*arguments)), rtol=2.0**-7, atol=2.0**-7
  )


def test_a_tail_has_the_gradients_of_the_branch_and_the_gate(tail):
  cotangent, *arguments = drawn(tail["both"].arguments, seed=2)
  result, gradients = tail["both"].function(cotangent, *arguments)
  assert result.shape == cotangent.shape == (4, 4, IMAGES, 16)
  # Beta and keep are not parameters, and the gradient of the shortcut is the cotangent.
  learned = [arguments[i] for i in (0, 1, 2, 4, 6, 7)]
  assert [one.shape for one in jax.tree.leaves(gradients)] == [
    one.shape for one in jax.tree.leaves(learned)
  ]

  def of_learned(weight, gain, bias, x, gate, skip_gain):
    rest = arguments[5], gate, skip_gain, arguments[-1]
    return expected(weight, gain, bias, arguments[3], x, *rest)

  _, pullback = jax.vjp(of_learned, *learned)
  both = map(jax.tree.leaves, (gradients, list(pullback(cotangent))))
  for ours, theirs in zip(*both, strict=True):
    assert jnp.linalg.norm(theirs) > 0
    error = jnp.linalg.norm((ours - theirs).astype(jnp.float32))
    assert error < 0.02 * jnp.linalg.norm(theirs.astype(jnp.float32))


@pytest.mark.parametrize("direction", ["both", "convolution both"])
def test_a_tails_cotangent_is_known_after_its_result(tail, direction):
  """Otherwise XLA adds up the scale's gradient while it makes the result, in one pass for both."""
  program = tail[direction]
  jaxpr = jax.make_jaxpr(program.function)(*program.arguments).jaxpr
  cotangent, result = jaxpr.invars[0], jaxpr.outvars[0]
  (reader,) = (equation for equation in jaxpr.eqns if cotangent in equation.invars)
  assert reader.primitive.name == "optimization_barrier"
  # Both come out of it.
  assert result in reader.outvars


def test_the_convolution_that_is_taken_off_is_the_same(tail):
  assert tail["convolution forward"].arguments == tail["forward"].arguments[:5]
  y = jax.eval_shape(tail["convolution forward"].function, *tail["convolution forward"].arguments)
  assert y.result.shape == tail["forward"].arguments[5].shape


def test_programs_are_chosen_by_label():
  request = OpRequest(
    topology="v4:2x2x1", images=32, kernels="reference", only="se_residual after 768"
  )
  # At 14 and at 7 pixels, four each.
  assert len(list(programs(request))) == 8
