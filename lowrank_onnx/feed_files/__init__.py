"""Calibration files from what people have: a folder of images, a file of sentences. Each needs a library of its own."""
