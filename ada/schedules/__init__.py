"""Schedules to choose from: ladders, the tree that decisions walk, mixtures of static schedules and the oracle."""

from ada.schedules.frontier import Mixture, gap_closed, oracle_errors
from ada.schedules.ladder import Ladder, LadderError
from ada.schedules.tree import Tree, entropy, expected

__all__ = ["Ladder", "LadderError", "Mixture", "Tree", "entropy", "expected", "gap_closed", "oracle_errors"]
