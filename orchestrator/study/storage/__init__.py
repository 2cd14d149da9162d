"""The study database, an ordinary Optuna storage."""
