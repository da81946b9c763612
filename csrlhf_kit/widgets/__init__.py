"""What a person drags, clicks and labels; each is one function from a notebook, a thin view over plain functions."""

from csrlhf_kit.widgets.annotate import annotate
from csrlhf_kit.widgets.arena import arena
from csrlhf_kit.widgets.inspect_cost import inspect_cost
from csrlhf_kit.widgets.penalty import explore_penalty
from csrlhf_kit.widgets.tradeoff import explore_tradeoff
from csrlhf_kit.widgets.watch import watch

__all__ = ["annotate", "arena", "explore_penalty", "explore_tradeoff", "inspect_cost", "watch"]
