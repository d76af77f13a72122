"""Adapters that let other tools' pipelines run this pass. Each module needs the tool that it is named after."""
