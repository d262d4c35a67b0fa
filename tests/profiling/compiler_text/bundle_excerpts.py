"""Reads what dump_kernels.py kept of the compiler's texts about its kernels."""

import gzip

from tests.repository import ROOT

_FOLDER = ROOT / "tests" / "profiling" / "excerpts" / "bundles"


def excerpt(name):
  """Returns the text of a file that may be compressed."""
  path = _FOLDER / name
  if path.exists():
    return path.read_text()
  return gzip.decompress(path.with_name(path.name + ".gz").read_bytes()).decode()


def schedule(name):
  """Returns the final schedule of a kernel, for example "v4_matmul"."""
  return excerpt(f"{name}_final_bundles.txt")


def utilization(name):
  """Returns the use of the units in each bundle of a kernel."""
  return excerpt(f"{name}_utilization.txt")
