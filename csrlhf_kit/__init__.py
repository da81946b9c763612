"""CS-RLHF Kit: constrained RLHF that a student can run tonight and a researcher can trust."""

import os

# libgomp's idle threads spin by default; with any other busy process on the machine a training
# step then takes seconds instead of milliseconds. It has to be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

__version__ = "0.1.0"
