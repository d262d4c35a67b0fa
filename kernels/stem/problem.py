"""The problems that the convolution kernels solve for the stem, with pixels packed into lanes.

The stem's few channels would leave most lanes empty. Therefore p neighboring pixels in a row share
the lanes of a register, [height, width / p, images, p * channels], and the filters become 128 x 128
matrices that take p neighbors to p' neighbors: a band of copies of the filter, and zeros elsewhere.
Multiplying by these zeros costs the matrix units less than a sixth of the time that empty lanes
would. The results of each convolution are packed as the next one needs them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kernels.layout import LANES
from kernels.scaled_ws_conv.problem import Problem as ConvolutionProblem
from kernels.scaled_ws_conv.problem import Tap
from kernels.stem.formulas import FILTER_PIXELS, STRIDES
from kernels.tpu import IMAGES_MULTIPLE


class Band(NamedTuple):
  """The filter's part in each tap of a packed convolution.

  Attributes:
    taps: taps of the packed convolution.
    rows: one-hot float32 [taps, row in the lanes, row of the filter].
    columns: one-hot float32 [taps, pixel of the input's pack, pixel of the result's pack, column of
      the filter].
  """

  taps: tuple[Tap, ...]
  rows: np.ndarray
  columns: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem(ConvolutionProblem):
  """A convolution over packs of pixels: its width counts packs, its channels the lanes of a pack.

  Attributes:
    pack: number of neighboring pixels in a row that share the lanes of the input.
    out_pack: number of neighboring pixels in a row that share the lanes of the result.
    packed_rows: number of rows that share the lanes of the input.
  """

  pack: int
  out_pack: int
  packed_rows: int = 1

  @property
  def label(self) -> str:
    """Describes the problem in a table, in pixels of the input and channels of a pixel."""
    inputs = self.in_channels // self.pack // self.packed_rows
    outputs = self.out_channels // self.out_pack
    height, width = self.height * self.stride, self.width * self.pack
    return f"stem {inputs}->{outputs} of {height}x{width}x{self.images}, {self.itemsize} bytes"

  @property
  def row_phases(self) -> int:
    """Number of phases of the input's rows."""
    return self.stride // self.packed_rows

  @property
  def column_phases(self) -> int:
    """Number of phases of the input's columns, which are in the lanes."""
    return 1

  @property
  def outputs(self) -> int:
    """Number of result packs per input pack."""
    return self.pack // self.stride // self.out_pack

  @property
  def taps(self) -> tuple[Tap, ...]:
    """Taps that are not zero everywhere."""
    return self.band.taps

  @functools.cached_property
  def band(self) -> Band:
    """The taps, and the part of the filter in each."""
    padding = (FILTER_PIXELS - self.stride) // 2
    taps, all_rows, all_columns = [], [], []
    for output, down, phase, right in itertools.product(
      range(self.outputs), (-1, 0, 1), range(self.row_phases), (-1, 0, 1)
    ):
      rows = np.zeros((self.packed_rows, FILTER_PIXELS), np.float32)
      for packed_row, row in np.ndindex(*rows.shape):
        rows[packed_row, row] = row - padding == down * self.stride + phase + packed_row
      columns = np.zeros((self.pack, self.out_pack, FILTER_PIXELS), np.float32)
      for pixel, out_pixel, column in np.ndindex(*columns.shape):
        reached = (output * self.out_pack + out_pixel) * self.stride + column - padding
        columns[pixel, out_pixel, column] = right * self.pack + pixel == reached
      if rows.any() and columns.any():
        taps.append(Tap((phase, 0), (down, right), output))
        all_rows.append(rows)
        all_columns.append(columns)
    return Band(tuple(taps), np.stack(all_rows), np.stack(all_columns))


def problems_of(
  images_shape: tuple[int, ...], weight_shapes: Sequence[tuple[int, ...]], *, itemsize: int
) -> list[Problem]:
  """Returns the problem of each convolution for arguments of these shapes.

  Args:
    images_shape: shape of the images, [height, width, images, channels].
    weight_shapes: shapes of the filters, [3, 3, i, o].
    itemsize: bytes per activation.

  Raises:
    NotImplementedError: channels do not fill the lanes, or sides do not fill packs.
  """
  height, width, images, _ = images_shape
  problems = []
  for i, (shape, stride) in enumerate(zip(weight_shapes, STRIDES, strict=True)):
    inputs, outputs = shape[2:]
    out_pack = max(LANES // outputs, 1)
    # The images are packed so that one pack yields one pack of the first result, and the rows of a
    # stride share the lanes.
    packed_rows, pack = (1, LANES // inputs) if i else (stride, stride * out_pack)
    is_last = i == len(STRIDES) - 1
    if pack % (stride * out_pack) or (out_pack * outputs != LANES and not is_last):
      raise NotImplementedError("channels that do not fill the lanes")
    if packed_rows * pack * inputs > LANES:
      raise NotImplementedError("images of too many channels")
    if height % stride or width % pack:
      raise NotImplementedError("sides that do not fill packs of pixels")
    problems.append(
      Problem(
        height=height // stride,
        width=width // pack,
        images=images + -images % IMAGES_MULTIPLE,
        in_channels=packed_rows * pack * inputs,
        out_channels=out_pack * outputs,
        filter_pixels=FILTER_PIXELS,
        stride=stride,
        itemsize=itemsize,
        standardized=True,
        pack=pack,
        out_pack=out_pack,
        packed_rows=packed_rows,
      )
    )
    height, width = height // stride, width // stride
  return problems
