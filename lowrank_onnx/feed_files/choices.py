"""What can be chosen of a calibration file, apart from what makes it: the command line reads it without any library."""

from __future__ import annotations

from typing import Literal, TypeAlias

Layout: TypeAlias = Literal["nchw", "nhwc"]
Colours: TypeAlias = Literal["rgb", "bgr", "gray"]
Fit: TypeAlias = Literal["crop", "stretch", "pad"]
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]
PixelType: TypeAlias = Literal["float32", "uint8"]

TokenArray: TypeAlias = Literal["ids", "attention_mask", "type_ids"]
"""What the tokenizer gives of a line: tokens, 1 where one is and 0 where the line was padded, and the segment."""
