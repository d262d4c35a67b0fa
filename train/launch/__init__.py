"""Starts training on a TPU v4 slice: by queued resources, GKE's JobSet, or xpk.

`python -m train.launch` (`__main__.py`) checks a run and writes what starts it; it starts nothing
itself. `job.py` has the run and the command of each worker, `slices.py` the shapes of slices,
`mount.py` the folder that workers share. Each way to start has a module, with its template beside
it. All run the image that `Dockerfile` builds.
"""
