"""What a recipe needs of a machine that is not there: memory, time, cost."""

from tokzoo.train.plan.planning import Plan, plan
from tokzoo.train.plan.roofline import Assumptions
from tokzoo.train.plan.search import search

__all__ = ["Assumptions", "Plan", "plan", "search"]
