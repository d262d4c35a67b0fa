"""What the convolution kernels compute.

A convolution of stride s, and pooling with s = 2, reads the input as s x s interleaved pictures,
its phases, each as large as the result: [H, s, W, s, N, C], which is only another shape of
[s * H, s * W, N, C]. A tap of the filter then is a phase and a shift by whole pixels of the result,
and indices of major dimensions cost a TPU nothing.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

from kernels.tpu import LANES


def lane_tiles(channels: int) -> list[slice]:
  """Parts of the channels that fill one register's lanes each; the last may be smaller."""
  return [slice(i, min(i + LANES, channels)) for i in range(0, channels, LANES)]


class Tap(NamedTuple):
  """One matrix of weights: some input contributes to some result by it.

  Attributes:
    phase: row and column of the input's phase.
    shift: rows and columns of the result by which the input is ahead.
    output: which of the results of a pixel.
  """

  phase: tuple[int, int]
  shift: tuple[int, int]
  output: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
  """A convolution of [height, row_phases, width, column_phases, images, in_channels].

  Its result is [height, width, outputs, images, out_channels], its weights are
  [taps, in_channels / groups, out_channels].

  Attributes:
    name: by which its tiles are found.
    height: of the result.
    width: of the result.
    images: of the batch.
    in_channels: of all groups.
    out_channels: of all groups.
    taps: of the filter.
    groups: of channels.
    row_phases: of the input.
    column_phases: of the input.
    outputs: results of a pixel.
    pool: the mean over the phases is what is convolved.
    ends_branch: squeeze-excite and the residual addition follow. Forward, the mean of each image's
      results is wanted too; backward, the cotangent is that of the sum.
    returns_input: the input is given back, so that the gradient of its other uses is added here.
    itemsize: bytes of an activation.
  """

  name: str
  height: int
  width: int
  images: int
  in_channels: int
  out_channels: int
  taps: tuple[Tap, ...]
  groups: int = 1
  row_phases: int = 1
  column_phases: int = 1
  outputs: int = 1
  pool: bool = False
  ends_branch: bool = False
  returns_input: bool = False
  itemsize: int = 2

  @property
  def group_inputs(self) -> int:
    """Input channels of a group."""
    return self.in_channels // self.groups

  @property
  def group_outputs(self) -> int:
    """Output channels of a group."""
    return self.out_channels // self.groups

  @property
  def convolved_phases(self) -> tuple[int, int]:
    """Phases after pooling."""
    return (1, 1) if self.pool else (self.row_phases, self.column_phases)

  @property
  def macs(self) -> int:
    """Multiply-adds of the forward pass; each of the backward pass's two products has as many."""
    pixels = self.height * self.width * self.images
    return pixels * len(self.taps) * self.group_inputs * self.out_channels

  @property
  def before(self) -> int:
    """Rows, and columns, by which the input is read before the first of the result."""
    return max(-tap.shift[0] for tap in self.taps)

  @property
  def after(self) -> int:
    """Likewise after the last."""
    return max(tap.shift[0] for tap in self.taps)

  @property
  def input_shape(self) -> tuple[int, ...]:
    """Of the whole input."""
    return (
      self.height,
      self.row_phases,
      self.width,
      self.column_phases,
      self.images,
      self.in_channels,
    )


@functools.cache
def convolution(
  *,
  height: int,
  width: int,
  images: int,
  in_channels: int,
  out_channels: int,
  kernel_pixels: int,
  stride: int = 1,
  groups: int = 1,
  pool: bool = False,
  ends_branch: bool = False,
  returns_input: bool = False,
  itemsize: int = 2,
) -> Geometry:
  """With "SAME" padding; height and width are those of the result, which divide the input's."""
  padding = max(kernel_pixels - stride, 0) // 2
  places = [divmod(i - padding, stride) for i in range(kernel_pixels)]
  taps = tuple(
    Tap((row_phase, column_phase), (down, right))
    for (down, row_phase), (right, column_phase) in itertools.product(places, repeat=2)
  )
  phases = 2 if pool else stride
  name = f"{kernel_pixels}x{kernel_pixels} {in_channels}->{out_channels} groups {groups}"
  name += f" stride {stride}{' pooled' if pool else ''} to {height}x{width}x{images}"
  name += " ending a branch" * ends_branch + " with input" * returns_input
  return Geometry(
    name=f"{name}, {itemsize} bytes",
    height=height,
    width=width,
    images=images,
    in_channels=in_channels,
    out_channels=out_channels,
    taps=taps,
    groups=groups,
    row_phases=phases,
    column_phases=phases,
    pool=pool,
    ends_branch=ends_branch,
    returns_input=returns_input,
    itemsize=itemsize,
  )
