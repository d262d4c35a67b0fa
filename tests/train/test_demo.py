import jax
import pytest

from train import demo
from train.data.manifest import load_manifest


@pytest.fixture
def without_training(monkeypatch):
  """Leaves all data sets and folders, but trains nothing."""
  monkeypatch.setattr(demo, "train", lambda *unused, **options: [])
  before = jax.config.jax_compilation_cache_dir
  yield
  jax.config.update("jax_compilation_cache_dir", before)


@pytest.mark.usefixtures("without_training")
def test_digits_that_a_killed_demo_has_begun_are_finished(tmp_path, capsys):
  (tmp_path / "digits" / "partial").mkdir(parents=True)
  demo.demo(tmp_path)
  digits = load_manifest(tmp_path / "digits")
  assert digits.splits["train"].records == 1000
  assert not (tmp_path / "digits" / "partial").exists()
  assert "not on record" in capsys.readouterr().out
  # They are not made again.
  before = (tmp_path / "digits" / "manifest.json").stat()
  demo.demo(tmp_path)
  assert (tmp_path / "digits" / "manifest.json").stat() == before
