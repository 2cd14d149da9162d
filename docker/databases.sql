-- Optuna and MLflow both have a table alembic_version, so each needs its own database. The study database is POSTGRES_DB.
CREATE DATABASE mlflow;
