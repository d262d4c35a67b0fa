import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfnet.block_arrangement import arrange_blocks, block_key, is_stacked

KEYS = ("0", "1:3", "3")


def tree(array=np.asarray):
  blocks = {
    str(i): {"gain": array([i, 10 + i]), "skip_gain": array(np.float32(i))} for i in range(4)
  }
  return {"stem": {"gain": array([5])}, "blocks": blocks}


def assert_equal(found, expected):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_stacks_and_takes_apart_again():
  stacked = arrange_blocks(tree(), KEYS)
  assert sorted(stacked["blocks"]) == sorted(KEYS)
  np.testing.assert_array_equal(stacked["blocks"]["1:3"]["gain"], [[1, 11], [2, 12]])
  np.testing.assert_array_equal(stacked["blocks"]["1:3"]["skip_gain"], [1, 2])
  np.testing.assert_array_equal(stacked["blocks"]["3"]["gain"], [3, 13])
  assert_equal(arrange_blocks(stacked), tree())


@pytest.mark.parametrize("keys", [("0:4",), ("0:2", "2:4"), ("0", "1", "2", "3"), KEYS])
def test_goes_from_any_arrangement_to_any_other(keys):
  direct = arrange_blocks(tree(), keys)
  assert_equal(arrange_blocks(arrange_blocks(tree(), KEYS), keys), direct)


def test_what_is_arranged_already_is_not_copied():
  stacked = arrange_blocks(tree(), KEYS)
  assert arrange_blocks(stacked, KEYS)["blocks"] is stacked["blocks"]


def test_finds_blocks_at_any_depth_and_leaves_the_rest():
  state = {"step": np.int32(3), "momentum": tree(), "other": None}
  stacked = arrange_blocks(state, KEYS)
  assert_equal(stacked, {**state, "momentum": arrange_blocks(tree(), KEYS)})


@pytest.mark.parametrize(("array", "kind"), [(np.asarray, np.ndarray), (jnp.asarray, jax.Array)])
def test_arrays_stay_where_they_are(array, kind):
  stacked = arrange_blocks(tree(array), KEYS)
  assert all(isinstance(leaf, kind) for leaf in jax.tree.leaves(stacked))


def test_describes_shapes_and_shardings_as_it_does_arrays():
  mesh = jax.make_mesh((len(jax.devices()),), ("data",))
  sharding = jax.NamedSharding(mesh, jax.P("data"))
  leaf = jax.ShapeDtypeStruct((16,), jnp.float32, sharding=sharding)
  described = {"blocks": {"0": {"gain": leaf}, "1": {"gain": leaf}}}
  stacked = arrange_blocks(described, ["0:2"])["blocks"]["0:2"]["gain"]
  assert stacked.shape == (2, 16)
  assert stacked.dtype == jnp.float32
  assert stacked.sharding == jax.NamedSharding(mesh, jax.P(None, "data"))
  assert arrange_blocks({"blocks": {"0:2": {"gain": stacked}}}) == described


def test_a_missing_block_is_an_error():
  with pytest.raises(KeyError, match="4"):
    arrange_blocks(tree(), ("0", "1:5"))


def test_keys_are_slices():
  assert block_key(range(7, 8)) == "7"
  assert block_key(range(7, 12)) == "7:12"
  assert is_stacked("7:12")
  assert not is_stacked("7")
