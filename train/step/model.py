"""The network that an experiment describes."""

from typing import Any

import jax.numpy as jnp

from nfnet.block_arrangement import arrange_blocks
from nfnet.model import NFNet, parameter_shapes
from train.config.experiment import Experiment


def make_model(experiment: Experiment) -> NFNet:
  """Returns the network that an experiment describes; its parameters are separate data.

  Raises:
    ValueError: the experiment names a variant, activation or bottleneck that does not exist.
  """
  model = experiment.model
  return NFNet(
    model.variant,
    experiment.data.num_classes,
    activation=model.activation,
    numerics=model.numerics,
    stochastic_depth_rate=model.stochastic_depth_rate,
    dropout_rate=model.dropout_rate,
    bottleneck=model.bottleneck,
    block_execution=model.block_execution,
    rematerialize=model.rematerialize,
    compute_dtype=jnp.dtype(model.compute_dtype),
    implementation=model.kernels,
  )


def arranged_parameter_shapes(model: NFNet) -> Any:
  """Returns the shapes of the parameters, in the arrangement in which training runs the blocks.

  Returns:
    Nested dictionaries of `jax.ShapeDtypeStruct`; blocks that run as one loop are stacked.
  """
  return arrange_blocks(parameter_shapes(model), model.block_keys)
