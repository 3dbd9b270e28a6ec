"""The process mesh and quiet start-up."""
