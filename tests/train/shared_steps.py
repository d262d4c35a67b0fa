"""Lets runs of one process share their steps: tracing is most of what a short run takes."""

import dataclasses

from train.config.experiment import Faults
from train.run import evaluation, loop


def share_steps(patch):
  """Makes the steps of runs that start from now on those of earlier ones, where they are the same.

  Args:
    patch: `pytest.MonkeyPatch` that undoes it.
  """
  made = {}
  make_train_step, make_evaluation_step = loop.make_train_step, loop.make_evaluation_step

  def train_step(experiment, model, optimizer, learning_rate, mesh, **options):
    # What is done about bad steps is no part of a step, but for the bound of the loss.
    faults = Faults(loss_max=experiment.faults.loss_max)
    key = ("train", repr(dataclasses.replace(experiment, faults=faults)), mesh, repr(options))
    if key not in made:
      made[key] = make_train_step(experiment, model, optimizer, learning_rate, mesh, **options)
    return made[key]

  def evaluation_step(model, loss, mesh, **options):
    shape = (repr(model), model.implementation, model.compute_dtype, len(model.runs))
    key = ("evaluation", *shape, loss, mesh, repr(options))
    if key not in made:
      made[key] = make_evaluation_step(model, loss, mesh, **options)
    return made[key]

  patch.setattr(loop, "make_train_step", train_step)
  for module in (loop, evaluation):
    patch.setattr(module, "make_evaluation_step", evaluation_step)
