import pytest

from nfnet.weights.checkpoint_digests import DIGESTS_FILE, find_damage, write_digests


@pytest.fixture
def checkpoint(tmp_path):
  """A folder as Orbax leaves it: two items, and a file that it writes when it commits."""
  for name in ("params/d/0", "experiment/metadata"):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(name)
  write_digests(tmp_path)
  (tmp_path / "_CHECKPOINT_METADATA").write_text("the time")
  return tmp_path


def test_what_was_saved_is_intact(checkpoint):
  assert find_damage(checkpoint) is None
  assert find_damage(checkpoint, ["params"]) is None


@pytest.mark.parametrize(
  ("name", "content", "damage"),
  [
    ("params/d/1", "more", f"params/d/1 is not in {DIGESTS_FILE}"),
    ("params/d/0", None, "params/d/0 is missing"),
    ("params/d/0", "other", f"params/d/0 does not have its SHA-256 in {DIGESTS_FILE}"),
  ],
)
def test_a_file_more_or_less_or_another_is_named(checkpoint, name, content, damage):
  if content is None:
    (checkpoint / name).unlink()
  else:
    (checkpoint / name).write_text(content)
  assert find_damage(checkpoint) == damage
  assert find_damage(checkpoint, ["params"]) == damage
  assert find_damage(checkpoint, ["experiment"]) is None
