"""Trained parameters as the start of another run."""

from typing import Any

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from nfnet.weights.load import load_weights
from train.config.experiment import Experiment
from train.step.train_step import make_model


def with_new_classifier(experiment: Experiment) -> dict[str, Any]:
  """The parameters in `experiment.initial_weights`, their classifier drawn anew.

  Raises:
    UserError: there are none, or they are of another variant or were trained with another
      activation.
  """
  if experiment.initial_weights is None:
    raise UserError(
      "initial_weights is not set: give --config.initial_weights=PATH, or run train.pretrain"
    )
  fresh = initial_parameters(make_model(experiment), experiment.seed)
  trained = load_weights(
    experiment.initial_weights,
    experiment.model.variant,
    bottleneck=experiment.model.bottleneck,
  )
  # Files of other projects do not say.
  if trained.metadata is not None:
    activation = trained.metadata["experiment"]["model"]["activation"]
    if activation != experiment.model.activation:
      raise UserError(
        f"initial_weights={experiment.initial_weights!r} were trained with "
        f"--config.model.activation={activation}, not {experiment.model.activation}"
      )
  return {**trained.parameters, "classifier": fresh["classifier"]}
