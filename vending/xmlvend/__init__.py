"""XMLVend 2.1 as messages: what stations send, what they are answered, which fault is which of our codes. Pure."""
