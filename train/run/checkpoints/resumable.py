"""Decides whether a run may resume with a given experiment.

Only fields that do not change the result of the run may differ
(`train.config.experiment.CHANGEABLE_ON_RESUME`), and those whose change a person has accepted
(`train.config.accepted_changes`).
"""

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from nfnet.errors import UserError, quoted
from nfnet.weights.class_names import composed
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
  ways = [f"resume it with {back}", "give another --workdir to start anew"]
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
  saved = field_values(from_json(saved_metadata.get("experiment")))
  asked = field_values(experiment)
  return {
    field: (saved[field], asked[field])
    for field in asked
    if field not in CHANGEABLE_ON_RESUME and asked[field] != saved[field]
  }


def check_class_names(
  saved_metadata: Mapping[str, Any], class_names: Sequence[str] | None, path: str
) -> None:
  """Raises UserError unless the data set's classes are those of a checkpoint, in the same order.

  Args:
    saved_metadata: metadata of the checkpoint.
    class_names: names of the data set's classes now; None compares none.
    path: path of the data set, for the message.
  """
  saved_names = saved_metadata.get("class_names")
  if class_names is None or saved_names is None:
    return
  saved_names, class_names = list(map(composed, saved_names)), list(map(composed, class_names))
  if saved_names == class_names:
    return
  place = next(
    (i for i, (a, b) in enumerate(zip(saved_names, class_names, strict=False)) if a != b),
    min(len(saved_names), len(class_names)),
  )
  was, now = ((*names, "missing")[place] for names in (saved_names, class_names))
  raise UserError(
    f"the classes of data set {path!r} are not those that the workdir's network has learned: class "
    f"{place} was {quoted(was)} and is now {quoted(now)}; "
    "resume it with the same data set, or move the workdir away to start anew"
  )
