"""Loss and accuracy on held-out images."""

from collections.abc import Callable, Iterable
from typing import Any

import jax

from nfnet.checkpoint_reader import read_checkpoint
from train.config_file import from_json, override
from train.data import evaluation_batches
from train.devices import check_batch_size, put_batch
from train.experiment import Experiment
from train.step import make_evaluation_step, make_mesh, make_model, put_parameters


def evaluate(
  evaluation_step: Callable[[Any, Any], dict[str, Any]],
  parameters: Any,
  batches: Iterable[dict[str, Any]],
  mesh: jax.sharding.Mesh,
) -> dict[str, float]:
  """Means over the images of `batches` that have weight 1.

  Args:
    evaluation_step: jitted `train.step.make_evaluation_step`.
    parameters: on the devices of `mesh`.
    batches: all of the split.
    mesh: of devices.

  Returns:
    loss (nats), top1 and top5 (shares), examples.
  """
  # Summed on the devices, so that the host does not wait for each batch.
  sums = None
  for batch in batches:
    part = evaluation_step(parameters, put_batch(batch, mesh))
    sums = part if sums is None else jax.tree.map(lambda a, b: a + b, sums, part)
  sums = {name: float(value) for name, value in jax.device_get(sums).items()}
  examples = max(sums["examples"], 1.0)
  return {name: sums[name] / examples for name in ("loss", "top1", "top5")} | {
    "examples": sums["examples"]
  }


def evaluate_checkpoint(path: str, overrides: Iterable[str] = ()) -> dict[str, dict[str, float]]:
  """Evaluates what a checkpoint holds.

  Args:
    path: a workdir or one checkpoint's folder.
    overrides: `--config.FIELD=VALUE`, applied to the experiment that the checkpoint was made by.

  Returns:
    "moving average" (where one was kept) and "parameters", each with what `evaluate` returns.
  """
  parameters, metadata = read_checkpoint(path, prefer_ema=False)
  experiment = override(from_json(metadata["experiment"]), overrides)
  networks = {"parameters": parameters}
  if experiment.optimizer.ema_decay is not None:
    networks = {"moving average": read_checkpoint(path, prefer_ema=True)[0], **networks}
  return evaluate_networks(experiment, networks)


def evaluate_networks(
  experiment: Experiment, networks: dict[str, Any]
) -> dict[str, dict[str, float]]:
  """`evaluate` for each tree of parameters, by name, on the experiment's held-out split."""
  mesh = make_mesh()
  check_batch_size("data.evaluation_batch_size", experiment.data.evaluation_batch_size, mesh)
  model = make_model(experiment)
  step = jax.jit(make_evaluation_step(model, experiment.loss, mesh))
  results = {}
  for name, parameters in networks.items():
    with evaluation_batches(experiment.data) as batches:
      on_devices = put_parameters(model, parameters, mesh)
      results[name] = evaluate(step, on_devices, batches, mesh)
  return results
