"""How models leave the frameworks that trained them: one short script each, and what those wrote that need much."""
