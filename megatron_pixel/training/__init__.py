"""The training loop and what it needs: schedule, metrics, evaluation, checkpoints, guards."""
