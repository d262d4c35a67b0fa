"""Classifies images: loads the weights, prepares the images, runs the network, formats the result.

`python -m nfnet.predict` is the command.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

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
from nfnet.prediction.result_files import Outcome, Prediction
from nfnet.variants import get_variant
from nfnet.weights.load import load_weights

_DECODING_THREADS_MAX = 16
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
    num_classes: width of the classifier.
    class_names: one name for each class, or None.
    is_multi_label: whether classes are independent of each other, as a sigmoid loss makes them.
  """

  logits: Callable[[np.ndarray], jax.Array]
  pixels: int
  resize: EvaluationResize
  resize_margin: int
  num_classes: int
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
    num_classes=weights.num_classes,
    class_names=weights.class_names,
    is_multi_label=loss_settings.get("kind") == "sigmoid",
  )


def read_image(path: str, classifier: Classifier) -> np.ndarray:
  """Returns an image as the network needs it: normalized float32 [pixels, pixels, 3].

  Raises:
    UserError: the file is missing or is not a valid image.
  """
  try:
    image = decode_image(read_image_file(path))
  except OSError as error:
    raise UserError(f"image {path!r} cannot be read: {error.strerror}") from error
  except BadImageError as error:
    raise UserError(f"image {path!r} cannot be decoded: {error}") from error
  return normalize(
    resize_and_center_crop(image, classifier.pixels, classifier.resize_margin, classifier.resize)
  )


def read_images(
  paths: Iterable[str], classifier: Classifier, *, ahead: int
) -> Iterator[np.ndarray | UserError]:
  """Yields what `read_image` returns or raises for each path, in order.

  Threads read images in advance while the network computes others.

  Args:
    paths: paths of image files.
    classifier: network that the images are for.
    ahead: most images that are in memory and have not been taken yet.
  """

  def read_or_error(path: str) -> np.ndarray | UserError:
    try:
      return read_image(path, classifier)
    except UserError as error:
      return error

  threads = min(os.cpu_count() or 1, _DECODING_THREADS_MAX)
  pool = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="image reader")
  try:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for path in paths:
      waiting.append(pool.submit(read_or_error, path))
      if len(waiting) >= ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    # Whoever interrupts the command does not wait for images that nobody will see.
    pool.shutdown(wait=False, cancel_futures=True)


def predict(
  classifier: Classifier,
  images: Iterable[np.ndarray | UserError],
  *,
  num_images: int,
  batch_size: int,
) -> Iterator[np.ndarray | UserError]:
  """Yields the logits of each image, float32 [classes], in order.

  A batch that is not full is padded with zeros, so that only one shape has to be compiled. No image
  has an effect on another one's logits.

  Args:
    classifier: network with its weights.
    images: normalized float32 [height, width, 3], all of the same shape; errors are yielded in
      their places.
    num_images: number of images, for the progress bar.
    batch_size: number of images computed at once.
  """
  batch_size = min(batch_size, num_images)
  images = iter(images)
  # None shows the bar only on a terminal.
  is_hidden = True if num_images <= batch_size else None
  with tqdm(total=num_images, unit="image", leave=False, disable=is_hidden) as bar:
    while batch := list(itertools.islice(images, batch_size)):
      stack = [image for image in batch if not isinstance(image, UserError)]
      logits = iter(_padded_logits(classifier, stack, batch_size))
      for image in batch:
        yield image if isinstance(image, UserError) else next(logits)
      bar.update(len(batch))


def _padded_logits(
  classifier: Classifier, images: Sequence[np.ndarray], batch_size: int
) -> np.ndarray:
  """Returns the logits of at most `batch_size` images, or an empty array of none."""
  if not images:
    return np.empty((0, classifier.num_classes), np.float32)
  padding = [np.zeros_like(images[0])] * (batch_size - len(images))
  return np.asarray(classifier.logits(np.stack([*images, *padding])))[: len(images)]


def outcome_of(
  classifier: Classifier, image: str, logits: np.ndarray | UserError, top: int
) -> Outcome:
  """Returns the most probable classes of an image, or why there are none.

  Args:
    classifier: network that has computed the logits.
    image: name of the image.
    logits: float32 [classes], or the error of reading the image.
    top: number of classes.
  """
  if isinstance(logits, UserError):
    return Outcome(image, None, (), str(logits))
  if not np.isfinite(logits).all():
    reason = "the logits are not finite; the weights or the input are not sound"
    return Outcome(image, logits, (), reason)
  function = jax.nn.sigmoid if classifier.is_multi_label else jax.nn.softmax
  probabilities = np.asarray(function(jnp.asarray(logits)))
  names = classifier.class_names
  best = np.argsort(-probabilities, kind="stable")[:top].tolist()
  predictions = (
    Prediction(i, names[i] if names else f"class {i}", float(probabilities[i])) for i in best
  )
  return Outcome(image, logits, tuple(predictions), None)


def as_text(outcome: Outcome) -> str:
  """Formats an image's name and its most probable classes, one a line, or says why it has none."""
  if outcome.error is not None:
    lines = [f"  no class: {outcome.error}"]
  else:
    lines = [f"  {one.probability:8.2%}  {escaped(one.name)}" for one in outcome.predictions]
  return "\n".join([escaped(outcome.image), *lines])
