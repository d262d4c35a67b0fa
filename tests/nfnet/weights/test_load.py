import inspect
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet
from nfnet.weights.haiku import from_haiku, save_haiku, to_haiku
from nfnet.weights.haiku_pickle import write_haiku
from nfnet.weights.load import _check_model, load, load_checkpoint, load_weights
from nfnet.weights.network_matching import Weights
from nfnet.weights.timm import save_timm
from tests.nfnet.weights.whole_networks import NUM_CLASSES, assert_bit_equal, without_memory
from tests.train.saved_checkpoint import save_checkpoint
from train.config.experiment import Experiment, Model
from train.config.json_conversion import to_json

SAVERS = {"haiku": save_haiku, "timm": save_timm}


@pytest.mark.parametrize("kind", SAVERS)
@pytest.mark.parametrize("asked", ["P0", None])
def test_files_come_back_bit_for_bit(kind, asked, parameters, tmp_path):
  path = str(tmp_path / "weights")
  SAVERS[kind](path, parameters, "P0")
  weights = load_weights(path, asked)
  assert_bit_equal(weights.parameters, parameters)
  assert (weights.variant, weights.bottleneck) == ("P0", "paper")
  assert (weights.num_classes, weights.metadata) == (NUM_CLASSES, None)


def test_files_and_checkpoints_may_be_in_a_bucket(parameters, workdir, gcs, tmp_path):
  folder, trained, averaged = workdir
  save_timm(str(tmp_path / "weights"), parameters, "P0")
  gcs.upload(tmp_path, "released")
  gcs.upload(folder, "run")
  # A save under way, or one that was killed.
  gcs.put("run/checkpoints/2/params/_METADATA", b"")
  assert_bit_equal(load_weights(f"{gcs.url}/released/weights").parameters, parameters)
  assert_bit_equal(load_weights(f"{gcs.url}/run").parameters, averaged)
  assert_bit_equal(
    load_weights(f"{gcs.url}/run/checkpoints/1", prefer_ema=False).parameters, trained
  )
  gcs.put("copy/run.json", b'{"run": "another"}')
  gcs.upload(folder / "checkpoints", "copy/checkpoints")
  for path, message in (
    ("released/missing", "cannot be read: there is no such object"),
    ("copy", f"checkpoint {gcs.url}/copy/checkpoints/1 is not what its place says"),
    ("released", "holds no checkpoint"),
  ):
    with pytest.raises(UserError, match=message):
      load_weights(f"{gcs.url}/{path}")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(dtype, parameters, tmp_path):
  path = tmp_path / "weights.npz"
  tree = jax.tree.map(lambda array: array.astype(dtype), to_haiku(parameters, "P0"))
  write_haiku(str(path), tree)
  weights = load_weights(str(path))
  assert_bit_equal(
    weights.parameters, jax.tree.map(lambda a: a.astype(dtype).astype(np.float32), parameters)
  )


def test_the_bottleneck_can_be_asked_for(parameters, tmp_path):
  path = str(tmp_path / "weights.npz")
  save_haiku(path, parameters, "P0")
  assert load_weights(path, "P0", bottleneck="released").bottleneck == "released"
  tree = to_haiku(without_memory("F0+", 3, "released"), "F0+")
  assert from_haiku(tree, "F0+").bottleneck == "released"


def test_safetensors_of_something_else_are_an_error(tmp_path):
  path = str(tmp_path / "weights.safetensors")
  safetensors.numpy.save_file({"layer": np.zeros(3, np.float32)}, path)
  with pytest.raises(UserError, match=r"stem\.conv1\.weight is missing; they fit no variant"):
    load_weights(path, "P0")


@pytest.mark.parametrize("save", SAVERS.values())
def test_a_place_that_cannot_be_written_is_an_error(save, parameters, tmp_path):
  with pytest.raises(UserError, match="cannot be written"):
    save(str(tmp_path / "missing" / "weights"), parameters, "P0")


def test_a_missing_file_is_an_error(tmp_path):
  with pytest.raises(UserError, match="cannot be read: No such file"):
    load_weights(str(tmp_path / "missing.npz"), "P0")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("workdir")
  experiment = Experiment(name="test", model=Model(variant="P0"))
  trained = initial_parameters(NFNet("P0", NUM_CLASSES), seed=0)
  averaged = initial_parameters(NFNet("P0", NUM_CLASSES), seed=1)
  names = ["a"] * NUM_CLASSES
  save_checkpoint(folder, trained, ema=averaged, experiment=to_json(experiment), class_names=names)
  return folder, trained, averaged


