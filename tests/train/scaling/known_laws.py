"""Runs that follow known laws."""

import dataclasses

import numpy as np

from train.published_runs import PAPER_A_NFNETS
from train.scaling.laws.joint_law import CostLaw, JointLaw
from train.scaling.points import Points
from train.scaling.run_table import Run, read_runs

# The terms are 0.6 to 0.19 and 0.76 to 0.27 nats over these sizes and epochs, like paper A's.
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

PAPER_A_FINE_TUNED = [
  run for run in read_runs([PAPER_A_NFNETS]).runs if run.top1_error_percent is not None
]


def joint_points(*, noise=0.0, seed=0, sizes=SIZES, epochs=EPOCHS, law=JOINT, cost=COST):
  """Returns each size for each number of epochs, with losses scattered by normal factors."""
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
  """Returns the points with the loss of one run multiplied by a factor."""
  loss = points.loss.copy()
  loss[run] *= factor
  return dataclasses.replace(points, loss=loss)


def fine_tuned_runs(*, noise=0.0, seed=0, networks=4, loss_exponent=1.5, size_exponent=-0.1):
  """Returns networks of growing size with four budgets each.

  Errors after fine-tuning follow a law of loss and size.
  """
  random = np.random.default_rng(seed)
  runs = []
  for network in range(networks):
    for epochs in (1, 2, 4, 8):
      parameters = 1e6 * 2.0**network
      loss = 3 * parameters**-0.03 * epochs**-0.1 * np.exp(0.05 * random.normal())
      error = 4 * loss**loss_exponent * parameters**size_exponent
      runs.append(
        Run(
          name=f"network {network}",
          parameters=parameters,
          epochs=epochs,
          compute=parameters * epochs,
          loss_nats=loss,
          learning_rate=None,
          top1_error_percent=error * np.exp(noise * random.normal()),
          probe_squared_error=None,
          place="",
        )
      )
  return runs
