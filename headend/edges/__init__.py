"""Ingest and dispatcher: the processes between broker, database and meters."""
