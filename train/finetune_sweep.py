r"""Fine-tunes the networks that a sweep has pre-trained, with several seeds each, and probes them.

    python -m train.finetune_sweep --folder=SWEEP --config=train/configs/demo_finetune.py \
        --config.data.path=DATA

It takes the best trial of each variant and epoch budget (`--all_trials` takes all) and writes
SWEEP/finetuned.csv; `train.sweep.finetuning` describes its columns. `train.scaling_law` plots this
table and `train.choose_checkpoint` learns from it. An interrupted command continues when it is
started again, and then includes trials that the sweep has finished since.
"""

from absl import flags

from nfnet.command_line import run_main
from nfnet.system.paths import define_path
from train.config.overrides import parse_arguments
from train.run.compilation_cache import use_compilation_cache
from train.run.records.loggers import define_loggers, load_loggers
from train.sweep.finetuning import finetune_sweep
from train.sweep.folder import SweepFolder


def main(arguments: list[str]) -> None:
  """Fine-tunes the trials and writes the table."""
  values = flags.FLAGS
  folder = SweepFolder(values.folder)
  folder.check()
  loggers = load_loggers(values.logger)
  use_compilation_cache()
  path = finetune_sweep(
    folder,
    values.config,
    arguments[1:],
    seeds=values.seeds,
    all_trials=values.all_trials,
    probe_images_max=values.probe_images_max,
    loggers=loggers,
  )
  print(f"results: {path}")


def _define_flags() -> None:
  define_path("folder", None, "Folder of the sweep.", use="write folder", required=True)
  define_path(
    "config",
    None,
    "Python file of the fine-tuning, or a name such as imagenet_finetune.",
    use="read",
    required=True,
  )
  flags.DEFINE_integer("seeds", 3, "Runs of each trial.", lower_bound=1)
  flags.DEFINE_bool("all_trials", False, "All learning rates, not only the best of each setting.")
  flags.DEFINE_integer(
    "probe_images_max", 20_000, "Training images to probe at most.", lower_bound=2
  )
  define_loggers()


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments, prints_result=False)
