"""Evaluates networks on held-out images: while they are trained, and from files."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from nfnet.errors import UserError, format_count
from nfnet.images.preprocessing import RESIZE
from nfnet.inference import inference_block_execution
from nfnet.variants import get_variant
from nfnet.weights.class_names import (
  Matching,
  match_classes,
  match_unnamed_classes,
  read_names_file,
)
from nfnet.weights.load import is_checkpoint, load_checkpoint, load_weights
from nfnet.weights.network_matching import Weights
from train.config.experiment import Data, Experiment, Model, Optimizer, Schedule
from train.config.json_conversion import from_json
from train.config.overrides import as_argument, override
from train.data.batch_workers.deaths import WorkerDeaths
from train.data.batches import evaluation_batches
from train.data.dataset import class_names, evaluation_examples
from train.data.prefetch import BatchFetcher
from train.run.processes import is_first
from train.step.evaluation_step import make_evaluation_step
from train.step.model import make_model
from train.step.scores import CONFUSION_CLASSES_MAX, Scores, scores
from train.step.sharding.batch import check_batch_size, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters


def evaluate(
  evaluation_step: Callable[[Any, Any], dict[str, Any]],
  parameters: Any,
  images: Data,
  mesh: jax.sharding.Mesh,
  *,
  classes: Sequence[int] | None = None,
  is_interrupted: Callable[[], bool] = lambda: False,
  is_interrupted_alone: Callable[[], bool] = lambda: False,
  deaths: WorkerDeaths | None = None,
) -> Scores | None:
  """Computes a network's scores on the held-out images, with a progress bar on a terminal.

  Args:
    evaluation_step: jitted `train.step.evaluation_step.make_evaluation_step`.
    parameters: parameters on the devices of `mesh`.
    images: data set, whose held-out split is used.
    mesh: mesh of devices.
    classes: network's class of each class of the data set; None if they are the same.
    is_interrupted: called after each batch; if it returns true, the evaluation ends.
    is_interrupted_alone: called again and again while this process waits for a batch, with the same
      effect.
    deaths: is told of data workers that are killed; None prints a line for each on stderr.

  Returns:
    Scores over the images of weight 1, or None if the evaluation was interrupted.

  Raises:
    UserError: too many images could not be decoded.
  """
  # Sums are kept on the devices. The host waits for a batch only after it has handed over the next
  # one, so that two batches are on the devices at once, not all.
  sums = None
  total = evaluation_examples(images)
  with (
    evaluation_batches(
      images, shard_index=jax.process_index(), shard_count=jax.process_count(), deaths=deaths
    ) as batches,
    BatchFetcher(batches) as fetcher,
    tqdm(
      total=total,
      desc="evaluating",
      unit="image",
      leave=False,
      # None shows the bar only on a terminal. With several processes, only the first one shows it.
      disable=None if is_first() else True,
    ) as bar,
  ):
    while True:
      try:
        fetched = fetcher.next(is_interrupted_alone)
      except StopIteration:
        break
      if fetched is None:
        return None
      batch = fetched.batch
      if classes is not None:
        batch["labels"] = _as_classes(batch["labels"], classes)
      part = evaluation_step(parameters, put_batch(batch, mesh))
      if sums is None:
        sums = part
      else:
        jax.block_until_ready(sums)
        sums = jax.tree.map(lambda a, b: a + b, sums, part)
      bar.update(int(np.count_nonzero(batch["id"] >= 0)))
      if is_interrupted():
        return None
    sums = jax.device_get(sums)
    batches.check_bad_images(total - int(sums["examples"]), total)
  return scores(sums)


def _as_classes(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
  """Returns the network's classes for a data set's, in which -1 is padding."""
  return np.where(labels < 0, labels, np.asarray(classes, labels.dtype)[labels])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Scores of one network at one resolution.

  Attributes:
    network: "moving average" or "parameters".
    pixels: side of an image.
    scores: scores on the held-out split.
  """

  network: str
  pixels: int
  scores: Scores


class Evaluated(NamedTuple):
  """The evaluations of weights on a data set.

  Attributes:
    evaluations: one for each network and resolution.
    class_names: names of the network's classes, by index.
    matching: description of how the data set's classes were found among these.
  """

  evaluations: list[Evaluation]
  class_names: tuple[str, ...]
  matching: str


_IMAGES_PER_DEVICE = 32
"""Images of a batch on each device where no configuration says so: 142 MB of F7's at 608 px."""


