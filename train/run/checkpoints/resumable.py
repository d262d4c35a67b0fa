"""Decides whether a run may resume with a given experiment.

Only fields that do not change the result of the run may differ:
`train.config.experiment.CHANGEABLE_ON_RESUME` lists them.
"""

from collections.abc import Mapping
from typing import Any

from nfnet.errors import UserError
from train.config.experiment import CHANGEABLE_ON_RESUME, Experiment
from train.config.field_names import field_values
from train.config.json_conversion import from_json
from train.config.overrides import as_argument


def check_resumable(saved_metadata: Mapping[str, Any], experiment: Experiment) -> None:
  """Raises UserError if a run would continue as another experiment.

  Args:
    saved_metadata: metadata of a checkpoint; its "experiment" is in the form that `to_json`
      returns.
    experiment: experiment that the user asks for now.

  Raises:
    UserError: fields outside `CHANGEABLE_ON_RESUME` differ; the message names them, both values and
      the way out.
  """
  saved = field_values(from_json(saved_metadata["experiment"]))
  asked = field_values(experiment)
  changed = [
    field for field in asked if field not in CHANGEABLE_ON_RESUME and asked[field] != saved[field]
  ]
  if changed:
    differences = "; ".join(
      f"{field} was {saved[field]!r} and is now {asked[field]!r}" for field in changed
    )
    back = " ".join(as_argument(field, saved[field]) for field in changed)
    raise UserError(
      f"the workdir holds another experiment: {differences}. "
      f"Resume it with {back}, or start in a new --workdir"
    )
