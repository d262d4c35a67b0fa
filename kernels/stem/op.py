"""The public op: the stem's four convolutions."""

import functools
from collections.abc import Sequence

import jax
from jaxtyping import Array, Float

from kernels.arguments import check_arrays, check_options, check_sequence
from kernels.dispatch import Implementation, dispatch
from kernels.mesh_axes import vary_alike
from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.stem import pallas, reference
from kernels.stem.formulas import STRIDES


def stem_convolutions(
  images: Float[Array, "h w n c"],
  weights: Sequence[Float[Array, "3 3 _ _"]],
  gains: Sequence[Float[Array, " _"]],
  biases: Sequence[Float[Array, " _"]],
  input_scale: Float[Array, ""],
  *,
  activation: Activation,
  standardization: Standardization = "released",
  implementation: Implementation = "reference",
) -> Float[Array, "h2 w2 n o"]:
  """Applies the stem's four 3x3 convolutions with scaled weight standardization.

  This is `reference.stem_convolutions`, with TPU kernels where they cover the arguments; their
  strides are `formulas.STRIDES`.

  Args:
    images: normalized images, [height, width, images, channels], in the compute dtype.
    weights: filters of the four convolutions, each [3, 3, inputs, outputs], float32.
    gains: scale of each filter, each [output channels], float32.
    biases: offset of each output channel, each [output channels], float32.
    input_scale: the activation's gain, a float32 scalar without a derivative.
    activation: activation of the inputs of all convolutions but the first.
    standardization: formula of weight standardization (`scaled_ws_conv.formulas.Standardization`).
    implementation: "reference" or "pallas".

  Returns:
    [height / 4, width / 4, images, output channels] rounded up, in the dtype of `images`.

  Raises:
    ValueError: an argument is of another kind, or filters, gains and biases do not fit together.
  """
  for name, arrays in (("weights", weights), ("gains", gains), ("biases", biases)):
    check_sequence(name, arrays, len(STRIDES), "arrays, one for each convolution")
  check_arrays(
    images=(images, "height width images channels0"),
    input_scale=(input_scale, ""),
    **{
      f"{name}[{i}]": (array, axes.format(i, i + 1))
      for name, arrays, axes in (
        ("weights", weights, "3 3 channels{} channels{}"),
        ("gains", gains, "channels{1}"),
        ("biases", biases, "channels{1}"),
      )
      for i, array in enumerate(arrays)
    },
  )
  static = dict(activation=activation, standardization=standardization)
  check_options(**static, implementation=implementation)
  return dispatch(
    "stem",
    implementation,
    reference=functools.partial(reference.stem_convolutions, **static),
    kernel=functools.partial(pallas.stem_convolutions, **static),
    arguments=vary_alike(images, weights, gains, biases, jax.lax.stop_gradient(input_scale)),
  )
