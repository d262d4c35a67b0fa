"""Gradient accumulation: computes a device's gradients part by part and adds them up.

Every gradient function has the signature `GradientFunction`, whatever it does inside. `accumulate`
returns one that divides the examples into parts and runs another one on each part in turn.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from train.step.sharding.mesh import DATA_AXES
from train.step.sharding.standardized_filters import differentiated

GradientFunction = Callable[[Any, Any, Any, Float[Array, ""]], Any]
"""(parameters, batch, keys, share) -> ((loss, hits), gradients): sums over the given examples. The
gradients are those of `train.step.sharding.standardized_filters.differentiated(parameters)`.

share is 1 / the number of examples in the global batch, by which each example's loss is multiplied;
all results differ between devices."""


def split_in_runs(examples: Any, parts: int) -> Any:
  """Reshapes arrays [n, ...] to [parts, n / parts, ...], which moves no data."""
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

  Sums are float32, and rounded once to the dtype of a part's gradient.

  Args:
    gradient_function: gradient function of one part, called in a loop that is compiled once.
    parts: number of parts, a divisor of the number of examples; 1 needs no loop.
    split: function (arrays [n, ...], parts) -> arrays [parts, n / parts, ...].
  """
  if parts == 1:
    return gradient_function

  def accumulated(parameters, batch, keys, share):
    def add_part(sums, part):
      results = gradient_function(parameters, *part, share)
      return jax.tree.map(lambda total, x: total + x.astype(total.dtype), sums, results), None

    of_part = (share, share), differentiated(parameters)
    # Starts from zeros: running the first part outside the loop would compile it a second time.
    zeros = jax.tree.map(
      lambda x: jax.lax.pcast(jnp.zeros(x.shape, jnp.float32), DATA_AXES, to="varying"), of_part
    )
    sums, _ = jax.lax.scan(add_part, zeros, split((batch, keys), parts))
    return jax.tree.map(lambda x, like: x.astype(like.dtype), sums, of_part)

  return accumulated
