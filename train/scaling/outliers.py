"""Outliers: runs whose loss does not fit what the other runs predict.

Each run is judged by a fit to all other runs, so that it cannot hide itself. Its deviation from
that fit is multiplied by sqrt(1 - h), where h is its leverage, because deviations scatter more at
the ends of a curve. These values t become modified z-scores, 0.6745 * (t - median) / MAD,
and a run beyond 3.5 is flagged: score and threshold are those of Iglewicz and Hoaglin, "How to
Detect and Handle Outliers", 1993. In simulations with normal errors, one in 15 tables of paper A's
size has a flagged run.

If there are enough runs, each is judged by the smoothness of its own network's curve. A run that
was interrupted or saw other data makes its curve uneven, whereas all networks together may disagree
with a law that is merely wrong. In these curves, log(loss) is a parabola of log(epochs), with a
level and a slope for each network and one curvature for all. Several flags on one curve say that it
is uneven, but not which of its runs are at fault. Without curves, runs are compared with the joint
law.
"""

import dataclasses

import numpy as np

from train.scaling.laws.joint_law import JointLaw, fit_joint_law
from train.scaling.laws.regression import MINIMAL_DEVIATION
from train.scaling.points import Points

THRESHOLD = 3.5
_NORMAL_QUARTILE = 0.6745
MINIMAL_RUNS_A_CURVE = 3
MINIMAL_FREEDOM = 5
"""Fewest degrees of freedom of the fit: with fewer, the spread of deviations is unknown."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judgment:
  """The deviation of each run from what the other runs predict.

  Attributes:
    by: basis of the comparison, "own curve" or "joint law".
    deviations: [n] logarithms of loss over prediction; NaN for runs that are not judged.
    scores: [n] modified z-scores; NaN for runs that are not judged.
    flagged: [n] booleans: whether a run is an outlier.
  """

  by: str
  deviations: np.ndarray
  scores: np.ndarray
  flagged: np.ndarray


def judge(points: Points, joint: JointLaw | None) -> Judgment | None:
  """Compares each run with the others.

  Args:
    points: runs.
    joint: law fitted to all of them.

  Returns:
    The judgment; None if there are too few runs both for curves and for the joint law.
  """
  names, index, counts = np.unique(points.names, return_inverse=True, return_counts=True)
  rows = np.flatnonzero(counts[index] >= MINIMAL_RUNS_A_CURVE)
  networks = int(np.sum(counts >= MINIMAL_RUNS_A_CURVE))
  if len(rows) and len(rows) - (2 * networks + 1) >= MINIMAL_FREEDOM:
    own = (index[rows, None] == np.arange(len(names))[counts >= MINIMAL_RUNS_A_CURVE]).astype(float)
    epochs = np.log(points.epochs[rows])[:, None]
    design = np.concatenate([own, own * epochs, epochs**2], axis=1)
    return _judgment("own curve", len(points), rows, *_deleted(design, np.log(points.loss[rows])))
  if joint is not None and len(points) - 5 >= MINIMAL_FREEDOM:
    rows = np.arange(len(points))
    return _judgment("joint law", len(points), rows, *_deleted_from_joint(points, joint))
  return None


def modified_z_scores(values: np.ndarray) -> np.ndarray:
  """Returns 0.6745 * (values - median) / MAD; MAD is at least that of numbers exact to 1e-5."""
  centered = values - np.median(values)
  mad = np.median(np.abs(centered))
  return _NORMAL_QUARTILE * centered / max(mad, _NORMAL_QUARTILE * MINIMAL_DEVIATION)


def _judgment(
  by: str, count: int, rows: np.ndarray, deviations: np.ndarray, leverages: np.ndarray
) -> Judgment:
  """Scores the judged `rows` of `count` runs."""
  scores = modified_z_scores(deviations * np.sqrt(1 - leverages))
  all_deviations, all_scores = np.full(count, np.nan), np.full(count, np.nan)
  all_deviations[rows], all_scores[rows] = deviations, scores
  # NaN compares as False, so runs that are not judged are not flagged.
  return Judgment(
    by=by, deviations=all_deviations, scores=all_scores, flagged=np.abs(all_scores) > THRESHOLD
  )


def _deleted(design: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns deviations from least squares fits without the run itself, and leverages.

  For a linear fit the deviations are residual / (1 - leverage), so nothing is fitted again.
  """
  inverse = np.linalg.pinv(design)
  # A run with a leverage of 1 determines its curve alone and cannot deviate from it.
  leverages = np.minimum(np.einsum("ij,ji->i", design, inverse), 1 - 1e-9)
  residuals = values - design @ (inverse @ values)
  return residuals / (1 - leverages), leverages


def _deleted_from_joint(points: Points, joint: JointLaw) -> tuple[np.ndarray, np.ndarray]:
  """Returns deviations from joint laws fitted without the run, and its leverages.

  Leverages are those of the linear fit in the tangent plane of the law.
  """
  deviations = np.zeros(len(points))
  for run in range(len(points)):
    others = points.take(np.arange(len(points)) != run)
    law = fit_joint_law(others, joint) or joint
    predicted = law.loss(points.parameters[run], points.epochs[run])
    deviations[run] = np.log(points.loss[run] / predicted)
  size = joint.size_coefficient * points.parameters**-joint.size_exponent
  epochs = joint.epochs_coefficient * points.epochs**-joint.epochs_exponent
  columns = (
    np.ones(len(points)),
    size,
    size * np.log(points.parameters),
    epochs,
    epochs * np.log(points.epochs),
  )
  # Scaled, because the columns differ by many orders of magnitude, which would be ill-conditioned.
  tangent = np.stack(columns, axis=1) / joint.loss(points.parameters, points.epochs)[:, None]
  tangent = tangent / np.linalg.norm(tangent, axis=0)
  leverages = np.einsum("ij,ji->i", tangent, np.linalg.pinv(tangent))
  return deviations, np.minimum(leverages, 1 - 1e-9)
