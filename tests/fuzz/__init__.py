"""A fuzz target for the reader and the compiler pass: ``python -m tests.fuzz --minutes 60``.

Small real models are damaged at random and compressed in a process of their own. What may come out is a model, or an
error of the kinds that a user sees with exit code 3; anything else is a finding: another exception, a death of the
process, a hang, a file read outside of the model's directory, a partial output, a changed input.
"""
