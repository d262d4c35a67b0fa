r"""Tells how well a linear classifier on a trained network's features recognizes other images.

    python -m train.probe --weights=PATH --config=train/configs/demo_finetune.py \
        --config.data.path=DATA

The result tells how useful a network is for a data set without fine-tuning it. The probe takes one
pass over the training images, prepared as for evaluation. PATH is anything that `train.finetune`
takes as `initial_weights`. `train.run.linear_probe` describes the classifier.
"""

from absl import flags

from nfnet.command_line import run_main
from nfnet.system.paths import define_path
from train.config.files import load_experiment
from train.config.overrides import as_argument, parse_arguments
from train.run.compilation_cache import use_compilation_cache
from train.run.linear_probe import probe


def main(overrides: list[str]) -> None:
  """Prints the classifier's error."""
  values = flags.FLAGS
  experiment = load_experiment(
    values.config, [*overrides[1:], as_argument("initial_weights", values.weights)]
  )
  use_compilation_cache()
  found = probe(experiment, images_max=values.images_max)
  print(
    f"{values.weights}: a linear classifier on its features is wrong about "
    f"{found.error_percent:.2f} % of {found.images:,} training images, each left out in turn "
    f"(squared error {found.squared_error:.4f}, ridge {found.ridge:g})"
  )


def _define_flags() -> None:
  define_path(
    "config",
    None,
    "Python file of the fine-tuning, or a name such as imagenet_finetune.",
    use="read",
    required=True,
  )
  define_path("weights", None, "Trained network to probe.", use="read", required=True, buckets=True)
  flags.DEFINE_integer("images_max", 20_000, "Training images to use at most.", lower_bound=2)


if __name__ == "__main__":
  _define_flags()
  run_main(main, flags_parser=parse_arguments)
