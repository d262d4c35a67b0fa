"""Evaluates a trained network on held-out images.

    python -m train.evaluate --workdir=DIR [--pixels=256,320] [--json=OUT] [--config.FIELD=VALUE]
    python -m train.evaluate --weights=FILE --config=FILE.py --config.data.path=DATA

The first command evaluates the newest checkpoint of a workdir, or the checkpoint in the given
folder, at one or more resolutions: the moving average, where one was kept, and the parameters
themselves. The second one evaluates released weights, or timm's, as a configuration says. Both
print loss, top-1, top-5, the mean over the classes of their top-1, the calibration error, and the
classes that are recognized worst. --config.data.path=DIR evaluates on another data set. Images are
resized to `data.evaluation_resize_margin` pixels more than the crop, which is taken from the
center: both sides or the shorter one, as the configuration's `data.evaluation_resize` says.
"""

import math
from collections.abc import Sequence
from typing import Any

from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError
from nfnet.system.paths import define_path
from train.config.files import load_experiment
from train.config.overrides import parse_arguments
from train.report.output import print_and_write, write_json
from train.report.table import format_table
from train.run import processes
from train.run.evaluation import Evaluation, evaluate_checkpoint, evaluate_weights

_WORKDIR = define_path("workdir", None, "A run's workdir, or one checkpoint's folder.", use="read")
_WEIGHTS = define_path(
  "weights", None, "A haiku file, or safetensors in timm's layout.", use="read"
)
_CONFIG = define_path(
  "config",
  None,
  "Python file, or a name such as imagenet, that says how --weights are evaluated.",
  use="read",
)
_PIXELS = flags.DEFINE_list("pixels", [], "Sides of the images; default: the experiment's own.")
_JSON = define_path(
  "json", None, "File to write all scores to, those of each class too.", use="write file"
)
_WORST_CLASSES = flags.DEFINE_integer(
  "worst_classes", 5, "Number of classes to show.", lower_bound=0
)


def as_json(evaluations: Sequence[Evaluation], class_names: Sequence[str]) -> dict[str, Any]:
  """Returns the scores of all evaluations and of each class in them, for a JSON file."""
  return {
    "evaluations": [
      {
        "network": evaluation.network,
        "pixels": evaluation.pixels,
        **evaluation.scores.scalars(),
        "classes": [
          {"name": name, "examples": int(examples), "top1": None if math.isnan(top1) else top1}
          for name, examples, top1 in zip(
            class_names,
            evaluation.scores.class_examples.tolist(),
            evaluation.scores.class_top1.tolist(),
            strict=True,
          )
        ],
      }
      for evaluation in evaluations
    ]
  }


def as_text(
  evaluations: Sequence[Evaluation], class_names: Sequence[str], worst_classes: int
) -> str:
  """Formats the evaluations, and the classes that the best of them recognizes worst, as tables."""
  rows = [
    (
      evaluation.network,
      str(evaluation.pixels),
      f"{scores.examples:.0f}",
      f"{scores.loss:.4f}",
      f"{scores.top1:.2%}",
      f"{scores.top5:.2%}",
      f"{scores.class_mean_top1:.2%}",
      f"{scores.calibration_error:.2%}",
    )
    for evaluation in evaluations
    for scores in (evaluation.scores,)
  ]
  header = ("network", "px", "images", "loss", "top-1", "top-5", "mean over classes", "calibration")
  text = format_table(rows, header)
  best = max(evaluations, key=lambda evaluation: evaluation.scores.top1)
  top1, examples = best.scores.class_top1, best.scores.class_examples
  worst = [i for i in top1.argsort(kind="stable") if not math.isnan(top1[i])][:worst_classes]
  if not worst:
    return text
  classes = [(class_names[i], f"{examples[i]:.0f}", f"{top1[i]:.2%}") for i in worst]
  title = f"recognized worst by the {best.network} at {best.pixels} px"
  return f"{text}\n\n{format_table(classes, (title, 'images', 'top-1'))}"


def _parse_pixels(texts: Sequence[str]) -> list[int]:
  try:
    return [int(text) for text in texts]
  except ValueError as error:
    raise UserError(
      f"--pixels={','.join(texts)}: write numbers with commas between them, like 256,320"
    ) from error


def main(overrides: list[str]) -> None:
  """Evaluates the checkpoint that the flags name, and prints the tables."""
  if (_WORKDIR.value is None) == (_WEIGHTS.value is None):
    raise UserError(
      "give either --workdir (a run's workdir or one checkpoint's folder) or --weights and --config"
    )
  if (_WEIGHTS.value is None) != (_CONFIG.value is None):
    raise UserError("--weights and --config belong together; a --workdir has its own configuration")
  pixels = _parse_pixels(_PIXELS.value)
  with processes.joined():
    if _WORKDIR.value is not None:
      evaluations, class_names = evaluate_checkpoint(_WORKDIR.value, overrides[1:], pixels=pixels)
    else:
      experiment = load_experiment(_CONFIG.value, overrides[1:])
      evaluations, class_names = evaluate_weights(_WEIGHTS.value, experiment, pixels=pixels)
    # Before this process waits for the others, of which one may have fallen silent.
    if processes.is_first():
      print_and_write(
        as_text(evaluations, class_names, _WORST_CLASSES.value),
        lambda: write_json("json", _JSON.value, as_json(evaluations, class_names)),
      )


if __name__ == "__main__":
  run_main(main, flags_parser=parse_arguments)
