"""Evaluation: what a policy or a judge does, measured with intervals; and the one reader of recorded results.

Imports theory, data, world and models; knows nothing of training or of any command.
"""
