"""The STS engine (IEC 62055-41): identities, keys, ciphers, tokens. Pure."""
