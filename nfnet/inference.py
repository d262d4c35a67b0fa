"""Classifies images: loads the weights, prepares the images, runs the network, formats the result.

`python -m nfnet.predict` is the command.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfnet.activations import Numerics
from nfnet.errors import UserError, escaped
from nfnet.images.decoding import BadImageError, decode_image, read_image_file
from nfnet.images.normalization import normalize
from nfnet.images.resizing import EvaluationResize, resize_and_center_crop
from nfnet.model import NFNet, apply
from nfnet.variants import get_variant
from nfnet.weights.load import load_weights

_TOP = 5
# Paper B's evaluation, for weights that do not say how they were evaluated.
_RESIZE_MARGIN = 32
_RESIZE: EvaluationResize = "squash"
# Of checkpoints that were saved before it could be chosen.
_OLD_RESIZE: EvaluationResize = "shorter_side"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
  """Holds a network with its weights, and how images are prepared for it.

  Attributes:
    logits: compiled function from normalized float32 [n, height, width, 3] to float32 [n, classes].
    pixels: side of the images.
    resize: way of resizing images, see `nfnet.images.resizing`.
    resize_margin: number of pixels by which a resized image exceeds `pixels`.
    class_names: one name for each class, or None.
    is_multi_label: whether classes are independent of each other, as a sigmoid loss makes them.
  """

  logits: Callable[[np.ndarray], jax.Array]
  pixels: int
  resize: EvaluationResize
  resize_margin: int
  class_names: Sequence[str] | None
  is_multi_label: bool


def load_classifier(
  path: str,
  *,
  variant: str | None = None,
  activation: str | None = None,
  numerics: Numerics | None = None,
  pixels: int | None = None,
  resize: EvaluationResize | None = None,
) -> Classifier:
  """Builds the network that fits the weights.

  Args:
    path: path of the weights; see `nfnet.weights.load.load_weights`.
    variant: variant that the weights must have; None accepts any.
    activation: name of the activation; None means the checkpoint's own or, for other files, gelu.
    numerics: "released" or "timm", see `nfnet.model.NFNet`; None means the checkpoint's own or, for
      other files, "released". A file in timm's layout does not say whether timm trained its
      weights; those that timm publishes in this layout are the released ones, converted.
    pixels: side of the images; None means the resolution at which the checkpoint was evaluated or,
      for other files, the variant's test resolution.
    resize: way of resizing images, see `nfnet.images.resizing`; None means the way in which the
      checkpoint was evaluated or, for other files, "squash".

  Raises:
    UserError: the weights cannot be read or do not fit the other arguments.
  """
  weights = load_weights(path, variant)
  metadata = weights.metadata or {}
  model_settings, data_settings, loss_settings = (
    metadata.get("experiment", {}).get(section, {}) for section in ("model", "data", "loss")
  )
  formulas = {"activation": activation or "gelu", "numerics": numerics or "released"}
  if weights.metadata is not None:
    trained = {"activation": "gelu", "numerics": "released", **model_settings}
    for flag, asked in (("activation", activation), ("numerics", numerics)):
      if asked not in (None, trained[flag]):
        raise UserError(f"weights {path!r} were trained with --{flag}={trained[flag]}, not {asked}")
      formulas[flag] = trained[flag]
  model = NFNet(weights.variant, weights.num_classes, bottleneck=weights.bottleneck, **formulas)
  parameters = jax.tree.map(jnp.asarray, weights.parameters)
  compiled = jax.jit(lambda parameters, images: apply(model, parameters, images))
  own_pixels = get_variant(weights.variant).test_pixels
  return Classifier(
    logits=lambda images: compiled(parameters, images),
    pixels=pixels or data_settings.get("evaluation_pixels", own_pixels),
    resize=resize
    or data_settings.get("evaluation_resize", _OLD_RESIZE if weights.metadata else _RESIZE),
    resize_margin=data_settings.get("evaluation_resize_margin", _RESIZE_MARGIN),
    class_names=weights.class_names,
    is_multi_label=loss_settings.get("kind") == "sigmoid",
  )


def read_images(paths: Sequence[str], classifier: Classifier) -> Iterator[np.ndarray]:
  """Yields each image as the network needs it: normalized float32 [pixels, pixels, 3].

  Raises:
    UserError: a file is missing or is not a valid image.
  """
  for path in paths:
    try:
      image = decode_image(read_image_file(path))
    except OSError as error:
      raise UserError(f"image {path!r} cannot be read: {error.strerror}") from error
    except BadImageError as error:
      raise UserError(f"image {path!r} cannot be decoded: {error}") from error
    yield normalize(
      resize_and_center_crop(image, classifier.pixels, classifier.resize_margin, classifier.resize)
    )


def batches(images: Iterator[np.ndarray], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
  """Yields stacks of `batch_size` images and how many of them are not padding.

  The last stack is padded with zeros, so that only one shape has to be compiled.
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
  """Yields the logits of each image, float32 [classes], in order.

  Args:
    classifier: network with its weights.
    images: normalized float32 [height, width, 3], all of the same shape.
    num_images: number of images, for the progress bar.
    batch_size: number of images computed at once.
  """
  with tqdm(total=num_images, unit="image", leave=False, disable=num_images <= batch_size) as bar:
    for stack, count in batches(images, min(batch_size, num_images)):
      yield from np.asarray(classifier.logits(stack))[:count]
      bar.update(count)


def top_classes(classifier: Classifier, logits: np.ndarray) -> str:
  """Formats the most probable classes, one per line, with their probabilities.

  If the logits are not finite, a line says so instead.
  """
  if not np.isfinite(logits).all():
    return "  no class: the logits are not finite; the weights or the input are not sound"
  function = jax.nn.sigmoid if classifier.is_multi_label else jax.nn.softmax
  probabilities = np.asarray(function(jnp.asarray(logits)))
  names = classifier.class_names
  return "\n".join(
    f"  {probabilities[i]:8.2%}  {escaped(names[i]) if names else f'class {i}'}"
    for i in np.argsort(-probabilities, kind="stable")[:_TOP]
  )
