"""Decides whether a run may resume with a given experiment.

Only fields that do not change the result of the run may differ
(`train.config.experiment.CHANGEABLE_ON_RESUME`), and those whose change a person has accepted
(`train.config.accepted_changes`).
"""

import shlex
from collections.abc import Collection, Mapping
from typing import Any

from nfnet.errors import UserError
from train.config.experiment import ACCEPTABLE_ON_RESUME, CHANGEABLE_ON_RESUME, Experiment
from train.config.field_names import field_values
from train.config.json_conversion import from_json
from train.config.overrides import as_argument


def check_resumable(
  saved_metadata: Mapping[str, Any], experiment: Experiment, accepted_changes: Collection[str] = ()
) -> None:
  """Raises UserError if a run would continue as another experiment.

  Args:
    saved_metadata: metadata of a checkpoint; its "experiment" is in the form that `to_json`
      returns.
    experiment: experiment that the user asks for now.
    accepted_changes: fields of `ACCEPTABLE_ON_RESUME` that may differ this time.

  Raises:
    UserError: other fields differ; the message names them, both values and the way out.
  """
  changed = {
    field: values
    for field, values in changed_fields(saved_metadata, experiment).items()
    if field not in accepted_changes
  }
  if not changed:
    return
  differences = "; ".join(
    f"{field} was {saved!r} and is now {asked!r}" for field, (saved, asked) in changed.items()
  )
  back = shlex.join(as_argument(field, saved) for field, (saved, _) in changed.items())
  ways = [f"resume it with {back}", "move the workdir away to start anew"]
  if changed.keys() <= ACCEPTABLE_ON_RESUME:
    ways.append(f"change it for the rest of the run with --accept_changes={','.join(changed)}")
  raise UserError(f"the workdir holds another experiment: {differences}; {', or '.join(ways)}")


def changed_fields(
  saved_metadata: Mapping[str, Any], experiment: Experiment
) -> dict[str, tuple[Any, Any]]:
  """Returns the saved and the present value of each field that makes another experiment.

  Args:
    saved_metadata: metadata of a checkpoint.
    experiment: experiment that the user asks for now.
  """
  saved = field_values(from_json(saved_metadata["experiment"]))
  asked = field_values(experiment)
  return {
    field: (saved[field], asked[field])
    for field in asked
    if field not in CHANGEABLE_ON_RESUME and asked[field] != saved[field]
  }
