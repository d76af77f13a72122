"""The log-mel spectrogram that Whisper reads (arXiv 2212.04356, section 2.2), from samples at 16 kHz."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

RATE = 16_000
SECONDS = 30
"""Of one window; shorter sound is filled up with silence."""

FFT, HOP, MELS = 400, 160, 80
LINEAR_BELOW, MELS_AT_BREAK, LOG_STEP = 1000.0, 15.0, np.log(6.4) / 27.0
"""Slaney's mel scale: linear up to 1000 Hz, logarithmic above."""


def log_mel(samples: NDArray[np.floating]) -> NDArray[np.float32]:
    """(80, 3000) from at most 30 seconds: log10 of the energies in mel bands, limited to 80 dB below the loudest."""
    window = np.zeros(SECONDS * RATE)
    window[: len(samples)] = samples[: len(window)]
    padded = np.pad(window, FFT // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FFT)[::HOP][:-1]
    taper = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FFT) / FFT)
    power = np.abs(np.fft.rfft(frames * taper, axis=1)) ** 2
    energies = np.log10(np.maximum(power @ mel_bands().T, 1e-10)).T
    limited = np.maximum(energies, energies.max() - 8.0)
    return np.asarray((limited + 4.0) / 4.0, np.float32)


@functools.cache
def mel_bands() -> NDArray[np.float64]:
    """(80, 201): triangles between points evenly spaced in mel, each of unit area in Hz."""
    points = mel_to_hertz(np.linspace(0.0, hertz_to_mel(RATE / 2), MELS + 2))
    frequencies = np.linspace(0.0, RATE / 2, FFT // 2 + 1)
    rising = (frequencies - points[:-2, None]) / (points[1:-1] - points[:-2])[:, None]
    falling = (points[2:, None] - frequencies) / (points[2:] - points[1:-1])[:, None]
    areas = (points[2:] - points[:-2])[:, None] / 2.0
    return np.asarray(np.maximum(0.0, np.minimum(rising, falling)) / areas)


def hertz_to_mel(frequency: float) -> float:
    if frequency < LINEAR_BELOW:
        return frequency * MELS_AT_BREAK / LINEAR_BELOW
    return float(MELS_AT_BREAK + np.log(frequency / LINEAR_BELOW) / LOG_STEP)


def mel_to_hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mels * LINEAR_BELOW / MELS_AT_BREAK
    return np.asarray(np.where(mels < MELS_AT_BREAK, linear, LINEAR_BELOW * np.exp(LOG_STEP * (mels - MELS_AT_BREAK))))
