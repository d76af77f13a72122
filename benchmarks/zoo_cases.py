"""The real models that compression is judged on: what each is calibrated with, and the task that it is judged by.

No sample that is judged was seen in calibration. Models and data are fetched, and graphs exported, when a case is
loaded. A size says how many samples of both are taken; the counts stand beside each other in `pick`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import detection_tasks, gloss_probe, image_tasks, recognition_tasks, sentence_tasks, speech_tasks
from benchmarks.saved_results import Size
from lowrank_onnx.evaluate import Session, open_session
from lowrank_onnx.types import Array, Feed
from models.export_craft import export_craft
from models.export_efficientnet import export_efficientnet
from models.export_minilm import export_minilm
from models.export_whisper import export_whisper
from models.fetch import fetch_model

Feeds = tuple[Feed, ...]


@dataclass(frozen=True, slots=True)
class ZooCase:
    """One model and its task.

    Attributes
    ----------
    name, path : of the model.
    calibration : feeds to calibrate with; the library holds every fourth out for itself.
    judge : the task's figures by name, from a session of the model or of a compressed one.
    lower_is_better : of those figures.
    data : what it is calibrated with and judged by, in a sentence.
    logits : the outputs that only a softmax reads, for those who plan by the outputs' errors.
    """

    name: str
    path: Path
    calibration: Feeds
    judge: Callable[[Session], Mapping[str, float]]
    lower_is_better: bool
    data: str
    logits: tuple[str, ...] = ()


def pick(size: Size, quick: int, default: int, full: int) -> int:
    """How many samples to take."""
    return {"quick": quick, "default": default, "full": full}[size]


def _outputs(session: Session, feeds: Sequence[Feed]) -> list[Array]:
    return [np.asarray(session.run(feed)[session.outputs[0]]) for feed in feeds]


def load_minilm(size: Size) -> ZooCase:
    """The sentence encoder: similarities as people judge them, and topics of definitions."""
    tasks = {task.name: (task, sentence_tasks.encode_texts(task.texts)) for task in sentence_tasks.load_tasks()}
    glosses = gloss_probe.load_glosses(pick(size, 600, 1500, 3000))
    encoded = sentence_tasks.encode_texts(glosses.texts)
    judged = [feed for _, texts in tasks.values() for feed in texts.feeds]
    count = pick(size, 64, 128, 512)

    def judge(session: Session) -> Mapping[str, float]:
        figures = sentence_tasks.judge_encoder(_outputs(session, judged), tasks)
        vectors = sentence_tasks.sentence_vectors(_outputs(session, encoded.feeds), encoded)
        return figures | {"topic probe": gloss_probe.probe_accuracy(vectors, glosses)}

    return ZooCase(
        name="minilm-l6",
        path=export_minilm(),
        calibration=sentence_tasks.encode_texts(sentence_tasks.calibration_sentences(count)).feeds,
        judge=judge,
        lower_is_better=False,
        data=f"calibrated with {count} sentences of Lee's background stories; judged on Lee's 50 documents (Pearson), "
        f"WordSim-353 and SimLex-999 (Spearman), and a linear probe for the topics of {len(glosses.texts)} WordNet "
        "definitions, a third of them held out (accuracy)",
    )


def load_whisper_encoder(size: Size) -> ZooCase:
    """The speech recogniser's encoder, with the original decoder behind it."""
    encoder, decoder = export_whisper()
    speech = _Speech(size)
    behind = open_session(decoder)

    def judge(session: Session) -> Mapping[str, float]:
        return {"WER": speech.error_rate(lambda window: _encode(session, window), behind)}

    return ZooCase(
        name="whisper-base-encoder",
        path=encoder,
        calibration=tuple(speech_tasks.encoder_feed(window) for window in speech.learned),
        judge=judge,
        lower_is_better=True,
        data=f"{speech.data}, with the original decoder",
    )


def load_whisper_decoder(size: Size) -> ZooCase:
    """The speech recogniser's decoder, behind the original encoder."""
    encoder, decoder = export_whisper()
    speech = _Speech(size)
    original = open_session(encoder)
    states = {window.name: _encode(original, window) for window in (*speech.learned, *speech.judged)}

    def judge(session: Session) -> Mapping[str, float]:
        return {"WER": speech.error_rate(lambda window: states[window.name], session)}

    def feed(window: speech_tasks.Prompt) -> Feed:
        tokens = [*speech_tasks.START, *speech_tasks.guess_tokens(window.transcript)]
        return {"tokens": np.array([tokens], np.int64), "states": states[window.name]}

    return ZooCase(
        name="whisper-base-decoder",
        path=decoder,
        calibration=tuple(feed(window) for window in speech.learned),
        judge=judge,
        lower_is_better=True,
        data=f"{speech.data}, behind the original encoder",
        logits=("logits",),
    )


LEARNED_PROMPTS = 64
"""The first of all prompts; the others are judged."""

