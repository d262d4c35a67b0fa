import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu

from kernels.fully_connected import vjp
from kernels.scaled_ws_conv import pallas
from profiling.compile.op_shapes import ConvShape, FullyConnectedShape, UpdateShape
from profiling.measure.op_agreement import SHAPES, compare_ops
from tests.lowering import as_on_a_tpu

SMALL = ConvShape(pixels=2, in_channels=128, out_channels=128, filter_pixels=1)
UPDATE = UpdateShape(shapes=((256, 512),))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  """Kernels run, interpreted, wherever they would run on a TPU."""
  monkeypatch.setattr(jax.lax, "platform_dependent", as_on_a_tpu)
  with pltpu.force_tpu_interpret_mode(True):
    yield


def test_kernels_agree_with_their_references():
  rows = compare_ops((SMALL, UPDATE))
  assert [row.direction for row in rows] == ["forward", "both", "update"]
  for row in rows:
    assert row.agrees
    assert row.failure is None
  # These are kernels, which do not add up as the references do.
  assert 0 < rows[-1].kernel_error < rows[-1].error_max == 2.0**-17
  assert 0 < rows[0].kernel_error < rows[0].error_max == 2.0**-6


@pytest.mark.parametrize(
  ("factor", "failure"), [(1.05, None), (float("nan"), "a result is not finite")]
)
def test_wrong_results_are_found(factor, failure, monkeypatch):
  correct = pallas.scaled_ws_convolution
  monkeypatch.setattr(
    pallas,
    "scaled_ws_convolution",
    lambda *arguments, **static: jax.tree.map(
      lambda leaf: leaf * jnp.asarray(factor, leaf.dtype), correct(*arguments, **static)
    ),
  )
  for row in compare_ops((SMALL,)):
    assert not row.agrees
    assert row.failure == failure


def test_a_wrong_gradient_of_a_fully_connected_weight_is_found(monkeypatch):
  layers = [shape for shape in SHAPES if isinstance(shape, FullyConnectedShape)]
  assert all(row.agrees for row in compare_ops(tuple(layers)))
  correct = vjp.weight_gradient

  def wrong(*arguments, **static):
    return (1.05 * correct(*arguments, **static)).astype(jnp.bfloat16)

  monkeypatch.setattr(vjp, "weight_gradient", wrong)
  rows = compare_ops(tuple(layers))
  assert [row.agrees for row in rows] == [row.direction == "forward" for row in rows]


def test_a_kernel_that_does_not_compile_is_recorded_and_the_rest_goes_on(monkeypatch):
  def refuse(*arguments, **static):
    raise RuntimeError("Mosaic failed\nto compile")

  monkeypatch.setattr(pallas, "scaled_ws_convolution", refuse)
  forward, both, update = compare_ops((SMALL, UPDATE))
  assert forward.failure == both.failure == "RuntimeError: Mosaic failed"
  assert not forward.agrees
  assert update.agrees


def test_all_ops_are_compared():
  assert len({type(shape) for shape in SHAPES}) == 5
