"""Keys, Noise handshakes and seals. Every random byte is an argument."""
