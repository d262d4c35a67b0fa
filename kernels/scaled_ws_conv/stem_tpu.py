"""The stem's four convolutions by the Pallas TPU kernel, with pixels packed into lanes.

Few channels would leave most lanes empty. So neighbors in a row share the lanes of a register,
[height, width / p, images, p * channels], and the filters become matrices of 128 x 128 which take
p neighbors to p' neighbors: a band of copies of the filter, and zeros. Multiplying these costs the
matrix units less than a sixth of the time that empty lanes would. The results of one convolution
are packed as the next one wants them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels.scaled_ws_conv.geometry import Geometry, Tap
from kernels.scaled_ws_conv.kernel_tpu import convolve
from kernels.scaled_ws_conv.tile import choose
from kernels.tpu import IMAGES_MULTIPLE, LANES

FILTER_PIXELS = 3


def stem(
  images: Float[Array, "h w n c"],
  weights: Sequence[Float[Array, "3 3 _ _"]],
  gains: Sequence[Float[Array, " _"]],
  biases: Sequence[Float[Array, " _"]],
  input_scale: Float[Array, ""],
  *,
  strides: Sequence[int],
  activation,
  standardize: Callable[..., Array],
) -> Float[Array, "h2 w2 n o"]:
  """As the reference, whose standardization of weights it is given.

  Raises:
    NotImplementedError: for channels that do not fill lanes and sides that do not fill packs.
  """
  if images.dtype not in (jnp.bfloat16, jnp.float32):
    raise NotImplementedError("images other than bfloat16 and float32")
  layers = layers_of(
    images.shape,
    [weight.shape for weight in weights],
    strides=strides,
    itemsize=images.dtype.itemsize,
  )
  for layer in layers:
    for direction in ("forward", "backward"):
      choose(layer.geometry, direction)
  count, channels = images.shape[2:]
  first = layers[0].geometry
  x = jnp.pad(images, ((0, 0), (0, 0), (0, first.images - count), (0, 0)))
  # The rows that the first stride goes over are packed too.
  x = x.reshape(first.height, strides[0], first.width, -1, first.images, channels)
  x = jnp.transpose(x, (0, 2, 4, 1, 3, 5))
  for i, (layer, weight, gain, bias) in enumerate(zip(layers, weights, gains, biases, strict=True)):
    geometry = layer.geometry
    x, _ = convolve(
      geometry,
      activation if i else None,
      0.0,
      x.reshape(geometry.input_shape),
      _expand(standardize(weight, gain), layer),
      None,
      jnp.tile(bias, geometry.out_channels // len(bias)),
      input_scale if i else jnp.ones_like(input_scale),
    )
  return x[:, :, 0, :count]


@dataclasses.dataclass(frozen=True)
class Layer:
  """One of the packed convolutions.

  Attributes:
    geometry: of packs.
    rows: one-hot [taps, row in the lanes, row of the filter]: what a tap has of the filter.
    columns: one-hot [taps, neighbor, neighbor of the result, column of the filter].
  """

  geometry: Geometry
  rows: np.ndarray
  columns: np.ndarray


def layers_of(
  images_shape: tuple[int, ...],
  weight_shapes: Sequence[tuple[int, ...]],
  *,
  strides: Sequence[int],
  itemsize: int,
) -> list[Layer]:
  """What the kernels compute for arguments of these shapes; see `stem`."""
  height, width, count, _ = images_shape
  layers = []
  for i, (shape, stride) in enumerate(zip(weight_shapes, strides, strict=True)):
    inputs, outputs = shape[2:]
    out_pack = max(LANES // outputs, 1)
    # The images' packs are those of the first result.
    packed_rows, pack = (1, LANES // inputs) if i else (stride, stride * out_pack)
    is_last = i == len(strides) - 1
    if pack % (stride * out_pack) or (out_pack * outputs != LANES and not is_last):
      raise NotImplementedError("channels that do not fill the lanes")
    if packed_rows * pack * inputs > LANES:
      raise NotImplementedError("images of too many channels")
    if height % stride or width % pack:
      raise NotImplementedError("sides that do not fill packs of pixels")
    taps, rows, columns = _band(pack, out_pack, stride, packed_rows)
    geometry = Geometry(
      name=f"stem {i} {inputs}->{outputs} of {height}x{width}x{count}, {itemsize} bytes",
      height=height // stride,
      width=width // pack,
      images=count + -count % IMAGES_MULTIPLE,
      in_channels=packed_rows * pack * inputs,
      out_channels=out_pack * outputs,
      taps=taps,
      row_phases=stride // packed_rows,
      outputs=pack // stride // out_pack,
      itemsize=itemsize,
    )
    layers.append(Layer(geometry, rows, columns))
    height, width = height // stride, width // stride
  return layers


def _band(
  pack: int, out_pack: int, stride: int, packed_rows: int
) -> tuple[tuple[Tap, ...], np.ndarray, np.ndarray]:
  """Taps of the packed convolution, and what each has of the filter: see `Layer`.

  Args:
    pack: neighbors in the lanes of the input.
    out_pack: likewise of the result.
    stride: of the convolution.
    packed_rows: rows in the lanes of the input.
  """
  padding = (FILTER_PIXELS - stride) // 2
  taps, all_rows, all_columns = [], [], []
  outputs = pack // stride // out_pack
  for output, down, phase, right in itertools.product(
    range(outputs), (-1, 0, 1), range(stride // packed_rows), (-1, 0, 1)
  ):
    rows = np.zeros((packed_rows, FILTER_PIXELS), np.float32)
    for packed_row, row in itertools.product(range(packed_rows), range(FILTER_PIXELS)):
      rows[packed_row, row] = row - padding == down * stride + phase + packed_row
    columns = np.zeros((pack, out_pack, FILTER_PIXELS), np.float32)
    for pixel, out_pixel, column in np.ndindex(*columns.shape):
      reached = (output * out_pack + out_pixel) * stride + column - padding
      columns[pixel, out_pixel, column] = right * pack + pixel == reached
    if rows.any() and columns.any():
      taps.append(Tap((phase, 0), (down, right), output))
      all_rows.append(rows)
      all_columns.append(columns)
  return tuple(taps), np.stack(all_rows), np.stack(all_columns)


def _expand(weight: Float[Array, "3 3 i o"], layer: Layer) -> Float[Array, "taps inputs outputs"]:
  # Zeros and ones times float32: exact only with all bits.
  squares = jnp.einsum(
    "try,tpqx,yxio->trpiqo",
    layer.rows,
    layer.columns,
    weight,
    precision=jax.lax.Precision.HIGHEST,
  )
  geometry = layer.geometry
  return squares.reshape(len(geometry.taps), geometry.in_channels, geometry.out_channels)
