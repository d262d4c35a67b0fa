"""Decides whether a run may resume with a given experiment.

Only fields that do not change the result of the run may differ:
`train.config.experiment.CHANGEABLE_ON_RESUME` lists them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from nfnet.errors import UserError
from train.config.experiment import CHANGEABLE_ON_RESUME, Experiment
from train.config.field_names import field_values
from train.config.json_conversion import from_json
from train.config.overrides import as_argument


def check_resumable(
  saved_metadata: Mapping[str, Any],
  experiment: Experiment,
  class_names: Sequence[str] | None = None,
) -> None:
  """Raises UserError if a run would continue as another experiment.

  Args:
    saved_metadata: metadata of a checkpoint; its "experiment" is in the form that `to_json`
      returns.
    experiment: experiment that the user asks for now.
    class_names: names of the data set's classes now; None compares none.

  Raises:
    UserError: fields outside `CHANGEABLE_ON_RESUME` differ; the message names them, both values and
      the way out. Or the data set's classes are not those of the checkpoint, in the same order.
  """
  saved = field_values(from_json(saved_metadata.get("experiment")))
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
  saved_names = saved_metadata.get("class_names")
  if class_names is None or saved_names is None or saved_names == list(class_names):
    return
  if not isinstance(saved_names, list):
    raise UserError("the saved names of the classes are damaged: they are not a list")
  place = next(
    (i for i, (a, b) in enumerate(zip(saved_names, class_names, strict=False)) if a != b),
    min(len(saved_names), len(class_names)),
  )
  was, now = ((*names, "missing")[place] for names in (saved_names, class_names))
  raise UserError(
    f"the classes of data set {experiment.data.path!r} are not those that the workdir's network "
    f"has learned: class {place} was {ascii(was)[:40]} and is now {ascii(now)[:40]}. "
    "Resume it with the same data set, or start in a new --workdir"
  )