@pytest.mark.parametrize("prefer_ema", [False, True])
@pytest.mark.parametrize("inner", ["", "checkpoints/1"])
def test_checkpoints_of_this_project(workdir, prefer_ema, inner):
  folder, trained, averaged = workdir
  weights = load_weights(str(folder / inner), prefer_ema=prefer_ema)
  assert_bit_equal(weights.parameters, averaged if prefer_ema else trained)
  assert (weights.variant, weights.num_classes) == ("P0", NUM_CLASSES)
  assert weights.metadata["class_names"] == ["a"] * NUM_CLASSES


def test_a_checkpoint_of_another_variant_is_an_error(workdir):
  with pytest.raises(UserError, match="were trained as variant P0, not N0"):
    load_weights(str(workdir[0]), "N0")


def turned(parameters):
  return jax.tree.map(lambda array: array.T, parameters)


OTHER_NETWORKS = {
  "an array less": ({}, lambda p: {k: v for k, v in p.items() if k != "stem"}, "is missing"),
  "an array more": ({}, lambda p: {**p, "more": np.zeros(3)}, "more is not a parameter of it"),
  "other shapes": ({}, turned, "has shape"),
  "integers": ({}, lambda p: jax.tree.map(lambda a: a.astype(np.int32), p), "is int32"),
  "not finite": ({}, lambda p: jax.tree.map(lambda a: a / np.float32(0), p), "are not finite"),
  "another variant": ({"variant": "P1"}, lambda p: p, "do not fit P1: .*look like P0"),
  "no bottleneck": ({"bottleneck": "wide"}, lambda p: p, "knows no bottleneck 'wide'"),
}


@pytest.mark.filterwarnings("ignore:(divide|invalid value)")
@pytest.mark.parametrize("kind", OTHER_NETWORKS)
def test_a_checkpoint_of_another_network_than_it_says_is_an_error(workdir, kind, tmp_path):
  changes, change, message = OTHER_NETWORKS[kind]
  experiment = to_json(Experiment(name="test", model=Model(variant="P0")))
  experiment["model"].update(changes)
  save_checkpoint(tmp_path, change(workdir[1]), experiment=experiment)
  with pytest.raises(UserError, match=message):
    load_checkpoint(str(tmp_path))


def test_parameters_are_compared_with_the_network(tmp_path):
  path = str(tmp_path / "P0.npz")
  model = NFNet("P0", 5)
  parameters = initial_parameters(model, 0)
  save_haiku(path, parameters, "P0")
  loaded = load(pathlib.Path(path), model)
  jax.tree.map(np.testing.assert_array_equal, loaded, parameters)
  assert isinstance(loaded["classifier"]["bias"], jax.Array)
  for other, message in (
    (
      NFNet("P0", 6),
      r"have num_classes=5, the network has 6: build it with NFNet\('P0', num_classes=5\); or, for "
      r'a new classifier, .* replace parameters\["classifier"\]',
    ),
    (NFNet("N0", 5), "do not fit N0.*they look like P0"),
  ):
    with pytest.raises(UserError, match=message):
      load(path, other)


def test_a_checkpoints_formulas_are_compared_with_the_networks(workdir):
  path = str(workdir[0])
  weights = load_weights(path)
  asked = {"activation": "relu", "bottleneck": weights.bottleneck}
  model = NFNet(weights.variant, weights.num_classes, **asked)
  with pytest.raises(UserError, match=r"have activation='\w+', the network has 'relu': build it"):
    load(path, model)


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b"", "are empty: get it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "are a Git LFS pointer"),
    (b"<html>404", "are a web page"),
    (
      b"PK\x03\x04",
      "are a zip archive, as torch.save and numpy.savez write: save the tensors",
    ),
  ],
)
def test_what_people_have_in_the_place_of_weights(tmp_path, content, message):
  path = tmp_path / "weights"
  path.write_bytes(content)
  with pytest.raises(UserError, match=message):
    load_weights(str(path))


def test_what_is_no_network_is_an_error():
  with pytest.raises(ValueError, match="model='P0': must be the network for which the parameters"):
    # Without the check of types that tests add.
    inspect.unwrap(load)("weights", "P0")


def test_the_bottleneck_is_compared_where_there_are_two():
  known = {"parameters": {}, "bottleneck": "released", "num_classes": 3, "metadata": None}
  with pytest.raises(UserError, match="have bottleneck='released', the network has 'paper'"):
    _check_model(Weights(variant="F0+", **known), NFNet("F0+", 3), "weights")
  _check_model(Weights(variant="F0", **known), NFNet("F0", 3), "weights")
