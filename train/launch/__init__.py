"""Starts training on a TPU v4 slice: by queued resources, GKE's JobSet, or xpk.

`python -m train.launch` (`__main__.py`) checks a run and writes what starts it; it starts nothing
itself. `job.py` is the run and what each worker runs, `slices.py` the shapes of slices. Each way to
start has a module, with its template beside it. All run the image of `Dockerfile`.
"""
