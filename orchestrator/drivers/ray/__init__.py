"""The Ray driver: the only folder that imports Ray."""

import os

# What Ray and Tune read when they are imported, whoever of us does it first.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its banner ignores verbose=0
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C is the command line's to answer
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1e9")  # nor is Tune's snapshot ever read
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # the record tells them
