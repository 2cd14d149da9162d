"""Log sweeps to MLflow. No other folder imports MLflow."""
