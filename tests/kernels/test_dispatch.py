import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import kernels
from kernels.dispatch import dispatch, fallback_counts

ONE = jnp.float32(1)


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
