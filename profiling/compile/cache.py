"""Caches what compiling processes write, in folders named by a key of everything it depends on.

The key covers what the compiling process is given (request, environment, versions of the compiling
packages) and the source that it executes (`profiling.compile.import_closure` of the worker). The
cache keeps the compiler's own texts. They are parsed anew each time, so the source of the parsers
is not in the key.
"""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from nfnet.errors import UserError
from profiling.compile.import_closure import import_closure
from profiling.compile.worker_process import ENVIRONMENT, ROOT, run_worker_process

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
"""Distributions whose versions decide what is compiled."""

_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")


def run_worker(
  module: str,
  request: dict[str, Any],
  *,
  what: str,
  dumps: bool,
  cache: pathlib.Path | None = None,
  **limits: Any,
) -> tuple[pathlib.Path, dict[str, str]]:
  """Runs a module that compiles, or finds the results of an earlier run.

  Args:
    module: dotted name of the worker (see `profiling.compile.worker`).
    request: JSON values for the worker.
    what: name of the work in messages and progress.
    dumps: whether the compiler writes texts about Pallas kernels.
    cache: folder of results; None is the user's cache folder.
    **limits: see `profiling.compile.worker_process.run_worker_process`.

  Returns:
    The folder with the module's results, and the versions of the compiling packages.

  Raises:
    UserError: a package is missing, or `run_worker_process` raises it.
  """
  versions = installed_versions()
  folder = (cache or _default_cache()) / cache_key(module, request, versions, dumps=dumps)
  if not (folder / "result.json").exists():
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished_") as temporary:
      # In a folder of its own, because only its owner may read a temporary one.
      unfinished = pathlib.Path(temporary) / "results"
      unfinished.mkdir()
      run_worker_process(module, request, unfinished, what=what, dumps=dumps, **limits)
      # Another process may have compiled the same request meanwhile; its results are equal.
      shutil.rmtree(folder, ignore_errors=True)
      unfinished.rename(folder)
  return folder, versions


def cache_key(
  module: str,
  request: Mapping[str, Any],
  versions: Mapping[str, str],
  *,
  dumps: bool,
  root: pathlib.Path = ROOT,
) -> str:
  """Returns the name of the folder for the results of a worker.

  Args:
    module: dotted name of the worker.
    request: JSON values for the worker.
    versions: versions of the compiling packages, by distribution.
    dumps: whether the compiler writes texts about Pallas kernels.
    root: folder of the top-level packages, whose source is read.
  """
  inherited = {name: os.environ.get(name, "") for name in _FLAGS}
  given = [module, dict(request), dict(versions), ENVIRONMENT, inherited, dumps]
  digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode())
  for path in import_closure(module, root):
    content = (root / path).read_bytes()
    digest.update(f"\0{path} {len(content)}\0".encode())
    digest.update(content)
  return digest.hexdigest()


def installed_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
  """Returns the versions of distributions.

  Raises:
    UserError: a distribution is not installed.
  """
  try:
    return {package: importlib.metadata.version(package) for package in packages}
  except importlib.metadata.PackageNotFoundError as error:
    raise UserError(
      f"package {error.name} is not installed; the TPU compiler, for Linux on x86-64 only, "
      "comes with: pip install 'jax[tpu]'"
    ) from error


def _default_cache() -> pathlib.Path:
  """Returns the folder of results in the user's cache folder."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "nfnets-at-scale" / "compilations"
