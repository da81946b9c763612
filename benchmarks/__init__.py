"""What is measured: kernels against their baselines, PPO steps, intervals. Each file runs by itself."""
