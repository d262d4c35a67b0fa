"""Classifies images: loads the weights, prepares the images, runs the network, formats the result.

`python -m nfnet.predict` is the command.
"""

import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfnet.activations import Numerics
from nfnet.errors import UserError, escaped
from nfnet.images.preprocessing import (
  RESIZE,
  RESIZE_MARGIN,
  Picture,
  preprocess,
  preprocess_picture,
)
from nfnet.images.resizing import EvaluationResize
from nfnet.model import NFNet, Parameters, apply
from nfnet.variants import get_variant
from nfnet.weights.load import load_weights, trained_formulas

_TOP = 5
# Of checkpoints that were saved before it could be chosen.
_OLD_RESIZE: EvaluationResize = "shorter_side"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
  """Holds a network with its weights, and how pictures are prepared for it.

  Attributes:
    model: the network.
    parameters: parameters of the network.
    pixels: side of the images.
    resize: way of resizing images, see `nfnet.images.resizing`.
    resize_margin: number of pixels by which a resized image exceeds `pixels`.
    class_names: one name for each class, or None.
    is_multi_label: whether classes are independent of each other, as a sigmoid loss makes them.
  """

  model: NFNet
  parameters: Parameters = dataclasses.field(repr=False)
  pixels: int
  resize: EvaluationResize
  resize_margin: int
  class_names: Sequence[str] | None = dataclasses.field(repr=False)
  is_multi_label: bool

  def preprocess(self, pictures: Picture | Iterable[Picture]) -> np.ndarray:
    """Returns pictures as the network was evaluated with them: float32 [n, pixels, pixels, 3].

    Args:
      pictures: one picture or several, see `nfnet.images.preprocessing.preprocess`.

    Raises:
      UserError: a file is missing or is not a valid image.
      ValueError: a picture is of another kind.
    """
    return preprocess(pictures, self.pixels, resize=self.resize, resize_margin=self.resize_margin)

  def logits(self, images: np.ndarray | jax.Array) -> jax.Array:
    """Returns float32 [n, classes] for normalized images [n, height, width, 3]; it is compiled.

    Raises:
      ValueError: `images` are of another kind or not normalized.
    """
    return apply(self.model, self.parameters, images)

  def probabilities(self, logits: np.ndarray | jax.Array) -> np.ndarray:
    """Returns float32 of the shape of `logits`: a softmax, or sigmoids if `is_multi_label`."""
    function = jax.nn.sigmoid if self.is_multi_label else jax.nn.softmax
    return np.asarray(function(jnp.asarray(logits)))

  def top(self, logits: np.ndarray | jax.Array, count: int = _TOP) -> list[tuple[str, float]]:
    """Returns names and probabilities of the most probable classes of one image, best first.

    A class without a name is called "class 0" or the like, by its place in the classifier.

    Args:
      logits: logits of one image, [classes].
      count: number of classes.

    Raises:
      ValueError: the logits are not those of one image, or not finite.
    """
    if np.shape(logits) != (self.model.num_classes,):
      raise ValueError(
        f"logits have shape {list(np.shape(logits))}; must be [{self.model.num_classes}]: give "
        "those of one image, such as logits[0]"
      )
    if not np.isfinite(logits).all():
      raise ValueError("the logits are not finite; the weights or the input are not sound")
    probabilities, names = self.probabilities(logits), self.class_names
    return [
      (names[i] if names else f"class {i}", float(probabilities[i]))
      for i in np.argsort(-probabilities, kind="stable")[:count]
    ]


def load_classifier(
  path: str | os.PathLike,
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
    ValueError: there is no such variant, activation or numerics.
  """
  path = os.fspath(path)
  if variant is not None:
    get_variant(variant)
  weights = load_weights(path, variant)
  metadata = weights.metadata or {}
  data_settings, loss_settings = (
    metadata.get("experiment", {}).get(section, {}) for section in ("data", "loss")
  )
  formulas = {"activation": activation or "gelu", "numerics": numerics or "released"}
  if (trained := trained_formulas(weights)) is not None:
    for flag, asked in (("activation", activation), ("numerics", numerics)):
      if asked not in (None, trained[flag]):
        raise UserError(f"weights {path!r} were trained with --{flag}={trained[flag]}, not {asked}")
    formulas = trained
  model = NFNet(weights.variant, weights.num_classes, bottleneck=weights.bottleneck, **formulas)
  own_pixels = get_variant(weights.variant).test_pixels
  return Classifier(
    model=model,
    parameters=jax.tree.map(jnp.asarray, weights.parameters),
    pixels=pixels or data_settings.get("evaluation_pixels", own_pixels),
    resize=resize
    or data_settings.get("evaluation_resize", _OLD_RESIZE if weights.metadata else RESIZE),
    resize_margin=data_settings.get("evaluation_resize_margin", RESIZE_MARGIN),
    class_names=weights.class_names,
    is_multi_label=loss_settings.get("kind") == "sigmoid",
  )


def read_images(paths: Sequence[str], classifier: Classifier) -> Iterator[np.ndarray]:
  """Yields each image as the network needs it: normalized float32 [pixels, pixels, 3].

  Raises:
    UserError: a file is missing or is not a valid image.
  """
  for path in paths:
    yield preprocess_picture(
      path,
      classifier.pixels,
      resize=classifier.resize,
      resize_margin=classifier.resize_margin,
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
  return "\n".join(
    f"  {probability:8.2%}  {escaped(name)}" for name, probability in classifier.top(logits)
  )
