"""BLEU, ROUGE-L and METEOR of captions by pycocoevalcap, COCO's own scorers, where it is installed.

It is no dependency: its package holds 100 MB of Java archives. Words are split as for our CIDEr-D, without COCO's Java tokenizer, so BLEU
and ROUGE-L need no Java; METEOR is a Java program.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import shutil
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rlabel.evaluation.cider import words
from rlabel.records import JsonObject

NOT_INSTALLED = "BLEU, ROUGE-L and METEOR need pycocoevalcap: pip install 'rlabel[captions]'."
NO_JAVA = "METEOR needs Java, and there is no `java` on the PATH: install a Java runtime (8 or later)."
METEOR_TIMEOUT_S = 900.0  # its tables alone take 10 s to load


@dataclass(frozen=True, slots=True, kw_only=True)
class CocoScores:
    """Scores of a set of captions, all in [0, 1]; None where one cannot be had, and then `why` says why.

    bleu: of the whole set, for n-grams of up to 1, 2, 3 and 4 words. rouge_l: mean over the captions. meteor: of the whole set.
    """

    bleu: tuple[float, float, float, float] | None
    rouge_l: float | None
    meteor: float | None
    why: str | None

    def to_json(self) -> JsonObject:
        return {**asdict(self), "bleu": None if self.bleu is None else list(self.bleu)}


def coco_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CocoScores:
    """Return the scores of at least one caption, each against its own references, of which it has one or more."""
    assert candidates and len(candidates) == len(references)
    try:
        # by name: an extra, not a dependency
        bleu_module = importlib.import_module("pycocoevalcap.bleu.bleu")
        rouge_module = importlib.import_module("pycocoevalcap.rouge.rouge")
    except ImportError:
        return CocoScores(bleu=None, rouge_l=None, meteor=None, why=NOT_INSTALLED)
    said = {i: [_tokens(text)] for i, text in enumerate(candidates)}
    wanted = {i: [_tokens(text) for text in texts] for i, texts in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        bleu, _ = bleu_module.Bleu(4).compute_score(wanted, said, verbose=0)
        rouge_l, _ = rouge_module.Rouge().compute_score(wanted, said)
    meteor, why = _meteor(wanted, said)
    first, second, third, fourth = (float(value) for value in bleu)
    return CocoScores(bleu=(first, second, third, fourth), rouge_l=float(rouge_l), meteor=meteor, why=why)


def _tokens(text: str) -> str:
    # the bars are METEOR's own separator, and no word holds one
    return " ".join(words(text))


def _meteor(wanted: dict[int, list[str]], said: dict[int, list[str]]) -> tuple[float | None, str | None]:
    if shutil.which("java") is None:
        return None, NO_JAVA
    scorer = importlib.import_module("pycocoevalcap.meteor.meteor").Meteor()
    # it waits for each answer without end: a program that hangs is ended, and then the answer is no number
    limit = threading.Timer(METEOR_TIMEOUT_S, scorer.meteor_p.kill)
    limit.start()
    try:
        score, _ = scorer.compute_score(wanted, said)
    except (OSError, ValueError) as error:  # the Java program ended: its pipe is closed, or its answer is no number
        # its lock is left held then, and its own end would wait for that for ever
        if scorer.lock.locked():
            scorer.lock.release()
        return (
            None,
            f"METEOR's Java program gave no score ({error}). Check that `java -version` works, with 2 GB of memory.",
        )
    finally:
        limit.cancel()  # or the command would end only with it
    return float(score), None
