"""Money, tariffs, rating, running charge, alarm levels and desired supply state. Pure."""
