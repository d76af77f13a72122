"""What the documentation claims, each reproducible with one command."""
