"""What `csrlhf bench` runs: kernels against their baselines, and one PPO step."""
