"""kvstored under Mooncake's name."""
