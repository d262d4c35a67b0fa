"""Classifies images with any weights that this project can read.

    python -m nfnet.predict --weights=PATH --variant=F0 a.jpg b.png
    python -m nfnet.predict --weights=PATH --variant=F0 --inputs=x.npy --logits_out=y.npy

The first prints the five likeliest classes of each image. The second takes images that are already
normalized, float32 [images, height, width, 3], and writes float32 [images, classes]. PATH is a
released haiku file, a safetensors file of timm's, or a workdir or checkpoint of this project, which
knows its own variant, activation, resolution and class names.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from nfnet.activations import ACTIVATIONS
from nfnet.command_line import run_main
from nfnet.errors import UserError
from nfnet.model import NFNet, apply
from nfnet.preprocessing import (
  BadImageError,
  decode_image,
  normalize,
  resize_and_center_crop,
)
from nfnet.variants import get_variant
from nfnet.weights.released_weights import load_weights

_TOP = 5
# Paper B's evaluation, for weights that do not say how theirs was.
_RESIZE_MARGIN = 32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
  """A network with its weights, and how images are made ready for it.

  Attributes:
    logits: float32 [n, height, width, 3], normalized -> float32 [n, classes].
    pixels: side of the images.
    resize_margin: pixels that are cut off after the resize.
    class_names: one a class, or None.
    is_multi_label: whether classes are independent of each other, as sigmoid losses make them.
  """

  logits: Callable[[np.ndarray], jax.Array]
  pixels: int
  resize_margin: int
  class_names: Sequence[str] | None
  is_multi_label: bool


def load_classifier(
  path: str,
  *,
  variant: str | None = None,
  activation: str | None = None,
  pixels: int | None = None,
) -> Classifier:
  """Builds the network that fits the weights.

  Args:
    path: see `nfnet.weights.released_weights.load_weights`.
    variant: that the weights must be of; None takes what they are.
    activation: None is a checkpoint's own, or gelu.
    pixels: None is the resolution that a checkpoint was evaluated at, or the variant's own.

  Raises:
    UserError: the weights cannot be read, or do not fit what was asked for.
  """
  weights = load_weights(path, variant)
  metadata = weights.metadata or {}
  model_settings, data_settings, loss_settings = (
    metadata.get("experiment", {}).get(section, {}) for section in ("model", "data", "loss")
  )
  trained_activation = model_settings.get("activation", activation or "gelu")
  if activation not in (None, trained_activation):
    raise UserError(
      f"weights {path!r} were trained with --activation={trained_activation}, not {activation}"
    )
  model = NFNet(
    weights.variant,
    weights.num_classes,
    activation=trained_activation,
    bottleneck=weights.bottleneck,
  )
  parameters = jax.tree.map(jnp.asarray, weights.parameters)
  compiled = jax.jit(lambda parameters, images: apply(model, parameters, images))
  own_pixels = get_variant(weights.variant).test_pixels
  return Classifier(
    logits=lambda images: compiled(parameters, images),
    pixels=pixels or data_settings.get("evaluation_pixels", own_pixels),
    resize_margin=data_settings.get("evaluation_resize_margin", _RESIZE_MARGIN),
    class_names=metadata.get("class_names"),
    is_multi_label=loss_settings.get("kind") == "sigmoid",
  )


def read_images(paths: Sequence[str], classifier: Classifier) -> Iterator[np.ndarray]:
  """Each image as the network takes it, float32 [pixels, pixels, 3].

  Raises:
    UserError: a file is missing or is no sound image.
  """
  for path in paths:
    try:
      with open(path, "rb") as file:
        image = decode_image(file.read())
    except OSError as error:
      raise UserError(f"image {path!r} cannot be read: {error.strerror}") from error
    except BadImageError as error:
      raise UserError(f"image {path!r} cannot be decoded: {error}") from error
    yield normalize(resize_and_center_crop(image, classifier.pixels, classifier.resize_margin))


def read_inputs(path: str) -> np.ndarray:
  """A float32 [n, height, width, 3] array, mapped into memory rather than read.

  Raises:
    UserError: the file is no such array.
  """
  try:
    inputs = np.load(path, mmap_mode="r", allow_pickle=False)
  # An empty file is an EOFError.
  except (OSError, ValueError, EOFError) as error:
    raise UserError(f"inputs {path!r} cannot be read as a .npy array: {error}") from error
  if not isinstance(inputs, np.ndarray):
    raise UserError(f"inputs {path!r} are an archive of arrays; save one array with numpy.save")
  if inputs.dtype != np.float32 or inputs.ndim != 4 or inputs.shape[3] != 3 or 0 in inputs.shape:
    raise UserError(
      f"inputs {path!r} are {inputs.dtype} {list(inputs.shape)}; "
      "must be float32 [images, height, width, 3], normalized, not empty"
    )
  return inputs


def batches(images: Iterator[np.ndarray], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Stacks of `batch_size` images, and how many count; the last is filled up with zeros.

  Equal shapes, because each shape is another compilation.
  """
  stack: list[np.ndarray] = []
  for image in images:
    stack.append(image)
    if len(stack) == batch_size:
      yield np.stack(stack), batch_size
      stack = []
  if stack:
    missing = batch_size - len(stack)
    yield np.stack([*stack, *[np.zeros_like(stack[0])] * missing]), len(stack)


