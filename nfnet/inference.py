"""Classifies images: loads the weights, prepares the images, runs the network, formats the result.

`python -m nfnet.predict` is the command.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from nfnet.activations import Numerics, scaled_activation
from nfnet.block_arrangement import arrange_blocks
from nfnet.errors import (
  UserError,
  check_choice,
  check_flag,
  checked_whole_number,
  escaped,
  format_count,
  quoted,
)
from nfnet.images.preprocessing import (
  RESIZE,
  RESIZE_MARGIN,
  Picture,
  check_resizing,
  preprocess,
)
from nfnet.images.resizing import EvaluationResize
from nfnet.model import (
  BlockExecution,
  NFNet,
  Parameters,
  apply,
  check_model,
  check_parameters,
  standardized,
)
from nfnet.prediction.result_files import Outcome, Prediction
from nfnet.system.paths import path_text
from nfnet.variants import get_variant
from nfnet.weights.load import load_weights, trained_formulas

_DECODING_THREADS_MAX = 16
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

  Raises:
    ValueError: an argument is of another kind or outside of its bounds. The parameters are checked
      when they are used.
  """

  model: NFNet
  parameters: Parameters = dataclasses.field(repr=False)
  pixels: int
  resize: EvaluationResize
  resize_margin: int
  class_names: Sequence[str] | None = dataclasses.field(repr=False)
  is_multi_label: bool

  def __post_init__(self):
    check_model(self.model)
    check_resizing(self.pixels, self.resize, self.resize_margin)
    check_flag("is_multi_label", self.is_multi_label)
    names, count = self.class_names, self.model.num_classes
    if names is not None and not (
      isinstance(names, list | tuple)
      and len(names) == count
      and all(isinstance(name, str) for name in names)
    ):
      raise ValueError(
        f"class_names={quoted(names)}: must be a list of {format_count(count, 'name')}, or None"
      )

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

    The first call standardizes the filters and keeps them in addition to the parameters.

    Raises:
      ValueError: `images` are of another kind or not normalized.
    """
    return apply(self.model, self._standardized_parameters, images)

  @functools.cached_property
  def _standardized_parameters(self) -> Parameters:
    # For one image on a CPU, standardizing is a quarter of the time of an F0.
    check_parameters(self.model, self.parameters)
    parameters = arrange_blocks(self.parameters, self.model.block_keys)
    # Values are kept even if the first call is part of a program that is being traced.
    with jax.ensure_compile_time_eval():
      return standardized(self.model, parameters, gradient_dtype=None)

  def probabilities(self, logits: np.ndarray | jax.Array) -> np.ndarray:
    """Returns float32 of the shape of `logits`: a softmax, or sigmoids if `is_multi_label`.

    Raises:
      ValueError: the last axis of `logits` is not that of the classes, or they are not numbers.
    """
    function = jax.nn.sigmoid if self.is_multi_label else jax.nn.softmax
    return np.asarray(function(jnp.asarray(self._checked_logits(logits))))

  def _checked_logits(self, logits: Any) -> np.ndarray | jax.Array:
    """Returns logits as an array whose last axis is that of the classes."""
    count = self.model.num_classes
    if isinstance(logits, jax.core.Tracer):
      raise ValueError("logits are traced: call this outside of functions that JAX transforms")
    try:
      array = logits if isinstance(logits, jax.Array) else np.asarray(logits)
    # Lists of lists of different lengths, and objects with methods of their own for NumPy.
    except Exception:
      array = np.asarray(None)
    kinds = (jnp.floating, jnp.integer)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in kinds):
      raise ValueError(
        f"logits are a value of type {type(logits).__name__}; must be numbers [..., {count}], from "
        "Classifier.logits"
      )
    if array.ndim == 0 or array.shape[-1] != count:
      raise ValueError(
        f"logits have shape {list(array.shape)}; must be [..., {count}], from Classifier.logits"
      )
    return array

  def top(self, logits: np.ndarray | jax.Array, count: int = _TOP) -> list[Prediction]:
    """Returns index, name and probability of the most probable classes of one image, best first.

    A class without a name is called "class 0" or the like, by its place in the classifier.

    Args:
      logits: logits of one image, [classes].
      count: number of classes.

    Raises:
      ValueError: the logits are not those of one image, or not finite, or `count` is not a whole
        number of at least 1.
    """
    logits = self._checked_logits(logits)
    if logits.ndim != 1:
      raise ValueError(
        f"logits have shape {list(logits.shape)}; must be [{self.model.num_classes}]: give "
        "those of one image, such as logits[0]"
      )
    if not np.isfinite(logits).all():
      raise ValueError("the logits are not finite; the weights or the input are not sound")
    count = checked_whole_number("count", count, 1)
    probabilities, names = self.probabilities(logits), self.class_names
    return [
      Prediction(i, names[i] if names else f"class {i}", float(probabilities[i]))
      for i in np.argsort(-probabilities, kind="stable")[:count].tolist()
    ]


def inference_block_execution() -> BlockExecution:
  """Returns the way of executing blocks that gives results soonest on the default backend.

  On a CPU, XLA runs a network three times as fast if its blocks are unrolled, while it compiles an
  F7+ in 33 instead of 12 seconds (BUILD_NOTES.md). Elsewhere loops are kept, which compile faster.
  """
  return "unrolled" if jax.default_backend() == "cpu" else "scan"


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
    ValueError: there is no such variant, activation, numerics or way of resizing, or another
      argument is of another kind or outside of its bounds.
  """
  path = path_text("path", path)
  check_resizing(
    1 if pixels is None else pixels, RESIZE if resize is None else resize, RESIZE_MARGIN
  )
  if variant is not None:
    get_variant(variant)
  if numerics is not None:
    check_choice("numerics", numerics, get_args(Numerics))
  if activation is not None:
    scaled_activation(activation, "released")
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
  model = NFNet(
    weights.variant,
    weights.num_classes,
    bottleneck=weights.bottleneck,
    block_execution=inference_block_execution(),
    **formulas,
  )
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


def read_images(
  paths: Iterable[str], classifier: Classifier, *, ahead: int
) -> Iterator[np.ndarray | UserError]:
  """Yields each image as the network needs it, float32 [pixels, pixels, 3], in order.

  An image that is missing or not valid is an error in its place. Threads read images in advance
  while the network computes others.

  Args:
    paths: paths of image files.
    classifier: network that the images are for.
    ahead: most images that are in memory and have not been taken yet.
  """

  def read_or_error(path: str) -> np.ndarray | UserError:
    try:
      (image,) = classifier.preprocess(path)
    except UserError as error:
      return error
    return image

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
    return np.empty((0, classifier.model.num_classes), np.float32)
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
  try:
    return Outcome(image, logits, tuple(classifier.top(logits, top)), None)
  except ValueError as error:
    return Outcome(image, logits, (), str(error))


def as_text(outcome: Outcome) -> str:
  """Formats an image's name and its likeliest classes, one per line, or says why it has none."""
  if outcome.error is not None:
    lines = [f"  no class: {outcome.error}"]
  else:
    lines = [f"  {one.probability:8.2%}  {escaped(one.name)}" for one in outcome.predictions]
  return "\n".join([escaped(outcome.image), *lines])
