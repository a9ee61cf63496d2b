"""What works in threads and processes, and tells the windows by signals."""
