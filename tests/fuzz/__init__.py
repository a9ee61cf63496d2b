"""Coverage-guided fuzzing; see ``python -m tests.fuzz --help``."""
