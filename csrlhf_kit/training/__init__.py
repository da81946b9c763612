"""Training: supervised fine-tuning, reward and cost models, PPO under constraints, DPO and its variants.

Imports theory, data, kernels and models; knows nothing of evaluation or of any command. Start with ppo.py (a run,
step by step), ppo_update.py (one update) and constraints/ (how a cost limit enters it).
"""
