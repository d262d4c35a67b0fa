"""Evaluates networks on held-out images: while they are trained, and from files."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from nfnet.errors import UserError
from nfnet.weights.checkpoint_reader import read_checkpoint
from nfnet.weights.load import load_weights
from train.config.experiment import Data, Experiment
from train.config.json_conversion import from_json
from train.config.overrides import override
from train.data.batches import evaluation_batches
from train.data.dataset import class_names, evaluation_examples
from train.step.evaluation_step import make_evaluation_step
from train.step.model import make_model
from train.step.scores import Scores, scores
from train.step.sharding.batch import check_batch_size, put_batch
from train.step.sharding.mesh import make_mesh
from train.step.sharding.parameters import put_parameters


def evaluate(
  evaluation_step: Callable[[Any, Any], dict[str, Any]],
  parameters: Any,
  images: Data,
  mesh: jax.sharding.Mesh,
  *,
  is_interrupted: Callable[[], bool] = lambda: False,
) -> Scores | None:
  """Computes a network's scores on the held-out images, with a progress bar on a terminal.

  Args:
    evaluation_step: jitted `train.step.evaluation_step.make_evaluation_step`.
    parameters: parameters on the devices of `mesh`.
    images: data set, whose held-out split is used.
    mesh: mesh of devices.
    is_interrupted: called after each batch; if it returns true, the evaluation ends.

  Returns:
    Scores over the images of weight 1, or None if the evaluation was interrupted.

  Raises:
    UserError: too many images could not be decoded.
  """
  # Sums are kept on the devices. The host waits for a batch only after it has handed over the next
  # one, so that two batches are on the devices at once, not all.
  sums = None
  with (
    evaluation_batches(
      images, shard_index=jax.process_index(), shard_count=jax.process_count()
    ) as batches,
    tqdm(
      total=evaluation_examples(images),
      desc="evaluating",
      unit="image",
      leave=False,
      # None shows the bar only on a terminal. With several processes, only the first one shows it.
      disable=None if jax.process_index() == 0 else True,
    ) as bar,
  ):
    for batch in batches:
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
    total = evaluation_examples(images)
    batches.check_bad_images(total - int(sums["examples"]), total)
  return scores(sums)


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


def evaluate_checkpoint(
  path: str, overrides: Iterable[str] = (), *, pixels: Sequence[int] = ()
) -> tuple[list[Evaluation], tuple[str, ...]]:
  """Evaluates the parameters in a checkpoint and their moving average.

  Args:
    path: a workdir or one checkpoint's folder.
    overrides: `--config.FIELD=VALUE`, applied to the experiment that made the checkpoint.
    pixels: sides of the images, one evaluation for each; empty takes the experiment's own.

  Returns:
    The evaluations, those of the moving average (where one was kept) first, and the names of the
    classes.

  Raises:
    UserError: there is no such checkpoint or data set.
  """
  parameters, metadata = read_checkpoint(path, prefer_ema=False)
  experiment = override(from_json(metadata["experiment"]), overrides)
  networks = {"parameters": parameters}
  if experiment.optimizer.ema_decay is not None:
    networks = {"moving average": read_checkpoint(path, prefer_ema=True)[0], **networks}
  experiments = _at_resolutions(experiment, pixels)
  evaluations = [
    evaluation
    for name, parameters in networks.items()
    for evaluation in _evaluate_network(experiments, name, parameters)
  ]
  return evaluations, tuple(metadata["class_names"])


def evaluate_weights(
  path: str, experiment: Experiment, *, pixels: Sequence[int] = ()
) -> tuple[list[Evaluation], tuple[str, ...]]:
  """Evaluates released weights, or timm's, on a data set.

  The files do not name their classes: class k of the network is taken to be class k of the data
  set. The released classifiers have ImageNet's classes in the order of their WordNet ids, which is
  the order of `train.prepare_data` for ImageNet's folders.

  Args:
    path: a haiku file or a safetensors file in timm's layout.
    experiment: configuration that names network, numerics, data set and way of resizing.
    pixels: sides of the images, one evaluation for each; empty takes the experiment's own.

  Returns:
    The evaluations and the names of the data set's classes.

  Raises:
    UserError: the file cannot be read or is of another network, or there is no such data set.
  """
  weights = load_weights(path, experiment.model.variant, bottleneck=experiment.model.bottleneck)
  if weights.metadata is not None:
    raise UserError(f"weights {path!r} are a checkpoint, which knows its experiment: use --workdir")
  names = class_names(experiment.data)
  if weights.num_classes != len(names):
    raise UserError(
      f"weights {path!r} have {weights.num_classes} classes, data set {experiment.data.path!r} "
      f"has {len(names)}"
    )
  experiments = _at_resolutions(experiment, pixels)
  return _evaluate_network(experiments, "parameters", weights.parameters), names


def _at_resolutions(experiment: Experiment, pixels: Sequence[int]) -> list[Experiment]:
  return [
    override(experiment, [f"--config.data.evaluation_pixels={side}"])
    for side in pixels or [experiment.data.evaluation_pixels]
  ]


def _evaluate_network(
  experiments: Sequence[Experiment], name: str, parameters: Any
) -> list[Evaluation]:
  """Evaluates a network at the resolution of each experiment, in which alone they differ."""
  experiment = experiments[0]
  mesh = make_mesh()
  check_batch_size("data.evaluation_batch_size", experiment.data.evaluation_batch_size, mesh)
  model = make_model(experiment)
  step = jax.jit(make_evaluation_step(model, experiment.loss, mesh))
  on_devices = put_parameters(model, parameters, mesh)
  return [
    Evaluation(
      network=name,
      pixels=experiment.data.evaluation_pixels,
      scores=evaluate(step, on_devices, experiment.data, mesh),
    )
    for experiment in experiments
  ]
