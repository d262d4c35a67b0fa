import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import kernels
from kernels.fully_connected.tile import BLOCK_BYTES_MAX, choose
from kernels.layout import LANES
from kernels.tpu import VMEM_BYTES


def operands(images=4, inputs=6, outputs=5, seed=0):
  generator = np.random.default_rng(seed)
  shapes = (images, inputs), (inputs, outputs), (outputs,)
  return [jnp.asarray(generator.standard_normal(shape), jnp.float32) for shape in shapes]


def test_against_float64():
  arguments = operands()
  x, weight, bias = (np.asarray(one, np.float64) for one in arguments)
  actual = kernels.fully_connected_layer(*arguments, dtype="float32")
  np.testing.assert_allclose(actual, x @ weight + bias, rtol=0, atol=2e-6)


def test_gradients():
  def layer(*arguments):
    return kernels.fully_connected_layer(*map(jnp.asarray, arguments), dtype="float32")

  check_grads(layer, operands(), order=1, modes=["rev"], atol=1e-3, rtol=1e-3)


def test_operands_are_rounded_and_sums_are_float32():
  x, weight, bias = operands(inputs=512)
  actual = kernels.fully_connected_layer(x, weight, bias, dtype="bfloat16")
  assert actual.dtype == jnp.float32
  rounded = [np.asarray(one.astype(jnp.bfloat16), np.float64) for one in (x, weight)]
  np.testing.assert_allclose(actual, rounded[0] @ rounded[1] + bias[None], rtol=0, atol=5e-5)


@pytest.mark.parametrize("implementation", ["reference", "pallas"])
def test_gradients_have_the_dtypes_of_what_they_belong_to(implementation):
  x, weight, bias = operands(inputs=128, outputs=256)

  def loss(x, weight, bias):
    y = kernels.fully_connected_layer(
      x, weight, bias, dtype="bfloat16", implementation=implementation
    )
    return jnp.sum(y)

  gradients = jax.grad(loss, argnums=(0, 1, 2))(x, weight.astype(jnp.bfloat16), bias)
  assert [one.dtype for one in gradients] == [jnp.float32, jnp.bfloat16, jnp.float32]


@pytest.mark.parametrize(
  ("inputs", "outputs"),
  [(128, 256), (1024, 2048), (3072, 30_000), (3072, 10), (8192, 12_288), (256, 128)],
)
def test_blocks_cover_the_gradient_and_fit(inputs, outputs):
  by_output, rows, columns = choose(32, inputs, outputs, 2)
  whole_rows, whole_columns = (outputs, inputs) if by_output else (inputs, outputs)
  assert by_output == (outputs % LANES != 0)
  assert whole_columns % columns == 0
  assert columns % LANES == 0
  # A block of all rows needs no whole lanes of them.
  assert rows % LANES == 0 or rows == whole_rows
  assert 2 * rows * columns <= max(BLOCK_BYTES_MAX, 2 * LANES * columns)


def test_both_cores_get_a_block():
  for inputs, outputs in ((256, 512), (1024, 2048), (3072, 30_000)):
    blocks = choose(32, inputs, outputs, 2)
    assert blocks.rows <= (outputs if blocks.by_output else inputs) / 2


@pytest.mark.parametrize(
  ("images", "inputs", "outputs", "reason"),
  [(32, 100, 60, "do not fill the lanes"), (VMEM_BYTES // 256, 128, 256, "do not fit VMEM")],
)
def test_what_no_blocks_cover(images, inputs, outputs, reason):
  with pytest.raises(NotImplementedError, match=reason):
    choose(images, inputs, outputs, 2)
