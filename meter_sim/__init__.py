"""Independent simulated meters: registers, clock, relay, buzzer and own token reader."""
