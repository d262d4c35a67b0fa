r"""The flag that lets a run resume with another learning rate, or another answer to bad steps.

    python -m train.pretrain ... --config.optimizer.peak_learning_rate=0.1 \
        --accept_changes=optimizer.peak_learning_rate

A workdir holds one experiment, so a run refuses to resume as another one. Some fields may be
changed by a person who looks at a run that has diverged. The change is recorded in metrics.jsonl
and in all later checkpoints.
"""

from collections.abc import Sequence

from absl import flags

from nfnet.errors import UserError
from train.config.experiment import ACCEPTABLE_ON_RESUME

FLAG = "accept_changes"


def define_accept_changes() -> flags.FlagHolder[list[str]]:
  """Defines --accept_changes.

  Returns:
    Holder of the names of the fields.
  """
  holder = flags.DEFINE_list(
    "accept_changes", [], "Fields, such as optimizer.peak_learning_rate, to change on resuming."
  )
  flags.register_validator(FLAG, _are_acceptable)
  return holder


def _are_acceptable(fields: Sequence[str]) -> bool:
  """Returns True, or raises UserError if a field may not be changed."""
  for field in fields:
    if field not in ACCEPTABLE_ON_RESUME:
      raise UserError(
        f"--{FLAG}={field}: a run cannot go on with another value of this field; the fields that "
        f"may be changed are {', '.join(sorted(ACCEPTABLE_ON_RESUME))}"
      )
  return True