def evaluate_on(
  path: str,
  data: str,
  overrides: Iterable[str] = (),
  *,
  pixels: Sequence[int] = (),
  class_names_file: str | None = None,
) -> Evaluated:
  """Evaluates weights of any kind on a data set, on whatever devices there are.

  Network, numerics, resolution and way of resizing are those that `nfnet.predict` takes: a
  checkpoint's own, or the variant's test resolution and paper B's way. Everything is computed by
  the reference, released weights in float32.

  Args:
    path: a haiku file, a safetensors file in timm's layout, a workdir or a checkpoint's folder.
    data: folder of a prepared data set.
    overrides: `--config.FIELD=VALUE`, such as `data.evaluation_split` and `model.numerics`.
    pixels: sides of the images, one evaluation for each; empty takes the network's own.
    class_names_file: file with the names of the network's classes, if the weights have none.

  Raises:
    UserError: the weights or the data set cannot be read, or their classes cannot be matched.
  """
  overrides = [
    as_argument("data.path", data),
    as_argument("data.evaluation_batch_size", _IMAGES_PER_DEVICE * jax.device_count()),
    as_argument("data.workers", 0),
    as_argument("model.kernels", "reference"),
    as_argument("model.block_execution", inference_block_execution()),
    *overrides,
  ]
  if is_checkpoint(path):
    if class_names_file is not None:
      raise UserError(f"--class_names_file is for files; checkpoint {path!r} names its classes")
    return evaluate_checkpoint(path, overrides, pixels=pixels)
  weights = load_weights(path)
  variant = get_variant(weights.variant)
  experiment = Experiment(
    name=path,
    model=Model(variant=variant.name, bottleneck=weights.bottleneck, compute_dtype="float32"),
    data=Data(
      num_classes=weights.num_classes,
      evaluation_pixels=variant.test_pixels,
      evaluation_resize=RESIZE,
    ),
    # A rule between fields wants these; nothing is trained.
    optimizer=Optimizer(warmup_steps=0),
    schedule=Schedule(train_steps=1),
  )
  experiment = override(experiment, overrides)
  _check_model(f"weights {path!r}", "variant", weights.variant, experiment)
  _check_model(f"weights {path!r}", "bottleneck", weights.bottleneck, experiment)
  return _evaluate_file(path, weights, experiment, pixels, class_names_file)


def evaluate_checkpoint(
  path: str, overrides: Iterable[str] = (), *, pixels: Sequence[int] = ()
) -> Evaluated:
  """Evaluates the parameters in a checkpoint and their moving average.

  The classes of the data set are matched with the network's by name. They may be in another order,
  or only some of the network's.

  Args:
    path: a workdir or one checkpoint's folder.
    overrides: `--config.FIELD=VALUE`, applied to the experiment that made the checkpoint.
    pixels: sides of the images, one evaluation for each; empty takes the experiment's own.

  Returns:
    The evaluations, those of the moving average (where one was kept) first.

  Raises:
    UserError: there is no such checkpoint or data set, or the data set has classes that the network
      does not know.
  """
  weights = load_checkpoint(path, prefer_ema=False)
  trained = from_json(weights.metadata["experiment"])
  experiment = override(trained, overrides)
  for name in ("variant", "bottleneck", "activation", "numerics"):
    _check_model(f"checkpoint {path!r}", name, getattr(trained.model, name), experiment)
  matching = _match_classes(path, weights, experiment.data)
  networks = {"parameters": weights.parameters}
  if trained.optimizer.ema_decay is not None:
    networks = {"moving average": load_checkpoint(path, prefer_ema=True).parameters, **networks}
  experiments = _at_resolutions(experiment, pixels)
  evaluations = [
    evaluation
    for name, parameters in networks.items()
    for evaluation in _evaluate_network(experiments, name, parameters, matching)
  ]
  return Evaluated(evaluations, matching.names, matching.how)


def _check_model(network: str, name: str, own: Any, experiment: Experiment) -> None:
  """Raises a UserError if a field of the model is not as the weights have it."""
  asked = getattr(experiment.model, name)
  if name == "bottleneck" and not experiment.model.variant.endswith("+"):
    # Both are the same there.
    return
  if asked != own:
    raise UserError(f"model.{name}={asked}: {network} has {name} {own}; leave out the change")


def _match_classes(path: str, weights: Weights, data: Data) -> Matching:
  """Finds the classes of a data set among a checkpoint's.

  Args:
    path: path of the checkpoint, as the user gave it.
    weights: weights of the checkpoint.
    data: data set to evaluate on.
  """
  network, data_set = f"checkpoint {path!r}", f"data set {data.path!r}"
  names, num_classes, data_names = weights.class_names, weights.num_classes, class_names(data)
  if data.num_classes not in (num_classes, len(data_names)):
    raise UserError(
      f"data.num_classes={data.num_classes}: {network} has "
      f"{format_count(num_classes, 'class')} and {data_set} {len(data_names)}; leave it out"
    )
  if names is None:
    if len(data_names) != num_classes:
      raise UserError(
        f"{network} has {format_count(num_classes, 'class')} without names, and {data_set} has "
        f"{len(data_names)}"
      )
    return _assume_the_same_classes(data_names, network, data_set)
  classes = match_classes(names, data_names, network_source=network, data_source=data_set)
  if classes != tuple(range(num_classes)) and is_first():
    logging.warning(
      "%s has %d of the %d classes of %s, in an order of its own: matched by name",
      data_set,
      len(data_names),
      num_classes,
      network,
    )
  return Matching(names, classes, "by name")


