"""The command: which step its flags ask for, and what it prints."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from nfnet.cost import count
from nfnet.model import parameter_name, standardized
from profiling.step import FIELD_OF_FLAG
from tests import commands
from tests.profiling import shared_step
from train.config.field_names import field_types
from train.config.files import load_experiment
from train.config.json_conversion import from_json
from train.step.model import arranged_parameter_shapes, make_model
from train.step.sharding.standardized_filters import differentiated

DEMO = "train/configs/demo_pretrain.py"


def run(*arguments):
  shared = {"XDG_CACHE_HOME": str(shared_step.USER_CACHE)}
  return commands.run("profiling.step", *arguments, environment=shared)


SMALL = """
from train.config.experiment import Data, Experiment, Model, Optimizer, Schedule

def experiment(pixels: int = 32) -> Experiment:
  return Experiment(
    name="small",
    model=Model(variant="P0", kernels="pallas"),
    data=Data(path="no images", num_classes=10, batch_size=32, train_pixels=pixels),
    optimizer=Optimizer(warmup_steps=1, ema_decay=None),
    schedule=Schedule(train_steps=1000),
  )
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def by_flags(cache):
  """What the command prints and writes about a step that flags describe."""
  result = run(*shared_step.FLAGS, f"--json={cache / 'flags.json'}")
  assert result.returncode == 0, result.stderr
  return result.stdout, json.loads((cache / "flags.json").read_text())


def test_a_step_by_flags(by_flags):
  text, fields = by_flags
  assert text.startswith("NFNet-P0, 10 classes, 16 px, 8 images a chip in 2 parts on v4:2x2x1")
  assert fields["fits"]
  rows = fields["estimated"]["rows"]
  assert {row["part"] for row in rows} == {
    *("stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"),
    *("optimizer", "collectives", "other"),
  }
  # Float32 gradients of every parameter, of filters in whole squares, and three sums over examples:
  # once, not once a part. The gains of such filters are differentiated after the sum.
  model = make_model(shared_step.REQUEST.experiment)
  summed = jax.eval_shape(
    lambda parameters: differentiated(
      standardized(model, parameters, gradient_dtype=jnp.dtype(jnp.float32))
    ),
    arranged_parameter_shapes(model),
  )
  elements = sum(
    leaf.size
    for path, leaf in jax.tree.leaves_with_path(summed)
    if not re.fullmatch("(blocks|final_conv)/.*gain", parameter_name(path))
    or parameter_name(path).endswith("skip_gain")
  )
  assert elements > count("P0", num_classes=10, pixels=16).parameters
  assert fields["estimated"]["collective_bytes"] == 4 * (elements + 3)


def test_a_step_by_configuration_is_the_configured_one(by_flags, cache):
  """It is the step that the flags describe as well, so that nothing is compiled again."""
  small = cache / "small.py"
  small.write_text(SMALL)
  config = f"{small}:pixels=16"
  overrides = (
    "--config.optimizer.gradient_accumulation=2", "--config.loss.label_smoothing=0.1",
  )  # fmt: skip
  arguments = (f"--config={config}", *overrides, f"--json={cache / 'config.json'}")
  result = run(*arguments, "--time_limit_seconds=0")
  assert result.returncode == 0, result.stderr
  text, fields = by_flags
  assert result.stdout == text
  by_config = json.loads((cache / "config.json").read_text())
  experiment = by_config["request"].pop("experiment")
  assert from_json(experiment) == load_experiment(config, overrides)
  del fields["request"]["experiment"]
  assert by_config == fields


def test_flags_that_exclude_a_configuration_name_fields_that_there_are():
  assert set(FIELD_OF_FLAG.values()) < set(field_types())


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (["--variant=G0"], "nearest: P0"),
    (["--variant=P0", "--topology=v4:2x2"], "has 3 sides"),
    (["--variant=P0", "--batch_per_chip=0"], "batch_per_chip"),
    (["--variant=P0", "surplus"], "'surplus'"),
    (["--variant=P0", "--kernels=fast"], "kernels"),
    (["--variant=P0", "--gradient_accumulation=0"], "gradient_accumulation"),
    (["--variant=P0", "--gradient_accumulation=64"], "64 accumulated parts"),
    (["--variant=P0", "--sharpness_group_images=5"], "sharpness.group_images=5 does not divide"),
    ([], "neither --config nor --variant is given"),
    (
      [f"--config={DEMO}", "--batch_per_chip=8"],
      f"--batch_per_chip cannot be combined with --config={DEMO}, which sets it; "
      "write --config.data.batch_size=VALUE",
    ),
    ([f"--config={DEMO}", "--config.optimizer.warmup=5"], "nearest: --config.optimizer.warmup_"),
    (["--variant=P0", "--config.loss.kind=hinge"], "must be one of softmax, sigmoid"),
  ],
)
def test_user_errors_are_one_line(arguments, words, cache):
  result = commands.run("profiling.step", *arguments, environment={"XDG_CACHE_HOME": str(cache)})
  assert result.returncode == 2
  assert len(result.stderr.strip().splitlines()) == 1
  assert words in result.stderr
