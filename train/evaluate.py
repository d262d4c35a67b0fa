"""Evaluates a trained network on held-out images.

    python -m train.evaluate --weights=F0.safetensors --data=DATA [--class_names_file=NAMES.txt]
    python -m train.evaluate --workdir=DIR [--pixels=256,320] [--json=OUT] [--config.FIELD=VALUE]
    python -m train.evaluate --weights=FILE --config=FILE.py --config.data.path=DATA

The first command scores weights of any kind (a haiku file, safetensors in timm's layout, a workdir
or checkpoint) on a data set that `train.prepare_data` has written. It recognizes the network and
takes the resolution and the way of resizing that belong to it: a checkpoint's own, or for other
weights the variant's test resolution and paper B's center crop. The classes of the data set are
matched with the network's by name. Released weights do not name their classes; these are ImageNet's
in the order of their WordNet ids, so a data set with the 1,000 ids as names is matched by sorting.
For all others, --class_names_file names the classes in the order of the classifier, one per line.

The second command evaluates the newest checkpoint of a workdir, or the checkpoint in the given
folder, at one or more resolutions: the moving average, where one was kept, and the parameters
themselves. The third one evaluates weights as a configuration says.

All print loss, top-1, top-5, the calibration error, the means over the classes of precision, recall
(top-1 of a class) and F1, the classes with the lowest accuracy, and the classes that are confused
most often. --confusion_csv and --confusion_plot write the confusion matrix of the best network.
--config.data.path=DIR evaluates on another data set, --config.data.evaluation_split=NAME on another
split. Images are resized to `data.evaluation_resize_margin` pixels more than the crop, which is
taken from the center: both sides or the shorter one, as `data.evaluation_resize` says.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from absl import flags

from nfnet.command_line import run_main
from nfnet.errors import UserError, format_count
from nfnet.system.paths import define_path
from train.config.files import load_experiment
from train.config.overrides import as_argument, parse_arguments
from train.report.confusion import matrix_rows, most_confused
from train.report.output import print_and_write, save_figure, write_csv, write_json
from train.report.table import format_table
from train.run import processes
from train.run.evaluation import (
  Evaluated,
  Evaluation,
  evaluate_checkpoint,
  evaluate_on,
  evaluate_weights,
)
from train.step.scores import CONFUSION_CLASSES_MAX

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_WORKDIR = define_path(
  "workdir", None, "A run's workdir, or one checkpoint's folder.", use="read", buckets=True
)
_WEIGHTS = define_path(
  "weights",
  None,
  "A haiku file, safetensors in timm's layout, or a checkpoint.",
  use="read",
  buckets=True,
)
_DATA = define_path(
  "data", None, "Folder that train.prepare_data has written.", use="read", buckets=True
)
_CLASS_NAMES_FILE = define_path(
  "class_names_file",
  None,
  "Text file that names the classes of --weights in their order, one per line.",
  use="read",
)
_CONFIG = define_path(
  "config",
  None,
  "Python file, or a name such as imagenet, that says how --weights are evaluated.",
  use="read",
)
_PIXELS = flags.DEFINE_list("pixels", [], "Sides of the images; default: the network's own.")
_JSON = define_path(
  "json", None, "File to write all scores to, those of each class too.", use="write file"
)
_CONFUSION_CSV = define_path(
  "confusion_csv", None, "CSV file to write the confusion matrix to.", use="write file"
)
_CONFUSION_PLOT = define_path(
  "confusion_plot",
  None,
  "PNG file to draw the confusion matrix in.",
  use="write file",
  suffix=".png",
)
_WORST_CLASSES = flags.DEFINE_integer(
  "worst_classes", 5, "Number of classes, and of confusions, to show.", lower_bound=0
)


def as_json(evaluated: Evaluated) -> dict[str, Any]:
  """Returns the scores of all evaluations and of each class in them, for a JSON file."""
  return {
    "classes_matched": evaluated.matching,
    "evaluations": [
      {
        "network": evaluation.network,
        "pixels": evaluation.pixels,
        **evaluation.scores.scalars(),
        "classes": [
          {
            "name": name,
            "examples": int(scores.class_examples[index]),
            **{
              score: None if math.isnan(values[index]) else float(values[index])
              for score, values in (
                ("top1", scores.class_top1),
                ("precision", scores.class_precision),
                ("recall", scores.class_top1),
                ("f1", scores.class_f1),
              )
            },
          }
          for index, name in enumerate(evaluated.class_names)
        ],
      }
      for evaluation in evaluated.evaluations
      for scores in (evaluation.scores,)
    ],
  }


def best_evaluation(evaluations: Sequence[Evaluation]) -> Evaluation:
  """Returns the evaluation with the largest top-1, the first of several."""
  return max(evaluations, key=lambda evaluation: evaluation.scores.top1)


def as_text(evaluated: Evaluated, worst_classes: int) -> str:
  """Formats the evaluations, and what the best of them recognizes worst, as tables."""
  rows = [
    (
      evaluation.network,
      str(evaluation.pixels),
      f"{scores.examples:.0f}",
      f"{scores.loss:.4f}",
      f"{scores.top1:.2%}",
      f"{scores.top5:.2%}",
      f"{scores.calibration_error:.2%}",
      f"{scores.macro_precision:.2%}",
      f"{scores.class_mean_top1:.2%}",
      f"{scores.macro_f1:.2%}",
    )
    for evaluation in evaluated.evaluations
    for scores in (evaluation.scores,)
  ]
  header = ("network", "px", "images", "loss", "top-1", "top-5", "calibration")
  header = (*header, "precision", "recall", "F1")
  best = best_evaluation(evaluated.evaluations)
  with_images = int((best.scores.class_examples > 0).sum())
  parts = [
    f"{format_table(rows, header)}\n"
    f"precision, recall and F1: means over {format_count(with_images, 'class')} with images "
    f"(macro); classes matched {evaluated.matching}",
    _worst_classes(best, evaluated.class_names, worst_classes),
    _confusions(best, evaluated.class_names, worst_classes),
  ]
  return "\n\n".join(filter(None, parts))


def _worst_classes(best: Evaluation, class_names: Sequence[str], count: int) -> str:
  scores = best.scores
  worst = [
    i for i in scores.class_top1.argsort(kind="stable") if not math.isnan(scores.class_top1[i])
  ][:count]
  if not worst:
    return ""
  rows = [
    (
      class_names[i],
      f"{scores.class_examples[i]:.0f}",
      f"{scores.class_precision[i]:.2%}",
      f"{scores.class_top1[i]:.2%}",
      f"{scores.class_f1[i]:.2%}",
    )
    for i in worst
  ]
  title = f"lowest accuracy ({best.network}, {best.pixels} px)"
  return format_table(rows, (title, "images", "precision", "recall", "F1"))


def _confusions(best: Evaluation, class_names: Sequence[str], count: int) -> str:
  confusion = best.scores.confusion
  if confusion is None:
    return ""
  rows = [
    (
      class_names[one.true_class],
      class_names[one.predicted_class],
      str(one.images),
      f"{one.images / confusion[one.true_class].sum():.2%}",
    )
    for one in most_confused(confusion, count)
  ]
  if not rows:
    return ""
  title = f"most confused ({best.network}, {best.pixels} px)"
  return format_table(rows, (title, "taken for", "images", "of the class"))


def _draw(best: Evaluation, class_names: Sequence[str]) -> "Figure | None":
  from train.report.confusion_plot import draw_confusion

  title = f"the {best.network} at {best.pixels} px, top-1 {best.scores.top1:.2%}"
  return draw_confusion(best.scores.confusion, class_names, title)


def _check_confusion_is_counted(best: Evaluation) -> None:
  if best.scores.confusion is None and (_CONFUSION_CSV.value or _CONFUSION_PLOT.value):
    raise UserError(
      f"{format_count(len(best.scores.class_examples), 'class')}: a confusion matrix is counted of "
      f"at most {CONFUSION_CLASSES_MAX}; leave out --confusion_csv and --confusion_plot"
    )


def _parse_pixels(texts: Sequence[str]) -> list[int]:
  try:
    return [int(text) for text in texts]
  except ValueError as error:
    raise UserError(
      f"--pixels={','.join(texts)}: write numbers with commas between them, like 256,320"
    ) from error


def _evaluation(overrides: Sequence[str]) -> Callable[[], Evaluated]:
  """Returns the function that evaluates what the flags name."""
  pixels = _parse_pixels(_PIXELS.value)
  workdir, weights, data, config = _WORKDIR.value, _WEIGHTS.value, _DATA.value, _CONFIG.value
  names_file = _CLASS_NAMES_FILE.value
  if (workdir is None) == (weights is None):
    raise UserError(
      "give either --workdir (a run's workdir or one checkpoint's folder) or --weights and --data"
    )
  if workdir is not None:
    if config is not None:
      raise UserError("--config belongs to --weights; a --workdir has its own configuration")
    if names_file is not None:
      raise UserError("--class_names_file belongs to --weights; a --workdir names its classes")
    changes = [as_argument("data.path", data)] if data is not None else []
    return functools.partial(evaluate_checkpoint, workdir, [*changes, *overrides], pixels=pixels)
  if config is None:
    if data is None:
      raise UserError(f"--weights={weights}: give --data=DIR, or a --config that names a data set")
    return functools.partial(
      evaluate_on, weights, data, overrides, pixels=pixels, class_names_file=names_file
    )
  if data is not None:
    overrides = [as_argument("data.path", data), *overrides]
  experiment = load_experiment(config, overrides)
  return functools.partial(
    evaluate_weights, weights, experiment, pixels=pixels, class_names_file=names_file
  )


def main(overrides: list[str]) -> None:
  """Evaluates the checkpoint that the flags name, and prints the tables."""
  evaluate = _evaluation(overrides[1:])
  with processes.joined():
    evaluated = evaluate()
    # Before this process waits for the others, of which one may have fallen silent.
    if processes.is_first():
      best, names = best_evaluation(evaluated.evaluations), evaluated.class_names
      confusion = best.scores.confusion
      writes = [lambda: write_json("json", _JSON.value, as_json(evaluated))]
      if confusion is not None:
        writes += [
          lambda: write_csv("confusion_csv", _CONFUSION_CSV.value, matrix_rows(confusion, names)),
          lambda: save_figure(
            "confusion_plot", _CONFUSION_PLOT.value, functools.partial(_draw, best, names)
          ),
        ]
      else:
        writes.append(lambda: _check_confusion_is_counted(best))
      print_and_write(as_text(evaluated, _WORST_CLASSES.value), *writes)


if __name__ == "__main__":
  run_main(main, flags_parser=parse_arguments)
