"""Models: the frozen base, the roles on it (policy, reference, reward, cost, critic), scorers, and rollouts.

Builds on data/ for the chat format, on kernels/, and on the hall.
"""
