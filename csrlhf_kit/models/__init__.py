"""Models: the frozen base, the roles on it (policy, reference, reward, cost, critic), scorers, and rollouts.

Builds on data/ for the chat format, on kernels/, and on the hall. Here, without torch: words that options choose by.
"""

from typing import Literal

CostSign = Literal["checked", "flipped", "trusted"]
Sampler = Literal["loop", "static"]
"""How answers are sampled. loop: by the kit, token by token; static: by `generate` with a cache of fixed size."""
