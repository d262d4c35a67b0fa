"""Compiled programs kept on disk, so that a run which starts again does not compile again.

    python -m train.pretrain ... --compilation_cache=DIR

Any number of runs and processes may have the same folder. JAX's key of a program holds the program,
the devices, the compiler's version and its flags, so a changed program is another file, and nothing
has to be emptied by hand. Of several processes that run one program together, the first one writes.
(Of CPUs, each process has keys of its own: there only the first one finds its programs again.)

A file that cannot be read, because another run is still writing it or was killed while it did, is
compiled anew with a warning; JAX does not write it again, so where the warning comes back at every
start, the folder should be deleted.

Off by default: the programs of a large network are hundreds of megabytes that nobody asked for, and
a CPU's hold the instructions of that one CPU. `python -m train.launch` always sets it.
"""

import os
import pathlib

import jax
from absl import flags

from nfnet.errors import UserError

_FOLDER = flags.DEFINE_string(
  "compilation_cache", None, "Folder for compiled programs; runs and processes may share it."
)


def use_compilation_cache() -> None:
  """Keeps compiled programs where the flag says, if it says; before anything is compiled.

  Raises:
    UserError: the folder cannot be written.
  """
  if _FOLDER.value is None:
    return
  if "://" in _FOLDER.value:
    raise UserError(
      f"--compilation_cache={_FOLDER.value}: not a folder; mount the bucket and give its path"
    )
  folder = pathlib.Path(_FOLDER.value).absolute()
  try:
    folder.mkdir(parents=True, exist_ok=True)
    reason = None if os.access(folder, os.W_OK | os.X_OK) else "no permission"
  except OSError as error:
    reason = error.strerror
  if reason is not None:
    raise UserError(
      f"--compilation_cache={_FOLDER.value} cannot be written: {reason}; give another folder"
    )
  jax.config.update("jax_compilation_cache_dir", str(folder))
  # XLA's own caches, for GPUs only, would put the folder's name into JAX's keys: moved or mounted
  # elsewhere, all of it would be useless.
  jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
