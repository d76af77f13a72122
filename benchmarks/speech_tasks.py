"""What a recogniser of speech is judged by: the word error rate on a telephone exchange's prompts, decoded greedily.

Calibration and judged prompts are different ones, of the same voice. Every window is 30 seconds, as in training, and
holds several prompts: they last 3 seconds on average, and a window takes as long however much of it is silence.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from benchmarks.edit_distance import edits_to_prefixes, error_rate
from benchmarks.speech_features import RATE, SECONDS, log_mel
from lowrank_onnx.evaluate.feeds import is_held_out
from lowrank_onnx.types import Array, Feed
from models.fetch import fetch_model
from models.packages import read_debian_files

START = (50258, 50259, 50359, 50363)
"""Tokens that begin a transcript: of English, without time stamps."""

END = 50257
FIRST_SPECIAL = 50257
"""Tokens from here on stand for no text."""

MAX_TOKENS = 96
"""Of a transcript; those of seven prompts have up to 75. A model that has lost its words writes on and on."""

WORDS = (3, 25)
"""The shortest and the longest prompt."""

Decode = Callable[[NDArray[np.int64]], Array]
"""From tokens (1, length) to logits (1, length, vocabulary)."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A recording, or several in one window: samples at 16 kHz from -1 to 1, and what they say."""

    name: str
    samples: NDArray[np.float64]
    transcript: str


def load_prompts() -> tuple[Prompt, ...]:
    """The prompts whose transcript is plain words, in a random order that is always the same."""
    transcripts = dict(parse_transcripts(_transcript_file()))
    recordings = read_debian_files(fetch_model("speech-prompts"), ".wav")
    found = []
    for path, content in recordings:
        name = path.split("_Allison/", 1)[-1].removesuffix(".wav")
        if name in transcripts:
            found.append(Prompt(name, read_wave(content), transcripts[name]))
    order = np.random.default_rng(0).permutation(len(found))
    # Several prompts say the same: the first of each is kept, so that none is both learned from and judged.
    distinct = {" ".join(normalize(found[index].transcript)): found[index] for index in reversed(order)}
    return tuple(reversed(distinct.values()))


def _transcript_file() -> str:
    files = list(read_debian_files(fetch_model("speech-transcripts"), "/core-sounds-en.txt.gz"))
    return gzip.decompress(files[0][1]).decode("utf-8")


def parse_transcripts(text: str) -> Iterable[tuple[str, str]]:
    """Names and transcripts; those with digits, marks or remarks, and the shortest and longest, are left out."""
    for line in text.splitlines():
        name, colon, said = line.partition(": ")
        count = len(said.split())
        if colon and re.fullmatch(r"[A-Za-z' ,.!?]+", said) and WORDS[0] <= count <= WORDS[1]:
            yield name, said.strip()


def read_wave(content: bytes) -> NDArray[np.float64]:
    """The samples of a mono 16-bit file, resampled to 16 kHz."""
    with wave.open(io.BytesIO(content)) as recording:
        rate = recording.getframerate()
        samples = np.frombuffer(recording.readframes(recording.getnframes()), "<i2") / 32768.0
    return np.asarray(resample_poly(samples, RATE, rate), np.float64)


def fill_windows(prompts: Sequence[Prompt], together: int) -> tuple[Prompt, ...]:
    """The prompts one after the other, so many together in a window of 30 seconds."""
    return tuple(window_of(prompts[first : first + together]) for first in range(0, len(prompts), together))


def draw_windows(prompts: Sequence[Prompt], count: int, together: int) -> tuple[Prompt, ...]:
    """`count` windows of prompts drawn anew for each, up to so many together as they have room for.

    So windows are as full as wanted where prompts are few. The windows that the library holds out have a quarter of the
    prompts for themselves.
    """
    generator = np.random.default_rng(0)
    windows = []
    for index in range(count):
        pool = [prompt for place, prompt in enumerate(prompts) if is_held_out(place) == is_held_out(index)]
        taken: list[Prompt] = []
        for place in generator.permutation(len(pool)):
            if len(taken) < together and silence([*taken, pool[place]]) >= 0:
                taken.append(pool[place])
        windows.append(window_of(taken))
    return tuple(windows)


