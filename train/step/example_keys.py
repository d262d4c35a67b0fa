"""One random key for each example, from which everything random in a step is drawn.

`nfnet.model` draws stochastic depth and dropout from the key, and `train.step.mixing` draws MixUp
and CutMix. The key depends only on the seed, the step and the example's position in the global
batch, so results do not depend on the number of devices.
"""

import jax
from jaxtyping import Array, Int, Key


def example_keys(seed: int, step: Int[Array, ""], position: Int[Array, " n"]) -> Key[Array, " n"]:
  """Returns one key for each of a device's examples.

  Args:
    seed: seed of the experiment.
    step: number of steps done before this one.
    position: position of each example in the global batch.
  """
  step_key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(lambda i: jax.random.fold_in(step_key, i))(position)
