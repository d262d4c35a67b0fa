import json
import pickle

import numpy as np
import pytest

from nfnet.weights.haiku import from_haiku, save_haiku, to_haiku
from tests.nfnet.weights.whole_networks import assert_bit_equal, without_memory
from tests.repository import ROOT

GOLDEN = ROOT / "tests" / "nfnet" / "golden"


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
