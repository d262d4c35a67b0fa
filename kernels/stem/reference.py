"""The stem's four convolutions in plain JAX: the specification of the op."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from kernels.scaled_ws_conv.formulas import Activation, Standardization
from kernels.scaled_ws_conv.reference import scaled_ws_convolution
from kernels.stem.formulas import STRIDES


def stem_convolutions(
  images: Float[Array, "h w n c"],
  weights: Sequence[Float[Array, "3 3 _ _"]],
  gains: Sequence[Float[Array, " _"]],
  biases: Sequence[Float[Array, " _"]],
  input_scale: Float[Array, ""],
  *,
  activation: Activation,
  standardization: Standardization,
) -> Float[Array, "h2 w2 n o"]:
  """Applies one `scaled_ws_convolution` after the other, with the strides of `formulas.STRIDES`.

  Args:
    images: normalized images.
    weights: filters of the four convolutions.
    gains: scales of each convolution's output channels.
    biases: offsets of each convolution's output channels.
    input_scale: the activation's gain. There is no derivative with respect to it.
    activation: activation of the inputs of all convolutions but the first.
    standardization: see `scaled_ws_conv.formulas.inverse_deviation`.
  """
  x = images
  parameters = zip(weights, gains, biases, STRIDES, strict=True)
  for i, (weight, gain, bias, stride) in enumerate(parameters):
    x, _ = scaled_ws_convolution(
      x,
      weight,
      gain,
      bias,
      input_scale if i else None,
      stride=stride,
      groups=1,
      pool=False,
      activation=activation if i else None,
      returns_input=False,
      standardization=standardization,
    )
  return x
