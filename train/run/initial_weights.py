"""The parameters that fine-tuning starts from: trained ones with a new classifier."""

from typing import Any

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from nfnet.model import CLASSIFIER
from nfnet.weights.load import load_weights
from train.config.experiment import Experiment
from train.step.model import make_model


def with_new_classifier(experiment: Experiment) -> dict[str, Any]:
  """Returns the parameters in `experiment.initial_weights` with a newly drawn classifier.

  Args:
    experiment: experiment of the fine-tuning run, which names the file or run to start from.

  Raises:
    UserError: `initial_weights` is not set, or the parameters there are of another variant or were
      trained with another activation.
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
  # Only checkpoints of this project name their activation.
  if trained.metadata is not None:
    activation = trained.metadata["experiment"]["model"]["activation"]
    if activation != experiment.model.activation:
      raise UserError(
        f"initial_weights={experiment.initial_weights!r} were trained with "
        f"--config.model.activation={activation}, not {experiment.model.activation}"
      )
  return {**trained.parameters, CLASSIFIER: fresh[CLASSIFIER]}
