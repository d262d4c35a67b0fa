"""Gradients of the loss, segment by segment from the last to the first.

They are those of `jax.grad` of the whole network. Taken one by one, the sum of a segment's
gradients over devices can begin while earlier segments compute theirs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, Key

from nfnet.model import NFNet, apply_segment, segments
from train.step.sharding.rings import Rings, receive, send, tied
from train.step.sharding.standardized_filters import differentiated, with_differentiated


def backpropagate(
  model: NFNet,
  parameters: Any,
  images: Float[Array, "n height width 3"],
  keys: Key[Array, " n"],
  losses: Callable[[Float[Array, "n classes"]], tuple[Float[Array, ""], Float[Array, ""]]],
  start_sums: Callable[[Any], Rings],
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], Any, Rings]:
  """Returns what `losses` returns, the gradients of its first value, and sums of them on their way.

  Args:
    model: the network.
    parameters: whole parameters, in the arrangement in which the blocks run.
    images: normalized images.
    keys: one key for each example.
    losses: function from logits to the loss and to another scalar, which has no derivative.
    start_sums: function that starts sums of a segment's gradients over the shards. They make one
      hop while each earlier segment computes its own gradients.

  Returns:
    The two values of `losses`; gradients of `differentiated(parameters)`; the rings.
  """
  stem, *blocks, head = segments(model, images.shape[0], keys=keys)

  def bound(segment):
    """Returns the segment as a function of what is differentiated, and its values."""
    own = segment.select(parameters)

    def run(arrays, x):
      return apply_segment(model, segment, with_differentiated(own, arrays), x)

    return run, differentiated(own)

  run_stem, arrays = bound(stem)
  # Nothing needs the derivative with respect to images.
  x, pull_back = jax.vjp(lambda arrays: run_stem(arrays, images), arrays)
  pull_backs = [pull_back]
  for block in blocks:
    x, pull_back = jax.vjp(*bound(block), x)
    pull_backs.append(pull_back)
  run_head, arrays = bound(head)
  of_head = jax.value_and_grad(
    lambda arrays, x: losses(run_head(arrays, x)), argnums=(0, 1), has_aux=True
  )
  values, (gradients, *cotangent) = of_head(arrays, x)
  rings = start_sums(gradients)
  for pull_back in reversed(pull_backs):
    with jax.named_scope("gradient_sum"):
      arrived = send(rings)
    of_segment, *cotangent = pull_back(*cotangent)
    with jax.named_scope("gradient_sum"):
      cotangent, arrived = tied(cotangent, arrived)
      rings = receive(rings, arrived) + start_sums(of_segment)
    gradients = _merged(gradients, of_segment)
  return values, gradients, rings


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
  """Returns nested dictionaries with the entries of two that have no leaf in common."""
  return {
    **first,
    **{key: _merged(first[key], value) if key in first else value for key, value in second.items()},
  }
