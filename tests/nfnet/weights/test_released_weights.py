import json
import pathlib
import pickle

import jax
import numpy as np
import pytest
import safetensors.numpy

from nfnet.errors import UserError
from nfnet.initialization import initial_parameters
from nfnet.model import NFNet, parameter_shapes
from nfnet.weights.haiku_pickle import write_haiku
from nfnet.weights.released_weights import (
  from_haiku,
  load_weights,
  save_haiku,
  save_timm,
  to_haiku,
  to_timm,
)
from train.config.experiment import Experiment, Model
from train.config.json_conversion import to_json
from train.run.checkpoints import Checkpoints

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
NUM_CLASSES = 7


def distinct_parameters(name, **arguments):
  """Every parameter differs from every other one, zeros included."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda shape: np.asarray(rng.standard_normal(shape.shape), np.float32),
    parameter_shapes(NFNet(name, NUM_CLASSES, **arguments)),
  )


@pytest.fixture(scope="module")
def parameters():
  return distinct_parameters("P0")


def without_memory(name, num_classes=1000, bottleneck="paper"):
  """Parameters of a large variant that take no memory."""
  shapes = parameter_shapes(NFNet(name, num_classes, bottleneck=bottleneck))
  return jax.tree.map(lambda shape: np.broadcast_to(np.float32(0), shape.shape), shapes)


def assert_bit_equal(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
    assert a.dtype == np.float32
    np.testing.assert_array_equal(a, b)


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


def test_haiku_files_are_plain_pickles(parameters, tmp_path):
  path = tmp_path / "weights.npz"
  save_haiku(str(path), parameters, "P0")
  with open(path, "rb") as file:
    tree = pickle.load(file)
  assert_bit_equal(tree, to_haiku(parameters, "P0"))
  np.testing.assert_array_equal(
    tree["NFNet/~/nf_block_2/~/conv1b"]["w"], parameters["blocks"]["2"]["conv1b"]["weight"]
  )


@pytest.mark.parametrize(
  ("file", "variant", "bottleneck"),
  [
    ("haiku_F0_64px", "F0", "paper"),
    ("haiku_F1_96px", "F1", "paper"),
    ("haiku_F0plus_rounded_64px", "F0+", "released"),
  ],
)
def test_haiku_names_and_shapes_are_the_published_ones(file, variant, bottleneck):
  with np.load(GOLDEN / f"{file}.npz") as golden:
    expected = {
      str(key): tuple(json.loads(shape))
      for key, shape in zip(golden["keys"], golden["shapes"], strict=True)
    }
  tree = to_haiku(without_memory(variant, bottleneck=bottleneck), variant)
  shapes = {
    f"{module}/{leaf}": array.shape
    for module, leaves in tree.items()
    for leaf, array in leaves.items()
  }
  assert shapes == expected
  assert from_haiku(tree).bottleneck == bottleneck


# From the state dict of timm 1.0.31's dm_nfnet_f0; its other sizes follow the same rules
# (https://github.com/huggingface/pytorch-image-models/blob/main/timm/models/nfnet.py).
TIMM_F0 = {
  "stem.conv1.weight": (16, 3, 3, 3),
  "stem.conv4.gain": (128, 1, 1, 1),
  "stem.conv4.bias": (128,),
  "stages.0.0.skipinit_gain": (),
  "stages.0.0.downsample.conv.weight": (256, 128, 1, 1),
  "stages.0.0.conv1.weight": (128, 128, 1, 1),
  "stages.2.5.conv2.weight": (768, 128, 3, 3),
  "stages.2.5.conv2b.weight": (768, 128, 3, 3),
  "stages.2.5.conv3.weight": (1536, 768, 1, 1),
  "stages.3.2.attn_last.fc1.weight": (768, 1536, 1, 1),
  "stages.3.2.attn_last.fc2.bias": (1536,),
  "final_conv.gain": (3072, 1, 1, 1),
  "head.fc.weight": (1000, 3072),
  "head.fc.bias": (1000,),
}


def test_timm_names_and_shapes(parameters):
  shapes = {key: array.shape for key, array in to_timm(without_memory("F0"), "F0").items()}
  assert len(shapes) == 233
  assert shapes.items() >= TIMM_F0.items()


def test_timm_filters_are_oihw_and_matrices_output_first(parameters):
  tensors = to_timm(parameters, "P0")
  ours = parameters["blocks"]["1"]
  weight = ours["conv1"]["weight"]
  theirs = tensors["stages.1.0.conv2.weight"]
  assert theirs[3, 2, 1, 0] == weight[1, 0, 2, 3]
  squeeze = tensors["stages.1.0.attn_last.fc1.weight"]
  assert squeeze[2, 5, 0, 0] == ours["squeeze_excite"]["squeeze"]["weight"][5, 2]
  assert tensors["head.fc.weight"][3, 9] == parameters["classifier"]["weight"][9, 3]
  assert tensors["stages.1.0.conv2.gain"][4, 0, 0, 0] == ours["conv1"]["gain"][4]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_become_float32(dtype, parameters, tmp_path):
  path = tmp_path / "weights.npz"
  tree = jax.tree.map(lambda array: array.astype(dtype), to_haiku(parameters, "P0"))
  write_haiku(str(path), tree)
  weights = load_weights(str(path))
  assert_bit_equal(
    weights.parameters, jax.tree.map(lambda a: a.astype(dtype).astype(np.float32), parameters)
  )


# One network for each depth, and pairs that differ in widths or in the bottleneck only.
NETWORKS = [
  *(("F0", "paper"), ("F3", "paper"), ("F0+", "paper"), ("F0+", "released")),
  *(("N1", "paper"), ("M0", "paper"), ("P0", "paper")),
]


@pytest.mark.parametrize(("name", "bottleneck"), NETWORKS)
def test_a_tree_tells_its_own_variant(name, bottleneck):
  weights = from_haiku(to_haiku(without_memory(name, 3, bottleneck), name))
  assert (weights.variant, weights.bottleneck, weights.num_classes) == (name, bottleneck, 3)


@pytest.mark.parametrize(
  ("holds", "asked", "difference"),
  [
    ("N0", "M0", r"stem_conv1/w has shape \(3, 3, 8, 8\), must be \(3, 3, 8, 16\)"),
    ("N0", "N1", "there is no NFNet/~/nf_block_2/~/conv_shortcut/w"),
    ("N1", "N0", "nf_block_1/~/conv_shortcut/w|is no parameter of it"),
    ("F0+", "F0", "stem_conv3/w has shape"),
  ],
)
def test_weights_of_another_variant_are_an_error_that_names_both(holds, asked, difference):
  tree = to_haiku(without_memory(holds, 3), holds)
  with pytest.raises(UserError, match=rf"do not fit {asked}: .*{difference}") as error:
    from_haiku(tree, asked)
  assert f"they look like {holds} (" in str(error.value)


def test_the_bottleneck_can_be_asked_for(tmp_path):
  path = str(tmp_path / "weights.npz")
  parameters = distinct_parameters("P0")
  save_haiku(path, parameters, "P0")
  assert load_weights(path, "P0", bottleneck="released").bottleneck == "released"
  tree = to_haiku(without_memory("F0+", 3, "released"), "F0+")
  assert from_haiku(tree, "F0+").bottleneck == "released"


def test_a_missing_and_a_superfluous_parameter_are_errors(parameters):
  tree = to_haiku(parameters, "P0")
  without = {module: leaves for module, leaves in tree.items() if module != "NFNet/~/linear"}
  with pytest.raises(UserError, match="there is no NFNet/~/linear/w; they fit no variant"):
    from_haiku(without, "P0")
  with pytest.raises(UserError, match="NFNet/~/surplus/w is no parameter of it"):
    from_haiku({**tree, "NFNet/~/surplus": {"w": np.zeros(3, np.float32)}}, "P0")
  with pytest.raises(UserError, match="they fit no variant; name a variant"):
    from_haiku(without)


def test_integers_are_an_error(parameters):
  tree = jax.tree.map(lambda array: array.astype(np.int32), to_haiku(parameters, "P0"))
  with pytest.raises(UserError, match="stem_conv0/w is int32, not floating point"):
    from_haiku(tree, "P0")


def test_a_damaged_safetensors_file_is_an_error(parameters, tmp_path):
  path = tmp_path / "weights.safetensors"
  save_timm(str(path), parameters, "P0")
  path.write_bytes(path.read_bytes()[:-10])
  with pytest.raises(UserError, match="cannot be read, the file may be damaged"):
    load_weights(str(path), "P0")


def test_safetensors_of_something_else_are_an_error(tmp_path):
  path = str(tmp_path / "weights.safetensors")
  safetensors.numpy.save_file({"layer": np.zeros(3, np.float32)}, path)
  with pytest.raises(UserError, match=r"there is no stem\.conv1\.weight; they fit no variant"):
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
  with Checkpoints(str(folder), keep=1) as checkpoints:
    checkpoints.save(
      1,
      params=trained,
      ema=averaged,
      optimizer={"momentum": np.zeros(3, np.float32)},
      data_state={},
      metadata={"experiment": to_json(experiment), "class_names": ["a"] * NUM_CLASSES},
    )
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
