-- Optuna and MLflow both keep a table alembic_version, so they need a database each. The record's is POSTGRES_DB.
CREATE DATABASE mlflow;