TOGETHER = 7
"""Prompts in a window of 30 seconds, as many to learn from as are judged: the positions of a longer transcript are new
to a decoder that was calibrated with shorter ones."""


class _Speech:
    """Windows to learn from and to judge by; and what was heard in them last, the best guess of what comes next."""

    def __init__(self, size: Size) -> None:
        prompts = speech_tasks.load_prompts()
        learned, judged = prompts[:LEARNED_PROMPTS], prompts[LEARNED_PROMPTS:]
        self.learned = speech_tasks.draw_windows(learned, pick(size, 8, 16, 24), TOGETHER)
        self.judged = speech_tasks.fill_windows(judged, TOGETHER)[: pick(size, 2, 16, 16)]
        self.data = (
            f"calibrated with {len(self.learned)} windows of 30 seconds with up to {TOGETHER} prompts of a telephone "
            f"exchange, out of {len(learned)}; judged by the word error rate of greedy decoding on "
            f"{min(len(judged), TOGETHER * len(self.judged))} others in {len(self.judged)} windows"
        )
        self._heard = {window.name: speech_tasks.guess_tokens(window.transcript) for window in self.judged}

    def error_rate(self, states_of: Callable[[speech_tasks.Prompt], Array], decoder: Session) -> float:
        """Of the words of all judged windows."""
        for window in self.judged:
            states = states_of(window)

            def decode(tokens: Array, states: Array = states) -> Array:
                return np.asarray(decoder.run({"tokens": tokens, "states": states})["logits"])

            self._heard[window.name] = speech_tasks.decode_greedily(decode, self._heard[window.name])
        texts = [speech_tasks.write_text(self._heard[window.name]) for window in self.judged]
        return speech_tasks.word_error_rate(texts, self.judged)


def _encode(session: Session, window: speech_tasks.Prompt) -> Array:
    return np.asarray(session.run(speech_tasks.encoder_feed(window))["states"])


def load_craft(size: Size) -> ZooCase:
    """The detector of text."""
    pages = detection_tasks.judged_pages(pick(size, 6, 16, 48))
    learned = detection_tasks.calibration_feeds(pick(size, 8, 16, 32))
    feeds = [detection_tasks.page_feed(page) for page in pages]
    return ZooCase(
        name="craft",
        path=export_craft(),
        calibration=learned,
        judge=lambda session: {"word-box F1": detection_tasks.word_f1(_outputs(session, feeds), pages)},
        lower_is_better=False,
        data=f"calibrated with {len(learned)} rendered pages of {detection_tasks.HEIGHT} x {detection_tasks.WIDTH} "
        f"pixels; judged by the boxes of {sum(len(page.words) for page in pages)} words on {len(pages)} others",
    )


def load_efficientnet(size: Size) -> ZooCase:
    """The classifier of images, in which low rank finds little: the control."""
    tasks = image_tasks.judged_images()
    tasks = {name: images[:: pick(size, 8, 1, 1)] for name, images in tasks.items()}
    feeds = {name: image_tasks.image_feeds([image.image for image in images]) for name, images in tasks.items()}
    count = pick(size, 32, 128, 256)

    def judge(session: Session) -> Mapping[str, float]:
        return {name: image_tasks.top1(_outputs(session, feeds[name]), images) for name, images in tasks.items()}

    return ZooCase(
        name="efficientnet-lite2",
        path=export_efficientnet(),
        calibration=image_tasks.calibration_feeds(count),
        judge=judge,
        lower_is_better=False,
        data=f"calibrated with {count} stamps of a drawing program; judged by top-1 on "
        f"{' and '.join(f'{len(images)} {name}' for name, images in tasks.items())}",
    )


def load_ppocr(size: Size) -> ZooCase:
    """The recogniser of text."""
    lines = recognition_tasks.judged_lines(pick(size, 40, 200, 400))
    count = pick(size, 32, 96, 256)
    feeds, characters = recognition_tasks.line_feeds(lines), recognition_tasks.load_characters()

    def judge(session: Session) -> Mapping[str, float]:
        return {"CER": recognition_tasks.character_error_rate(_outputs(session, feeds), lines, characters)}

    return ZooCase(
        name="ppocr-v4-recogniser",
        path=fetch_model("ppocr-v4-recogniser"),
        calibration=recognition_tasks.calibration_feeds(count),
        judge=judge,
        lower_is_better=True,
        data=f"calibrated with {count} rendered lines with noise and blur; judged by the character error rate on "
        f"{len(lines)} others",
    )


CASES: Mapping[str, Callable[[Size], ZooCase]] = {
    "minilm-l6": load_minilm,
    "whisper-base-encoder": load_whisper_encoder,
    "whisper-base-decoder": load_whisper_decoder,
    "craft": load_craft,
    "efficientnet-lite2": load_efficientnet,
    "ppocr-v4-recogniser": load_ppocr,
}
"""How to load each case, by name."""
