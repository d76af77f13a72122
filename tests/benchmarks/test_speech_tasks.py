from __future__ import annotations

import io
import wave
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks import speech_tasks
from benchmarks.edit_distance import edit_distance, edits_to_prefixes, error_rate
from benchmarks.speech_features import FFT, HOP, RATE, hertz_to_mel, log_mel, mel_bands, mel_to_hertz
from benchmarks.speech_tasks import (
    END,
    START,
    Prompt,
    count_written,
    decode_greedily,
    draw_windows,
    fill_windows,
    normalize,
    parse_transcripts,
    read_wave,
)


def test_mel_bands_are_triangles_of_unit_area() -> None:
    bands = mel_bands()
    assert bands.shape == (80, 201)
    assert (bands >= 0).all()
    # The sum over bins of 40 Hz comes near the area only where a triangle is many bins wide.
    assert np.allclose(bands[60:].sum(axis=1) * RATE / FFT, 1.0, atol=0.02)
    peaks = bands.argmax(axis=1)
    assert (np.diff(peaks) >= 0).all()


@pytest.mark.parametrize("frequency", [0.0, 440.0, 1000.0, 3000.0, 8000.0])
def test_mel_scale_has_an_inverse(frequency: float) -> None:
    assert float(mel_to_hertz(np.array(hertz_to_mel(frequency)))) == pytest.approx(frequency, abs=1e-6)


