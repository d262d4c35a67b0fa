"""Runs with known laws."""

import numpy as np

from train.scaling.fits import CostLaw, JointLaw, Points

# Terms of 0.6 to 0.19 and of 0.76 to 0.27 nats over these sizes and epochs, like paper A's.
JOINT = JointLaw(
  irreducible_loss=1.9,
  size_coefficient=6000.0,
  size_exponent=0.5,
  epochs_coefficient=0.5,
  epochs_exponent=0.3,
  huber_scale=0.0,
)
COST = CostLaw(coefficient=1e-5, exponent=1.0)
SIZES = np.geomspace(1e8, 1e9, 6)
EPOCHS = np.array([0.25, 0.5, 1, 2, 4, 8])


def joint_points(*, noise=0.0, seed=0, sizes=SIZES, epochs=EPOCHS, law=JOINT, cost=COST):
  """Each size for each number of epochs; losses are off by normal factors."""
  parameters, passes = (grid.ravel() for grid in np.meshgrid(sizes, epochs, indexing="ij"))
  factors = np.exp(noise * np.random.default_rng(seed).normal(size=len(parameters)))
  return Points(
    names=np.array([f"{size:.3g}" for size in parameters]),
    parameters=parameters,
    epochs=passes,
    compute=cost.coefficient * parameters**cost.exponent * passes,
    loss=law.loss(parameters, passes) * factors,
  )


def with_loss(points, run, factor):
  """One of the runs `factor` times as bad."""
  loss = points.loss.copy()
  loss[run] *= factor
  return Points(
    names=points.names,
    parameters=points.parameters,
    epochs=points.epochs,
    compute=points.compute,
    loss=loss,
  )
