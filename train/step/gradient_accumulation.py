"""Gradient accumulation: a device's examples in parts, one after the other, and the sums over them.

A gradient function has the signature `GradientFunction` whatever it does inside; `accumulate` makes
one that runs another over the parts of its examples.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.step.sharding.mesh import DATA_AXES

GradientFunction = Callable[[Any, Any, Any, Float[Array, ""]], Any]
"""(parameters, batch, keys, share) -> ((loss, hits), gradients): sums over the given examples.

share is 1 / the number of examples in the global batch, by which each example's loss is multiplied;
all results differ between devices."""


def split_in_runs(examples: Any, parts: int) -> Any:
  """Returns arrays [n, ...] as [parts, n / parts, ...]: a reshape, which moves nothing."""
  return jax.tree.map(
    lambda x: jnp.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:])), examples
  )


def accumulate(
  gradient_function: GradientFunction,
  parts: int,
  *,
  split: Callable[[Any, int], Any] = split_in_runs,
) -> GradientFunction:
  """Returns a gradient function that adds up another one's results over parts of the examples.

  Args:
    gradient_function: is called once for each part, in a loop that is compiled once.
    parts: number of parts, a divisor of the number of examples; 1 needs no loop.
    split: (arrays [n, ...], parts) -> arrays [parts, n / parts, ...].
  """
  if parts == 1:
    return gradient_function

  def accumulated(parameters, batch, keys, share):
    def add_part(sums, part):
      return jax.tree.map(jnp.add, sums, gradient_function(parameters, *part, share)), None

    # From zeros, since a first part outside of the loop would be compiled a second time.
    zeros = jax.tree.map(
      lambda x: jax.lax.pcast(jnp.zeros(x.shape, x.dtype), DATA_AXES, to="varying"),
      ((share, share), parameters),
    )
    sums, _ = jax.lax.scan(add_part, zeros, split((batch, keys), parts))
    return sums

  return accumulated
