"""The parameters that fine-tuning starts from: trained ones with a new classifier."""

from typing import Any

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from nfnet.model import CLASSIFIER
from nfnet.weights.load import load_weights
from train.config.experiment import Experiment
from train.config.json_conversion import from_json
from train.step.model import make_model


def with_new_classifier(experiment: Experiment) -> dict[str, Any]:
  """Returns the parameters in `experiment.initial_weights` with a newly drawn classifier.

  Args:
    experiment: experiment of the fine-tuning run, which names the file or run to start from.

  Raises:
    UserError: `initial_weights` is not set, or the parameters there are of another variant or were
      trained with another activation or other numerics.
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
  # Only checkpoints of this project say with which formulas they were trained.
  if trained.metadata is not None:
    model = from_json(trained.metadata["experiment"]).model
    for field in ("activation", "numerics"):
      before, now = getattr(model, field), getattr(experiment.model, field)
      if before != now:
        raise UserError(
          f"initial_weights={experiment.initial_weights!r} were trained with "
          f"--config.model.{field}={before}, not {now}"
        )
  return {**trained.parameters, CLASSIFIER: fresh[CLASSIFIER]}
