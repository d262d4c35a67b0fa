"""The problem that the convolution kernels solve.

A convolution with stride s (or with 2x2 pooling, for which s = 2) reads its input as s x s
interleaved images, called phases, each as large as the result: [H, s, W, s, N, C] is a mere reshape
of [s * H, s * W, N, C]. A tap of the filter is then a phase and a shift by whole pixels of the
result, and indexing major dimensions costs a TPU nothing.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

from kernels.layout import LANES, SUBLANES
from kernels.tpu import IMAGES_MULTIPLE


def lane_tiles(channels: int) -> list[slice]:
  """Returns slices of channels that each fill a register's lanes; the last may be smaller."""
  return [slice(i, min(i + LANES, channels)) for i in range(0, channels, LANES)]


class Tap(NamedTuple):
  """One matrix of weights, through which some input pixels contribute to some results.

  Attributes:
    phase: row and column of the input's phase.
    shift: rows and columns from a result to the input pixel that it reads, in pixels of the result.
    output: index among the results of an input pixel.
  """

  phase: tuple[int, int]
  shift: tuple[int, int]
  output: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A convolution of [height, row_phases, width, column_phases, images, in_channels].

  Its result is [height, width, outputs, images, out_channels], its weights are
  [taps, in_channels / groups, out_channels].

  Attributes:
    height: rows of the result.
    width: columns of the result.
    images: number of images in the batch.
    in_channels: input channels of all groups.
    out_channels: output channels of all groups.
    filter_pixels: side of the filter.
    stride: stride of the convolution.
    groups: number of groups of channels.
    pool: whether the input's phases are averaged before the convolution.
    ends_branch: whether squeeze-excite and the residual addition follow. The forward pass then also
      computes the mean of each image's results, and the backward pass gets the cotangent of the
      residual sum.
    returns_input: whether the input is returned, so that the gradient of its other uses is added
      in the backward kernel.
    itemsize: bytes per activation.
    standardized: whether the filters arrive standardized, as `filters.StandardizedFilters`; if not,
      the kernels standardize them in VMEM.
    sums_input: whether the input arrives as a `formulas.PendingSum`. The forward pass then adds
      it up and writes it, and the backward pass also computes the sums over space. The filter is
      1x1 and without stride.
  """

  height: int
  width: int
  images: int
  in_channels: int
  out_channels: int
  filter_pixels: int
  stride: int = 1
  groups: int = 1
  pool: bool = False
  ends_branch: bool = False
  returns_input: bool = False
  itemsize: int = 2
  standardized: bool = False
  sums_input: bool = False

  @property
  def label(self) -> str:
    """Describes the problem in a table."""
    side, to = self.filter_pixels, f"{self.height}x{self.width}x{self.images}"
    return (
      f"{side}x{side} {self.in_channels}->{self.out_channels} groups {self.groups}"
      f" stride {self.stride}{' pooled' * self.pool} to {to}{' ending a branch' * self.ends_branch}"
      f"{' with input' * self.returns_input}{' standardized' * self.standardized}"
      f"{' of a sum' * self.sums_input},"
      f" {self.itemsize} bytes"
    )

  @property
  def row_phases(self) -> int:
    """Number of phases of the input's rows."""
    return 2 if self.pool else self.stride

  @property
  def column_phases(self) -> int:
    """Number of phases of the input's columns."""
    return 2 if self.pool else self.stride

  @property
  def outputs(self) -> int:
    """Number of results per input pixel: 1, except in the stem."""
    return 1

  @functools.cached_property
  def taps(self) -> tuple[Tap, ...]:
    """Taps of the filter with "SAME" padding."""
    padding = max(self.filter_pixels - self.stride, 0) // 2
    places = [divmod(i - padding, self.stride) for i in range(self.filter_pixels)]
    return tuple(
      Tap((row_phase, column_phase), (down, right))
      for (down, row_phase), (right, column_phase) in itertools.product(places, repeat=2)
    )

  @property
  def group_inputs(self) -> int:
    """Number of input channels per group."""
    return self.in_channels // self.groups

  @property
  def group_outputs(self) -> int:
    """Number of output channels per group."""
    return self.out_channels // self.groups

  @property
  def phases(self) -> list[tuple[int, int]]:
    """Row and column of each of the input's phases."""
    return list(itertools.product(range(self.row_phases), range(self.column_phases)))

  @property
  def convolved_phases(self) -> tuple[int, int]:
    """Numbers of row and column phases after pooling."""
    return (1, 1) if self.pool else (self.row_phases, self.column_phases)

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass; each of the backward pass's two products has as many."""
    pixels = self.height * self.width * self.images
    return pixels * len(self.taps) * self.group_inputs * self.out_channels

  @functools.cached_property
  def before(self) -> int:
    """Number of input rows (and of columns) that are read before the first one of the result."""
    return max(-tap.shift[0] for tap in self.taps)

  @functools.cached_property
  def after(self) -> int:
    """Number of input rows (and of columns) that are read after the last one of the result."""
    return max(tap.shift[0] for tap in self.taps)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Shape of the whole input, with its phases."""
    return (
      self.height,
      self.row_phases,
      self.width,
      self.column_phases,
      self.images,
      self.in_channels,
    )


def problem_of(
  x_shape: tuple[int, ...],
  weight_shape: tuple[int, ...],
  *,
  stride: int,
  groups: int,
  pool: bool,
  itemsize: int,
  ends_branch: bool = False,
  returns_input: bool = False,
  standardized: bool = False,
  sums_input: bool = False,
) -> Problem:
  """Returns the problem that the kernels solve for arguments of these shapes.

  Args:
    x_shape: shape of the input, [height, width, images, channels].
    weight_shape: shape of the filters, [kh, kw, i, o].
    stride: stride of the convolution.
    groups: number of groups of channels.
    pool: whether pooling precedes the convolution.
    itemsize: bytes per activation.
    ends_branch: see `Problem`.
    returns_input: see `Problem`.
    standardized: see `Problem`.
    sums_input: see `Problem`.

  Raises:
    NotImplementedError: the kernels do not cover the problem.
  """
  height, width, images, channels = x_shape
  rows, columns, inputs, outputs = weight_shape
  if (rows, columns) not in ((1, 1), (3, 3)):
    raise NotImplementedError("filters other than 1x1 and 3x3")
  if pool and (rows, stride, groups) != (1, 1, 1):
    raise NotImplementedError("pooling before other than plain 1x1 convolutions")
  if stride > 2 or (rows == 1 and stride > 1):
    raise NotImplementedError("strides above 2, or above 1 of a 1x1 convolution")
  phases = 2 if pool else stride
  if height % phases or width % phases:
    raise NotImplementedError("pooling or stride on an odd side")
  if groups > 1 and (inputs % LANES or outputs // groups % LANES):
    raise NotImplementedError("groups that do not fill the lanes")
  if sums_input and (rows, groups, pool) != (1, 1, False):
    raise NotImplementedError("adding up the input of other than plain 1x1 convolutions")
  if sums_input and inputs % LANES:
    raise NotImplementedError("a sum's channels that do not fill the lanes")
  if inputs % SUBLANES:
    raise NotImplementedError("input channels that do not fill the sublanes")
  return Problem(
    height=height // phases,
    width=width // phases,
    images=images + -images % IMAGES_MULTIPLE,
    in_channels=channels,
    out_channels=outputs,
    filter_pixels=rows,
    stride=stride,
    groups=groups,
    pool=pool,
    ends_branch=ends_branch,
    returns_input=returns_input,
    itemsize=itemsize,
    standardized=standardized,
    sums_input=sums_input,
  )
