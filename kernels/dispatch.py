"""Chooses the implementation of each op; no other module does.

Every op has a reference in plain JAX, which is its specification, and may have a Pallas TPU kernel.
The kernel runs if it was requested, if the program is lowered for a TPU, and if it covers the
shapes. A kernel that was requested but does not cover the shapes is replaced by the reference; this
is logged once for each op and reason, and counted, so that it cannot go unnoticed. No kernel covers
a symbolic dimension, such as the batch of a program that `jax.export` makes for any batch: how the
work is cut into tiles depends on the number.
"""

import collections
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from absl import logging

from kernels.layout import has_symbolic_dimension

Implementation = Literal["reference", "pallas"]

fallback_counts: collections.Counter[tuple[str, str]] = collections.Counter()
"""Number of calls traced with the reference although a kernel was requested, by (op, reason)."""


def dispatch(
  op: str,
  implementation: Implementation,
  *,
  reference: Callable[..., Any],
  kernel: Callable[..., Any] | None,
  arguments: tuple[Any, ...],
) -> Any:
  """Calls `reference` or `kernel` with `arguments`.

  Args:
    op: name of the op in logs and counts.
    implementation: implementation that the caller requests.
    reference: implementation in plain JAX.
    kernel: implementation for TPU, which raises NotImplementedError with a reason if it does not
      cover the arguments; None if no kernel has been written.
    arguments: positional arguments of both; they must be JAX types.

  Returns:
    The result of the implementation that was chosen.

  Raises:
    ValueError: `implementation` is neither "reference" nor "pallas".
  """
  if implementation == "reference":
    return reference(*arguments)
  if implementation != "pallas":
    raise ValueError(f'{implementation=}: must be "reference" or "pallas"')
  try:
    if kernel is None:
      raise NotImplementedError("no kernel has been written")
    if any(has_symbolic_dimension(np.shape(leaf)) for leaf in jax.tree.leaves(arguments)):
      raise NotImplementedError("a symbolic dimension, which cannot be cut into tiles")
    jax.eval_shape(kernel, *arguments)
  except NotImplementedError as reason:
    _fall_back(op, str(reason))
    return reference(*arguments)
  return jax.lax.platform_dependent(*arguments, tpu=kernel, default=reference)


def _fall_back(op: str, reason: str) -> None:
  fallback_counts[op, reason] += 1
  if fallback_counts[op, reason] == 1:
    logging.warning("%s runs its reference instead of a Pallas kernel: %s", op, reason)
