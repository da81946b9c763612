"""The course's own code: exercises with their pictures and checks, predictions, the notebooks' tools.

A notebook says `from course import Predictions, exercises, plain_chart`; it finds this folder beside itself.
"""

from course.chart import plain_chart
from course.predictions import Predictions

__all__ = ["Predictions", "plain_chart"]
