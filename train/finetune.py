"""Fine-tunes trained parameters with a new classifier, on other images, at another resolution.

    python -m train.finetune --config=FILE --workdir=DIR --config.initial_weights=PATH

PATH is a workdir or checkpoint of this project, a released haiku file, or timm's safetensors.
Started again with the same arguments, it resumes from the newest checkpoint in the workdir.
"""

from absl import flags

from nfnet.command_line import run_main
from nfnet.system.paths import define_path
from train.config.accepted_changes import define_accept_changes
from train.config.files import load_experiment
from train.config.overrides import parse_arguments
from train.run import processes
from train.run.compilation_cache import use_compilation_cache
from train.run.initial_weights import with_new_classifier
from train.run.loop import train
from train.run.records.goodput import process_began_seconds
from train.run.records.loggers import define_loggers, load_loggers

_CONFIG = define_path(
  "config",
  None,
  "Python file of the experiment, or a name such as imagenet; --help_config lists its fields.",
  use="read",
)
_WORKDIR = define_path(
  "workdir", None, "Folder for checkpoints, metrics and plots.", use="write folder", buckets=True
)
_ACCEPT_CHANGES = define_accept_changes()
_LOGGERS = define_loggers()


def main(overrides: list[str]) -> None:
  """Loads the experiment and its initial parameters and trains."""
  experiment = load_experiment(_CONFIG.value, overrides[1:])
  loggers = load_loggers(_LOGGERS.value)
  use_compilation_cache()
  with processes.joined():
    train(
      experiment,
      _WORKDIR.value,
      initial=lambda: with_new_classifier(experiment),
      began_seconds=process_began_seconds(),
      accepted_changes=_ACCEPT_CHANGES.value,
      loggers=loggers,
    )


if __name__ == "__main__":
  flags.mark_flags_as_required([_CONFIG, _WORKDIR])
  run_main(main, flags_parser=parse_arguments, prints_result=False)
