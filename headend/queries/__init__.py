"""What the billing engineers' desk is asked: questions as values, their columns and cursors. Pure."""
