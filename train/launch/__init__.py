"""Starts training on a TPU v4 slice: with queued resources, a JobSet on GKE, or xpk.

`python -m train.launch` (`__main__.py`) checks a run and prints the script, manifest or command
that starts it; it starts nothing itself. `job.py` describes the run and the command of each worker,
`slices.py` the shapes of slices, and `mount.py` the folder that workers share. Each way to start a
run has a module, with its template beside it. All of them run the image that `Dockerfile` builds.
"""