def _assume_the_same_classes(data_names: tuple[str, ...], network: str, data_set: str) -> Matching:
  if is_first():
    logging.warning(
      "the classes of %s have no names: assumed to be those of %s, in the same order",
      network,
      data_set,
    )
  return Matching(
    data_names, tuple(range(len(data_names))), "by index: the network's have no names"
  )


def evaluate_weights(
  path: str,
  experiment: Experiment,
  *,
  pixels: Sequence[int] = (),
  class_names_file: str | None = None,
) -> Evaluated:
  """Evaluates released weights, or timm's, on a data set as a configuration says.

  The files do not name their classes. Without a file that does, and unless the data set is
  ImageNet, class k of the network is taken to be class k of the data set.

  Args:
    path: a haiku file or a safetensors file in timm's layout.
    experiment: configuration that names network, numerics, data set and way of resizing.
    pixels: sides of the images, one evaluation for each; empty takes the experiment's own.
    class_names_file: file with the names of the network's classes.

  Raises:
    UserError: the file cannot be read or is of another network, or there is no such data set.
  """
  weights = load_weights(path, experiment.model.variant, bottleneck=experiment.model.bottleneck)
  if weights.metadata is not None:
    raise UserError(f"weights {path!r} are a checkpoint, which knows its experiment: use --workdir")
  data_names, data_set = class_names(experiment.data), f"data set {experiment.data.path!r}"
  if class_names_file is None and weights.num_classes != len(data_names):
    raise UserError(
      f"weights {path!r} have {format_count(weights.num_classes, 'class')}, {data_set} has "
      f"{len(data_names)}"
    )
  return _evaluate_file(
    path, weights, experiment, pixels, class_names_file, assumes_the_same_classes=True
  )


def _evaluate_file(
  path: str,
  weights: Weights,
  experiment: Experiment,
  pixels: Sequence[int],
  class_names_file: str | None,
  *,
  assumes_the_same_classes: bool = False,
) -> Evaluated:
  """Evaluates weights that do not name their classes.

  Args:
    path: path of the weights, as the user gave it.
    weights: these weights.
    experiment: configuration of the evaluation.
    pixels: sides of the images; empty takes the experiment's own.
    class_names_file: file with the names of the network's classes, or None.
    assumes_the_same_classes: whether classes that cannot be matched are taken to be the data set's,
      of which there are as many, instead of being refused.
  """
  network, data_set = f"weights {path!r}", f"data set {experiment.data.path!r}"
  num_classes, data_names = weights.num_classes, class_names(experiment.data)
  if experiment.data.num_classes not in (num_classes, len(data_names)):
    raise UserError(
      f"data.num_classes={experiment.data.num_classes}: {network} have "
      f"{format_count(num_classes, 'class')} and {data_set} has {len(data_names)}; leave it out"
    )
  sources = {"network_source": f"the network of {network}", "data_source": data_set}
  if class_names_file is not None:
    names = read_names_file(class_names_file, num_classes)
    classes = match_classes(names, data_names, **sources)
    matching = Matching(names, classes, "by name, with --class_names_file")
  else:
    try:
      matching = match_unnamed_classes(num_classes, data_names, **sources)
    except UserError:
      if not assumes_the_same_classes:
        raise
      matching = _assume_the_same_classes(data_names, network, data_set)
  experiments = _at_resolutions(experiment, pixels)
  evaluations = _evaluate_network(experiments, "parameters", weights.parameters, matching)
  return Evaluated(evaluations, matching.names, matching.how)


def _at_resolutions(experiment: Experiment, pixels: Sequence[int]) -> list[Experiment]:
  return [
    override(experiment, [f"--config.data.evaluation_pixels={side}"])
    for side in pixels or [experiment.data.evaluation_pixels]
  ]


def _evaluate_network(
  experiments: Sequence[Experiment],
  name: str,
  parameters: Any,
  matching: Matching,
) -> list[Evaluation]:
  """Evaluates a network at the resolution of each experiment, in which alone they differ.

  Args:
    experiments: experiments that name data set and resolution.
    name: name of the network.
    parameters: its parameters on the host.
    matching: its classes, and which of them the data set's are.
  """
  experiment = experiments[0]
  num_classes, classes = len(matching.names), matching.classes
  mesh = make_mesh()
  check_batch_size("data.evaluation_batch_size", experiment.data.evaluation_batch_size, mesh)
  model = make_model(_with_classes(experiment, num_classes))
  step = jax.jit(
    make_evaluation_step(
      model, experiment.loss, mesh, counts_confusion=num_classes <= CONFUSION_CLASSES_MAX
    )
  )
  on_devices = put_parameters(model, parameters, mesh)
  return [
    Evaluation(
      network=name,
      pixels=experiment.data.evaluation_pixels,
      scores=evaluate(
        step, on_devices, _with_classes(experiment, len(classes)).data, mesh, classes=classes
      ),
    )
    for experiment in experiments
  ]


def _with_classes(experiment: Experiment, num_classes: int) -> Experiment:
  """Returns an experiment with another number of classes."""
  return dataclasses.replace(
    experiment, data=dataclasses.replace(experiment.data, num_classes=num_classes)
  )