def test_a_tone_is_loud_in_its_band_while_it_lasts() -> None:
    tone = np.sin(2 * np.pi * 2000 * np.arange(RATE) / RATE)
    spectrogram = log_mel(tone)
    assert spectrogram.shape == (80, 3000)
    assert spectrogram.dtype == np.float32
    band = int(mel_bands()[:, 2000 * FFT // RATE].argmax())
    frames = RATE // HOP
    assert set(spectrogram[:, 5 : frames - 5].argmax(axis=0)) == {band}
    assert spectrogram.max() - spectrogram.min() == pytest.approx(2.0)
    assert np.allclose(spectrogram[:, frames + 5 :], spectrogram.min())


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("", "", 0), ("abc", "abc", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("ab", "ba", 2), ("abcd", "xabd", 2)],
)
def test_edit_distance(first: str, second: str, edits: int) -> None:
    assert edit_distance(first, second) == edits
    assert edit_distance(second, first) == edits


def test_edits_to_every_start_of_a_sequence() -> None:
    assert edits_to_prefixes("ab", "xabd") == [2, 2, 2, 1, 2]
    assert edits_to_prefixes("", "ab") == [0, 1, 2]


def test_error_rate_is_over_all_references() -> None:
    assert error_rate([(["a", "b", "c"], ["a", "c"]), (["d"], ["e", "d"])]) == pytest.approx(2 / 4)


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert normalize(" I'm sorry -- the Mail-box, is FULL.") == ["i'm", "sorry", "the", "mail", "box", "is", "full"]


def test_transcripts_with_digits_marks_or_too_few_words_are_left_out() -> None:
    lines = (
        "; remark",
        "a/one: Please enter your agent number.",
        "b: press 1 to go on now",
        "c: [a simple tone]",
        "d: Hi.",
    )
    text = "\n".join(lines)
    assert list(parse_transcripts(text)) == [("a/one", "Please enter your agent number.")]


def test_waves_are_resampled() -> None:
    samples = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(np.rint(16384 * samples).astype("<i2").tobytes())
    read = read_wave(file.getvalue())
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    assert read.shape == (RATE,)
    assert np.abs(read - expected)[100:-100].max() < 1e-3


def test_windows_hold_several_prompts_with_the_same_silence_around_each() -> None:
    prompts = [
        Prompt(str(index), np.full(RATE * seconds, 1.0), f"say {index}") for index, seconds in enumerate((3, 5, 9))
    ]
    both, last = fill_windows(prompts, 2)
    assert (both.name, both.transcript) == ("0, 1", "say 0 say 1")
    assert len(both.samples) <= 30 * RATE
    silent = np.flatnonzero(np.diff(np.concatenate([[1.0], both.samples, [1.0]])))
    pauses = np.diff(silent)[::2]
    assert np.allclose(pauses, 22 * RATE / 3, atol=1)
    assert (last.name, last.samples.sum()) == ("2", 9 * RATE)


def test_what_is_held_out_has_prompts_of_its_own() -> None:
    prompts = [Prompt(str(place), np.ones(RATE * (2 + place % 7)), "so on") for place in range(32)]
    windows = draw_windows(prompts, 16, 6)
    names = [{int(name) for name in window.name.split(", ")} for window in windows]
    assert {len(together) for together in names} <= {4, 5, 6}
    assert all(len(window.samples) <= 30 * RATE for window in windows)
    held_out = set().union(*names[3::4])
    assert held_out == set(range(3, 32, 4))
    assert not held_out & set().union(*(together for index, together in enumerate(names) if index % 4 != 3))


def test_more_than_a_window_holds_is_an_error() -> None:
    prompts = [Prompt("long", np.zeros(16 * RATE), "so on")] * 2
    with pytest.raises(ValueError, match=r"^2 prompts from long on: 32000 samples over 30 seconds$"):
        fill_windows(prompts, 2)


@pytest.mark.parametrize(
    ("accepted", "count"),
    [([], 0), ([1, 2], 2), ([1, 2, 9], 3), ([1, 2, 9, 3], 3), ([1, 3], 3), ([1, 8, 9, 2, 3, 4], 4)],
)
def test_a_guess_is_taken_up_where_the_fewest_edits_lead(accepted: list[int], count: int) -> None:
    assert count_written([1, 2, 3, 4, 5], accepted) == count


class Writer:
    """A model whose next token follows from all before it, as a table says; counts its runs."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self.seed, self.vocabulary, self.runs = seed, vocabulary, 0

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[Any]:
        self.runs += 1
        rows = []
        for length in range(1, tokens.shape[1] + 1):
            prefix = [int(token) for token in tokens[0, :length]]
            row = np.full(51865, -1.0)
            generator = np.random.default_rng([self.seed, *prefix])
            row[generator.integers(self.vocabulary)] = 1.0
            row[7], row[20] = 3.0, 2.0 if length == len(START) else -1.0
            if generator.random() < 0.2:
                row[END] = 4.0
            rows.append(row)
        return np.stack(rows)[None]


@pytest.fixture
def _some_are_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    special = [token for token in range(speech_tasks.FIRST_SPECIAL, 51865) if token != END]
    rules = (np.array([7, *special]), np.array([20, END]))
    monkeypatch.setattr(speech_tasks, "never_written", lambda: rules)


@pytest.mark.usefixtures("_some_are_never_written")
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), guess=st.lists(st.integers(0, 5), max_size=8))
def test_a_guess_changes_nothing_but_the_number_of_runs(seed: int, guess: list[int]) -> None:
    blind, guided, sure = (Writer(seed, 5) for _ in range(3))
    expected = decode_greedily(blind, ())
    assert 1 <= len(expected) <= speech_tasks.MAX_TOKENS
    assert 7 not in expected
    assert expected[0] != 20
    assert blind.runs == min(len(expected) + 1, speech_tasks.MAX_TOKENS)
    assert decode_greedily(guided, guess) == expected
    assert guided.runs <= blind.runs
    assert decode_greedily(sure, expected) == expected
    assert sure.runs == 1


@pytest.mark.usefixtures("_some_are_never_written")
def test_a_transcript_that_never_ends_is_cut() -> None:
    def endless(tokens: NDArray[np.int64]) -> NDArray[Any]:
        logits = np.zeros((1, tokens.shape[1], 51865))
        logits[..., 3] = 1.0
        return logits

    assert decode_greedily(endless, [3] * 500) == [3] * speech_tasks.MAX_TOKENS