def silence(prompts: Sequence[Prompt]) -> int:
    """The samples of a window that are left beside these prompts, below 0 if they are too long."""
    return SECONDS * RATE - sum(len(prompt.samples) for prompt in prompts)


def window_of(prompts: Sequence[Prompt]) -> Prompt:
    """A window of 30 seconds with these prompts, and the same silence before, between and after them.

    Raises
    ------
    ValueError
        They are too long.
    """
    silent = silence(prompts)
    if silent < 0:
        raise ValueError(f"{len(prompts)} prompts from {prompts[0].name} on: {-silent} samples over {SECONDS} seconds")
    pause = np.zeros(silent // (len(prompts) + 1))
    samples = np.concatenate([pause, *(piece for prompt in prompts for piece in (prompt.samples, pause))])
    transcript = " ".join(prompt.transcript for prompt in prompts)
    return Prompt(", ".join(prompt.name for prompt in prompts), samples, transcript)


def normalize(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return re.sub(r"[^a-z' ]", " ", text.lower().replace("-", " ")).split()


def encoder_feed(prompt: Prompt) -> Feed:
    return {"features": log_mel(prompt.samples)[None]}


@functools.cache
def load_tokens() -> tuple[bytes, ...]:
    """What each token writes, in UTF-8; the vocabulary shows bytes as GPT-2's characters for them."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    values = {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}
    lines = fetch_model("whisper-vocabulary").read_text(encoding="utf-8").split("\n")[:FIRST_SPECIAL]
    return tuple(bytes(values[character] for character in line) for line in lines)


def write_text(tokens: Iterable[int]) -> str:
    """The text of a transcript's tokens."""
    texts = load_tokens()
    return b"".join(texts[token] for token in tokens if token < FIRST_SPECIAL).decode("utf-8", "replace")


def guess_tokens(text: str) -> list[int]:
    """Tokens that write a text, the longest first: a guess at what a model will write, nothing more."""
    numbers = {written: number for number, written in enumerate(load_tokens())}
    left, tokens = f" {' '.join(text.split())}".encode(), []
    while left:
        size = next(size for size in range(min(len(left), 16), 0, -1) if left[:size] in numbers)
        tokens.append(numbers[left[:size]])
        left = left[size:]
    return tokens


@functools.cache
def never_written() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens that are no part of a transcript: anywhere, and at its beginning."""
    config = json.loads(fetch_model("whisper-config").read_text(encoding="utf-8"))
    special = [token for token in range(FIRST_SPECIAL, 51865) if token != END]
    return np.array([*config["suppress_ids"], *special]), np.array(config["suppress_ids_begin"])


def decode_greedily(decode: Decode, guess: Sequence[int]) -> list[int]:
    """The tokens that are likeliest one after the other, without the one that ends them.

    A guess makes it fast without changing the result: one run gives the likeliest successor of every token of the
    guess; all tokens up to the first wrong one are the model's own, and so is the one in the wrong one's place.
    """
    accepted: list[int] = []
    anywhere, beginning = never_written()
    while len(accepted) < MAX_TOKENS:
        ahead = list(guess[count_written(guess, accepted) :])
        tokens = [*START, *accepted, *ahead][: len(START) + MAX_TOKENS]
        logits = np.array(decode(np.array([tokens], np.int64))[0, len(START) + len(accepted) - 1 :])
        logits[:, anywhere] = -np.inf
        if not accepted:
            logits[0, beginning] = -np.inf
        best = [int(token) for token in logits.argmax(axis=-1)]
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(best, ahead, strict=False)))
        written = best[: right + 1]
        if END in written:
            return [*accepted, *written[: written.index(END)]]
        accepted += written
    return accepted[:MAX_TOKENS]


def count_written(guess: Sequence[int], accepted: Sequence[int]) -> int:
    """How many of a guess's tokens stand for those that are accepted: so many that the fewest edits lie in between."""
    edits = edits_to_prefixes(accepted, guess)
    return max(count for count, number in enumerate(edits) if number == min(edits))


def word_error_rate(texts: Iterable[str], prompts: Sequence[Prompt]) -> float:
    """Edits over words, of all prompts together."""
    return error_rate((normalize(p.transcript), normalize(text)) for text, p in zip(texts, prompts, strict=True))
