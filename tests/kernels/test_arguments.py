import inspect

import jax
import jax.numpy as jnp
import pytest
from jax import export

import kernels

X, WEIGHT, EIGHT = jnp.ones((4, 4, 2, 3)), jnp.ones((3, 3, 3, 8)), jnp.ones(8)
WIDE = jnp.ones((4, 4, 2, 8))
GATE = kernels.Gate(jnp.ones((8, 4)), jnp.ones(4), jnp.ones((4, 8)), EIGHT)
SCALE = jnp.float32(1)


def unchecked(op):
  """Returns an op without the types that the tests check."""
  return inspect.unwrap(op)


def convolution(x=X, weight=WEIGHT, gain=EIGHT, bias=EIGHT, **options):
  return unchecked(kernels.scaled_ws_convolution)(x, weight, gain, bias, **options)


def branch(gate=GATE, shortcut=WIDE, keep=None):
  return unchecked(kernels.conv_se_residual)(
    WIDE, jnp.ones((1, 1, 8, 8)), EIGHT, EIGHT, shortcut, gate, SCALE, None, keep
  )


def step(**changes):
  tree = {"w": jnp.ones((3, 2))}
  trees = {"parameters": tree, "gradients": tree, "momentum_buffers": tree, **changes}
  rates = dict.fromkeys(("learning_rate", "momentum", "weight_decay", "clipping"), SCALE)
  return unchecked(kernels.sgd_agc_step)(**trees, **rates)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: convolution(bias=jnp.ones(1)), r"bias has the shape \[1\]; .* is 8 in weight$"),
    (lambda: convolution(gain=jnp.ones(1)), r"gain has the shape \[1\]; .* is 8 in weight$"),
    (lambda: convolution(gain=jnp.ones(3)), r"gain has the shape \[3\]"),
    (
      lambda: convolution(x=X[0]),
      r"x has the shape \[4, 2, 3\]; must be \[height, width, images, channels\]$",
    ),
    (lambda: convolution(stride=0), "stride=0: must be a whole number of at least 1"),
    (
      lambda: unchecked(kernels.standardize_filters)(WEIGHT, jnp.ones(1)),
      r"gain has the shape \[1\]; must be \[output_channels\]",
    ),
    (lambda: branch(shortcut=WIDE[..., :1]), r"bias has the shape \[8\]; must be \[channels\]"),
    (lambda: branch(keep=jnp.ones(1)), r"keep has the shape \[1\]; .* images is 2 in x$"),
    (
      lambda: branch(gate=GATE._replace(excite_bias=jnp.ones(1))),
      r"gate\.excite_bias has the shape \[1\]",
    ),
    (
      lambda: unchecked(kernels.fully_connected_layer)(
        jnp.ones((2, 8)), jnp.ones((8, 4)), jnp.ones(1), dtype="float32"
      ),
      r"bias has the shape \[1\]; must be \[outputs\], where outputs is 4 in weight$",
    ),
    (
      lambda: unchecked(kernels.stem_convolutions)(
        jnp.ones((8, 8, 2, 3)),
        [WEIGHT, *[jnp.ones((3, 3, 8, 8))] * 3],
        [EIGHT] * 4,
        [EIGHT, EIGHT, jnp.ones(1), EIGHT],
        SCALE,
        activation=jax.nn.relu,
      ),
      r"biases\[2\] has the shape \[1\]",
    ),
    (
      lambda: unchecked(kernels.add_up)(
        kernels.PendingSum(WIDE, WIDE, jnp.ones((1, 8)), jnp.ones((1, 8)))
      ),
      r"pending\.scale has the shape \[1, 8\]",
    ),
    (
      lambda: step(gradients={"w": jnp.ones((3, 1))}),
      r"gradients\['w'\] has the shape \[3, 1\]; must be \[3, 2\], as in parameters",
    ),
    (lambda: step(gradients={}), "gradients and parameters do not have the same names: 'w'"),
  ],
)
def test_what_would_be_broadcast_or_fail_inside_is_refused_in_one_line(call, message):
  with pytest.raises(ValueError, match=message) as raised:
    call()
  assert "\n" not in str(raised.value)


def test_symbolic_sizes_pass():
  (count,) = export.symbolic_shape("count")
  x = jax.ShapeDtypeStruct((4, 4, count, 3), jnp.float32)
  assert jax.eval_shape(convolution, x).result.shape == (4, 4, count, 8)


def test_arguments_can_be_checked_where_the_shape_function_of_jax_traces(monkeypatch):
  """jax2onnx replaces it while it exports; `make test-formats` runs the real one."""

  def traced_shape(x):
    raise AssertionError("a shape was traced")

  monkeypatch.setattr(jnp, "shape", traced_shape)
  convolution()
  branch()
  step()
