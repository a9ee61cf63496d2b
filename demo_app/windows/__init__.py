"""What is seen: no HTTP, no threads, no processes; only signals of the workers."""
