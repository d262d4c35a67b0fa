"""A residual sum that has yet to be added up, by the convolution that reads it or by a kernel.

Adding up takes as long as HBM needs for three wide arrays, and so do, for two, the sums over space
that the derivative needs. A convolution that reads the sum does both while its matrix units are
busy.
"""

from typing import NamedTuple

from jaxtyping import Array, Float


class PendingSum(NamedTuple):
  """The sum shortcut + scale * branch.

  Its derivatives are not those of the formula. Who adds up gets the cotangent of the sum, and
  passes on what who made the branch cannot compute without reading wide arrays once more:

  - in place of the derivatives with respect to branch and shortcut, the sum's cotangent itself,
    which who made the branch scales;
  - in place of those with respect to scale and sink, the sums over space of cotangent * branch and
    of the cotangent, in float32.

  Attributes:
    branch: the residual branch, in the compute dtype.
    shortcut: array of the branch's shape and dtype.
    scale: factor of each image and channel of the branch, float32.
    sums_sink: zeros like `scale`, which nothing reads.
  """

  branch: Float[Array, "h w n c"]
  shortcut: Float[Array, "h w n c"]
  scale: Float[Array, "n c"]
  sums_sink: Float[Array, "n c"]
