"""The model zoo: two small trained models, the scripts that made them, and pinned sources of real models."""
