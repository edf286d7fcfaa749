"""Makes of meter that speak their own words over MQTT: each turned into the native facts. Pure."""
