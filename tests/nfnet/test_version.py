import importlib.metadata

import pytest

import nfnet


def test_the_version_is_that_of_the_installation():
  assert nfnet.__version__ == importlib.metadata.version("nfnets-at-scale")


def test_without_an_installation_it_is_unknown(monkeypatch):
  monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: iter(()))
  assert nfnet.__version__ == "unknown"


def test_what_there_is_not_is_an_attribute_error():
  with pytest.raises(AttributeError, match="nothing_like_this"):
    _ = nfnet.nothing_like_this
