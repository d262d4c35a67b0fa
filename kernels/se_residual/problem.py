"""The problem that the kernels of squeeze-excite solve."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A branch, [height, width, images, channels], to be scaled and added, or summed over space.

  Attributes:
    height: number of rows.
    width: number of columns.
    images: number of images in the batch.
    channels: number of channels.
    itemsize: bytes per activation.
  """

  height: int
  width: int
  images: int
  channels: int
  itemsize: int

  @property
  def label(self) -> str:
    """Describes the problem in a table."""
    sides = f"{self.height}x{self.width}x{self.images}x{self.channels}"
    return f"{sides}, {self.itemsize} bytes"
