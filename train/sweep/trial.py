"""One run of a sweep."""

import dataclasses

from train.sweep.learning_rate_search import Cell


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
  """What is run, and how large it is.

  Attributes:
    name: says variant, epochs and learning rate.
    variant: of the network.
    epochs: budget.
    learning_rate: peak.
    parameters: scalars of the network.
    steps: of the whole run.
    images: trained on in all steps.
    compute_flops: of all steps: 6 x multiply-adds at the training resolution x images.
  """

  name: str
  variant: str
  epochs: float
  learning_rate: float
  parameters: int
  steps: int
  images: int
  compute_flops: int

  @property
  def cell(self) -> Cell:
    """To the search for rates."""
    return Cell(parameters=self.parameters, epochs=self.epochs)

  @property
  def order(self) -> tuple[float, ...]:
    """To sort by: small and short first, so that the search has smaller cells to go by."""
    return (self.compute_flops, self.parameters, self.epochs, -self.learning_rate)


def trial_name(variant: str, epochs: float, learning_rate: float) -> str:
  """For example F0_epochs-0.5_rate-0.4; other values have another name."""
  return f"{variant}_epochs-{as_text(epochs)}_rate-{as_text(learning_rate)}"


def as_text(number: float) -> str:
  """As short as a number can be that is read back as the same."""
  return repr(float(number)).removesuffix(".0")
