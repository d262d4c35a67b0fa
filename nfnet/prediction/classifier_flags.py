"""Defines the flags that say which weights a command loads, and loads them."""

import dataclasses
import typing

from absl import flags

from nfnet.activations import ACTIVATIONS, Numerics
from nfnet.errors import UserError
from nfnet.images.resizing import EvaluationResize
from nfnet.inference import Classifier, load_classifier
from nfnet.system.paths import define_path
from nfnet.variants import PIXELS_MAX, get_variant
from nfnet.weights.class_names import read_names_file


def define_classifier_flags() -> None:
  """Defines the flags."""
  define_path(
    "weights",
    None,
    "Haiku file, safetensors or checkpoint.",
    use="read",
    required=True,
    buckets=True,
  )
  flags.DEFINE_string("variant", None, "Variant that the weights must have; any if not given.")
  define_path(
    "class_names_file",
    None,
    "Text file that names the classes in the order of the classifier, one per line.",
    use="read",
  )
  flags.DEFINE_integer(
    "pixels", None, "Side that image files are resized to.", lower_bound=1, upper_bound=PIXELS_MAX
  )
  flags.DEFINE_enum(
    "resize",
    None,
    typing.get_args(EvaluationResize),
    "How image files are resized. Default: as the checkpoint was evaluated, or squash.",
  )
  flags.DEFINE_enum(
    "activation", None, ACTIVATIONS, "Default: the checkpoint's, or gelu, as the numerics have it."
  )
  flags.DEFINE_enum(
    "numerics",
    None,
    typing.get_args(Numerics),
    "Default: the checkpoint's, or released. timm is for weights that were trained in timm.",
  )


def check_variant_flag() -> None:
  """Refuses a variant that does not exist.

  Raises:
    UserError: there is no such variant.
  """
  try:
    if flags.FLAGS.variant is not None:
      get_variant(flags.FLAGS.variant)
  except ValueError as error:
    raise UserError(f"--variant: {error}") from error


def classifier_of_flags() -> Classifier:
  """Loads the network that the flags describe.

  Raises:
    UserError: the weights cannot be read or do not fit the other flags.
  """
  arguments = flags.FLAGS
  classifier = load_classifier(
    arguments.weights,
    variant=arguments.variant,
    activation=arguments.activation,
    numerics=arguments.numerics,
    pixels=arguments.pixels,
    resize=arguments.resize,
  )
  if arguments.class_names_file:
    return _with_names(classifier, arguments.class_names_file, arguments.weights)
  return classifier


def _with_names(classifier: Classifier, path: str, weights: str) -> Classifier:
  if classifier.class_names is not None:
    raise UserError(f"--class_names_file={path}: weights {weights!r} name their classes themselves")
  names = read_names_file(path, classifier.model.num_classes)
  return dataclasses.replace(classifier, class_names=names)
