"""What a student is taught by: pure loss functions on one registry, and the objective."""

from tutelage.losses.base import LOSSES, Loss, loss
from tutelage.losses.objective import Objective, ObjectiveValue, Term

__all__ = ["LOSSES", "Loss", "Objective", "ObjectiveValue", "Term", "loss"]
