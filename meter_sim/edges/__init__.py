"""A fleet of simulated meters over real MQTT."""
