import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import kernels
from kernels.dispatch import dispatch, fallback_counts
from kernels.packed_sums import formulas as packed_sums

ONE = jnp.float32(1)
(COUNT,) = export.symbolic_shape("count")
SYMBOLIC = "a symbolic dimension, which cannot be cut into tiles"


def reference(x):
  return jnp.sin(x)


def kernel(x):
  return jnp.cos(x)


def picky_kernel(x):
  raise NotImplementedError(f"{x.shape=} has no lanes")


@pytest.fixture(autouse=True)
def _fresh_counts():
  fallback_counts.clear()
  yield
  fallback_counts.clear()


def call(implementation, kernel, argument=ONE):
  return dispatch("op", implementation, reference=reference, kernel=kernel, arguments=(argument,))


def test_the_reference_runs_when_asked_for():
  np.testing.assert_allclose(call("reference", kernel), np.sin(1), rtol=1e-6)
  assert not fallback_counts


def test_on_a_cpu_the_reference_runs_even_where_a_kernel_covers_the_shape():
  np.testing.assert_allclose(
    jax.jit(lambda x: call("pallas", kernel, x))(ONE), np.sin(1), rtol=1e-6
  )
  assert not fallback_counts


@pytest.mark.parametrize(
  ("platform", "present", "absent"), [("tpu", "cosine", "sine"), ("cpu", "sine", "cosine")]
)
def test_the_platform_that_is_lowered_for_decides(platform, present, absent):
  """The platform that this process runs on does not: a laptop can compile a pod's program."""
  exported = export.export(jax.jit(lambda x: call("pallas", kernel, x)), platforms=[platform])(ONE)
  text = exported.mlir_module()
  assert f"stablehlo.{present} " in text
  assert f"stablehlo.{absent} " not in text


@pytest.mark.parametrize(
  ("kernel", "reason"),
  [(None, "no kernel has been written"), (picky_kernel, "x.shape=() has no lanes")],
)
def test_a_fallback_is_counted_each_time_and_logged_once(kernel, reason, caplog):
  with caplog.at_level(logging.WARNING, logger="absl"):
    for _ in range(3):
      np.testing.assert_allclose(call("pallas", kernel), np.sin(1), rtol=1e-6)
  assert fallback_counts == {("op", reason): 3}
  messages = [record.getMessage() for record in caplog.records]
  assert messages == [f"op runs its reference instead of a Pallas kernel: {reason}"]


def test_each_reason_is_logged(caplog):
  with caplog.at_level(logging.WARNING, logger="absl"):
    call("pallas", picky_kernel, jnp.zeros(3))
    call("pallas", picky_kernel, jnp.zeros(4))
  assert len(caplog.records) == 2


def test_other_errors_of_a_kernel_are_not_hidden():
  def broken(x):
    raise ZeroDivisionError("bug")

  with pytest.raises(ZeroDivisionError):
    call("pallas", broken)


def test_an_unknown_implementation_is_an_error():
  with pytest.raises(Exception, match="implementation"):
    call("cuda", kernel)


def test_shapes_without_a_kernel_are_counted():
  x, vector = jnp.ones((2, 2, 1, 2)), jnp.ones(2)
  result = kernels.scaled_ws_convolution(
    x, jnp.ones((1, 1, 2, 2)), vector, vector, implementation="pallas"
  ).result
  assert result.shape == x.shape
  reason = "input channels that do not fill the sublanes"
  assert fallback_counts == {("scaled_ws_conv", reason): 1}


def struct(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def shapes_for_any_count(op, *shapes):
  """Traces an op that asks for kernels, and returns the shapes of its results."""
  results = jax.eval_shape(functools.partial(op, implementation="pallas"), *shapes)
  return [result.shape for result in jax.tree.leaves(results)]


def rows(inputs, outputs):
  return kernels.StandardizedFilters(struct(1, inputs // 128, outputs, 128), struct(1, 1, 1, 128))


GATE = kernels.Gate(struct(128, 64), struct(64), struct(64, 128), struct(128))
IMAGES = struct(8, 8, COUNT, 128)
OPS = {
  "scaled_ws_conv": (
    functools.partial(kernels.scaled_ws_convolution, activation=jax.nn.relu, returns_input=True),
    (IMAGES, struct(1, 1, 128, 128), struct(128), struct(128)),
    [(8, 8, COUNT, 128)] * 2,
  ),
  "standardized_convolution": (
    kernels.standardized_convolution,
    (IMAGES, rows(128, 256), struct(256)),
    [(8, 8, COUNT, 256)],
  ),
  "standardize_filters": (
    kernels.standardize_filters,
    (struct(1, 1, 128, COUNT), struct(COUNT)),
    [(1, 1, COUNT, 128)] * 2,
  ),
  "conv_se_residual": (
    functools.partial(kernels.conv_se_residual, activation=jax.nn.relu),
    (IMAGES, struct(1, 1, 128, 128), struct(128), struct(128), IMAGES, GATE, struct()),
    [(8, 8, COUNT, 128)],
  ),
  "standardized_conv_se_residual": (
    functools.partial(kernels.standardized_conv_se_residual, activation=jax.nn.relu),
    (IMAGES, rows(128, 128), struct(128), IMAGES, GATE, struct()),
    [(8, 8, COUNT, 128)],
  ),
  "stem": (
    functools.partial(kernels.stem_convolutions, activation=jax.nn.relu),
    (
      struct(32, 32, COUNT, 3),
      [struct(3, 3, *pair) for pair in ((3, 16), (16, 32), (32, 64), (64, 128))],
      *[[struct(outputs) for outputs in (16, 32, 64, 128)]] * 2,
      struct(),
    ),
    [(8, 8, COUNT, 128)],
  ),
}
"""Ops with arguments that kernels cover if COUNT is a number, and the shapes of their results."""


@pytest.mark.parametrize("op", OPS)
def test_a_symbolic_dimension_is_left_to_the_reference(op):
  function, shapes, results = OPS[op]
  assert shapes_for_any_count(function, *shapes) == results
  assert fallback_counts == {(op, SYMBOLIC): 1}


def test_a_symbolic_parameter_alone_is_updated_by_the_reference():
  stacks = {"stacked": struct(COUNT, 3, 3, 8, 8)}
  others = {"filter": struct(1, 1, 128, COUNT), "gain": struct(128)}
  for parameters, stacked in ((stacks, True), (others, False)):
    fallback_counts.clear()

    def step(parameters, scalar, stacked=stacked, **options):
      return kernels.sgd_agc_step(
        *[parameters] * 3,
        **dict.fromkeys(("learning_rate", "momentum", "weight_decay", "clipping"), scalar),
        stacked=stacked,
        **options,
      )

    shapes = [parameters[name].shape for name in sorted(parameters)]
    assert shapes_for_any_count(step, parameters, struct()) == [*shapes, *shapes, ()]
    assert fallback_counts == {("sgd_agc", SYMBOLIC): 1}


@pytest.mark.parametrize("implementation", ["reference", "pallas"])
def test_packed_sums_have_no_layout_for_a_symbolic_dimension(implementation):
  part = packed_sums.Part(axis=2, parts=2, array=0)
  function = functools.partial(
    kernels.add_parts, None, parts=(part,), implementation=implementation
  )
  with pytest.raises(NotImplementedError, match=r"^gradients of a symbolic size, which have no"):
    jax.eval_shape(function, (struct(COUNT, 128, 256),), jax.ShapeDtypeStruct((1,), jnp.int32))
