"""Command line, settings, process start and embedded parts."""