def predict(
  classifier: Classifier, images: Iterator[np.ndarray], *, num_images: int, batch_size: int
) -> Iterator[np.ndarray]:
  """Logits of each image, float32 [classes], in order."""
  with tqdm(total=num_images, unit="image", leave=False, disable=num_images <= batch_size) as bar:
    for stack, count in batches(images, min(batch_size, num_images)):
      yield from np.asarray(classifier.logits(stack))[:count]
      bar.update(count)


def top_classes(classifier: Classifier, logits: np.ndarray) -> str:
  """The likeliest classes, one a line, with their probabilities."""
  function = jax.nn.sigmoid if classifier.is_multi_label else jax.nn.softmax
  probabilities = np.asarray(function(jnp.asarray(logits)))
  names = classifier.class_names
  return "\n".join(
    f"  {probabilities[i]:8.2%}  {names[i] if names else f'class {i}'}"
    for i in np.argsort(-probabilities, kind="stable")[:_TOP]
  )


def _define_flags() -> None:
  flags.DEFINE_string("weights", None, "Haiku file, safetensors or checkpoint.", required=True)
  flags.DEFINE_string("variant", None, "What the weights must be; if not given, what they are.")
  flags.DEFINE_string("inputs", None, "Normalized images, .npy, instead of image files.")
  flags.DEFINE_string("logits_out", None, "Write the logits to this .npy file.")
  flags.DEFINE_integer("pixels", None, "Side that image files are brought to.", lower_bound=1)
  flags.DEFINE_enum(
    "activation", None, ACTIVATIONS, "Default: of the checkpoint, or gelu. timm has gelu_erf."
  )
  flags.DEFINE_integer("batch_size", 16, "Images computed at once.", lower_bound=1)


def main(argv: list[str]) -> None:
  """Predicts for the images that the command line names."""
  arguments = flags.FLAGS
  paths = argv[1:]
  if bool(paths) == bool(arguments.inputs):
    raise UserError("give either image files or --inputs=FILE.npy")
  if arguments.inputs and arguments.pixels:
    raise UserError("--pixels is for image files; --inputs are taken as they are")
  if arguments.logits_out:
    _check_can_write(arguments.logits_out)
  try:
    if arguments.variant is not None:
      get_variant(arguments.variant)
  except ValueError as error:
    raise UserError(f"--variant: {error}") from error
  inputs = read_inputs(arguments.inputs) if arguments.inputs else None
  classifier = load_classifier(
    arguments.weights,
    variant=arguments.variant,
    activation=arguments.activation,
    pixels=arguments.pixels,
  )
  names = paths if inputs is None else [f"{arguments.inputs}[{i}]" for i in range(len(inputs))]
  images = read_images(paths, classifier) if inputs is None else iter(inputs)
  rows = []
  for name, logits in zip(
    names,
    predict(classifier, images, num_images=len(names), batch_size=arguments.batch_size),
    strict=True,
  ):
    if arguments.logits_out:
      rows.append(logits)
    else:
      tqdm.write(f"{name}\n{top_classes(classifier, logits)}")
  if arguments.logits_out:
    _write_logits(arguments.logits_out, np.stack(rows))


def _check_can_write(path: str) -> None:
  """Says so before the work rather than after it."""
  folder = os.path.dirname(path) or "."
  if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
    raise UserError(f"--logits_out={path}: {folder!r} is no folder that can be written")


def _write_logits(path: str, logits: np.ndarray) -> None:
  try:
    # Given a name, numpy.save would add an ending to it.
    with open(path, "wb") as file:
      np.save(file, logits)
  except OSError as error:
    raise UserError(f"--logits_out={path} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
  _define_flags()
  run_main(main)
