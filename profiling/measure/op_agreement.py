"""Compares what the ops' kernels compute on a device with what their references do."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from profiling.compile.op_shapes import (
  ConvShape,
  FullyConnectedShape,
  OpShape,
  SqueezeExciteShape,
  StemShape,
  UpdateShape,
)
from profiling.compile.op_worker import OpRequest, Program, programs_of
from profiling.measure.op_times import draw, one_line

_CONVOLUTION = ConvShape(
  pixels=4, in_channels=256, out_channels=256, filter_pixels=1, activates_input=True
)
SHAPES: tuple[OpShape, ...] = (
  dataclasses.replace(_CONVOLUTION, returns_input=True),
  dataclasses.replace(_CONVOLUTION, out_channels=512, pool=True),
  dataclasses.replace(_CONVOLUTION, filter_pixels=3, groups=2),
  dataclasses.replace(_CONVOLUTION, filter_pixels=3, groups=2, stride=2),
  StemShape(pixels=16, channels=(16, 32, 64, 128)),
  SqueezeExciteShape(
    convolution=dataclasses.replace(_CONVOLUTION, out_channels=512), squeeze_channels=128
  ),
  FullyConnectedShape(inputs=256, outputs=512),
  FullyConnectedShape(inputs=256, outputs=10),
  UpdateShape(shapes=((1, 1, 256, 512),)),
  UpdateShape(shapes=((512, 128),), clipped=False),
  UpdateShape(shapes=((256,), (512,), (3, 3, 3, 16))),
)
"""One shape of each structure that an op has a kernel for, small enough to compile in seconds."""
_IMAGES = 16

# Of the reference's own error. Kernels add up in another order, and keep more digits in between.
_REFERENCE_ERRORS_MAX = 1.5
# Roundings of bfloat16 (2^-9 each) or sums in float32 (2^-24 each) that no reference shows.
_ERROR_FLOORS = {"bfloat16": 2.0**-6, "float32": 2.0**-17}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
  """The errors of one op's kernels and of its reference at one shape.

  An error is the norm of the difference from the reference in float32, over that reference's norm;
  the largest of all results.

  Attributes:
    label: op and shape.
    direction: "forward", "both" (forward with all gradients) or "update".
    kernel_error: error of the kernels; None if they did not run.
    reference_error: error of the reference in the op's own dtype.
    error_max: largest error with which the kernels count as right.
    failure: what went wrong, in one line.
  """

  label: str
  direction: str
  kernel_error: float | None = None
  reference_error: float | None = None
  error_max: float | None = None
  failure: str | None = None

  @property
  def agrees(self) -> bool:
    """Returns whether the kernels ran and are right."""
    return self.kernel_error is not None and self.kernel_error <= self.error_max


def compare_ops(shapes: tuple[OpShape, ...] = SHAPES) -> list[Agreement]:
  """Runs the kernels and references of ops at some shapes; one that fails says why.

  Args:
    shapes: ops to run, with 16 images.
  """
  rows = []
  for shape in tqdm(shapes, desc="numerics", leave=False, disable=None):
    by_kernel, by_reference = (
      programs_of(shape, OpRequest(topology="", images=_IMAGES, kernels=implementation))
      for implementation in ("pallas", "reference")
    )
    for kernel, reference in zip(by_kernel, by_reference, strict=True):
      # The convolution without squeeze-excite is a shape of its own.
      if not kernel.direction.startswith("convolution"):
        rows.append(_compare(kernel, reference))
  return rows


def _compare(kernel: Program, reference: Program) -> Agreement:
  row = Agreement(label=kernel.label, direction=kernel.direction)
  try:
    arguments = draw(kernel.arguments, seed=1)
    wide = jax.tree.map(lambda one: one.astype(jnp.float32), arguments)
    with jax.default_matmul_precision("highest"):
      exact = _leaves(reference, wide)
    reference_error, kernel_error = (
      _largest_error(_leaves(program, arguments), exact) for program in (reference, kernel)
    )
  # Whatever the compiler or the device raises is a result.
  except Exception as error:
    return dataclasses.replace(row, failure=one_line(error))
  if not np.isfinite([reference_error, kernel_error]).all():
    return dataclasses.replace(row, failure="a result is not finite")
  dtypes = {one.dtype.name for one in jax.tree.leaves(kernel.arguments)}
  floor = max(_ERROR_FLOORS[dtype] for dtype in dtypes)
  return dataclasses.replace(
    row,
    kernel_error=kernel_error,
    reference_error=reference_error,
    error_max=max(_REFERENCE_ERRORS_MAX * reference_error, floor),
  )


def _leaves(program: Program, arguments: Any) -> list[np.ndarray]:
  results = jax.jit(program.function)(*arguments)
  return [np.asarray(leaf.astype(jnp.float32), np.float64) for leaf in jax.tree.leaves(results)]


def _largest_error(results: list[np.ndarray], exact: list[np.ndarray]) -> float:
  errors = [
    np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    for ours, theirs in zip(results, exact, strict=True)
  ]
  # Other than the built-in function, this does not pass over a NaN.
  return float(np.max(errors))
