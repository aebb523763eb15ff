"""The stack: Prefect, MLflow, workers and the watchdog of one home, kept alive by a supervisor."""
