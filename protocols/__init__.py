"""Bytes to facts and back: topics, payloads and quantities of each make of meter. Pure."""
