"""Trains learnable prompts on a frozen ViT; has never heard of Ray, Optuna or MLflow."""
