"""The Ray driver: the only folder that imports Ray."""

import os

# Ray and Tune read these variables when they are imported, so they are set before any module of this folder imports
# them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# The banner of the new output ignores verbose=0.
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
# `drivers/signals.py` handles Ctrl-C.
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
# Tune's own snapshot of a run is never read: a sweep resumes from the study database.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")
# Errors of trials are in the study database.
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
