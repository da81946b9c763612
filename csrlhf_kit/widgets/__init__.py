"""Widgets for notebooks: sliders on exact problems and recorded runs, labelling, a chat arena, a run's live curves.

Each is one function. Its file only draws; what it shows is computed in a file beside it that needs no screen:
penalty_data, tradeoff_data, inspect_data, watch_data, labels, and evaluation/votes.py. view.py is shared by all.
"""

from csrlhf_kit.widgets.annotate import annotate
from csrlhf_kit.widgets.arena import arena
from csrlhf_kit.widgets.inspect_cost import inspect_cost
from csrlhf_kit.widgets.penalty import explore_penalty
from csrlhf_kit.widgets.tradeoff import explore_tradeoff
from csrlhf_kit.widgets.watch import watch

__all__ = ["annotate", "arena", "explore_penalty", "explore_tradeoff", "inspect_cost", "watch"]
