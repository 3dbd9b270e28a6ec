"""What a run will need and send, told before it starts and without its devices. Starts without torch."""
