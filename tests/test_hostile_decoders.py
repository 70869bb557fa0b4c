"""Decoder processes: what crashes, hangs, fills the memory or lies costs one picture, and the pixels are those of this process."""

from __future__ import annotations

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from label_factories import Setup, rlabel_here, save_model
from rlabel.corpus import isolation
from rlabel.corpus.decoding import IN_PROCESS, BadImage
from rlabel.corpus.images import open_picture
from rlabel.corpus.inputs import prepare_image
from rlabel.corpus.isolation import IsolatedDecoders
from rlabel.corpus.limits import Limits
from rlabel.corpus.picture import Sight
from rlabel.errors import RunError
from rlabel.storage import Store

from factories import image_record, region, save_picture  # isort: skip

LIMITS = Limits()
# Put before the first line of a decoder process: some bytes do there what bytes of a real decoder's nightmares do.
NIGHTMARES = """
import os, signal
from rlabel.corpus import decoding, isolation
isolation._DECODE_S = 0.3
sound = decoding.InProcess.decode
def decode(self, data, limits):
    if data.startswith(b"crash"):
        with open(data[5:].decode() or os.devnull, "a") as file:
            file.write("x")
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        while True:
            pass
    if data == b"memory":
        bytearray(1 << 40)
    if data == b"environment":
        raise decoding.BadImage(",".join(sorted(os.environ)))
    if data == b"lie":
        isolation._REPLY = type("Lie", (), {"pack": lambda *of: real.pack(1, 10**6, 10**6, 9)})
    return sound(self, data, limits)
real = isolation._REPLY
decoding.InProcess.decode = decode
"""


@pytest.fixture
def nightmares(monkeypatch: pytest.MonkeyPatch) -> None:
    path, _, rest = isolation._START.partition("; from")
    code = f"{path}\n{NIGHTMARES}\nfrom{rest}"
    monkeypatch.setattr(isolation, "_START", code)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_pixels_are_those_of_this_process_for_every_kind_and_size(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.fromarray(noise[:, :, :3]).resize((1700, 1300))
    (tmp_path / "turned.jpg").write_bytes(encoded(rgba.convert("RGB"), "JPEG", exif=exif))
    (tmp_path / "clear.png").write_bytes(encoded(rgba, "PNG"))
    (tmp_path / "deep.png").write_bytes(encoded(Image.fromarray(noise[:, :, 0].astype(np.uint16) * 200), "PNG"))
    (tmp_path / "large.jpg").write_bytes(encoded(large, "JPEG", exif=exif))
    (tmp_path / "large.png").write_bytes(encoded(large, "PNG", compress_level=1))
    store, decoders = Store.open(tmp_path), IsolatedDecoders()
    for name in ("turned.jpg", "clear.png", "deep.png"):
        here, there = (open_picture(store, name, LIMITS, decoder=one) for one in (IN_PROCESS, decoders))
        assert isinstance(here, np.ndarray) and isinstance(there, np.ndarray)
        assert there.flags.writeable and there.flags.c_contiguous and (here == there).all()
    for name in ("large.jpg", "large.png"):
        for sight in (Sight(whole_px=56, details=False), Sight(whole_px=56, details=True)):
            here, there = (open_picture(store, name, LIMITS, sight, one) for one in (IN_PROCESS, decoders))
            assert (here.see(sight) == there.see(sight)).all()  # type: ignore[union-attr]
            assert (np.asarray(here.level(2)) == np.asarray(there.level(2))).all()  # type: ignore[union-attr]


def test_a_bad_picture_is_told_of_in_the_same_words() -> None:
    decoders = IsolatedDecoders()
    huge = encoded(Image.new("1", (20_000, 6_000)), "PNG")
    for data, limits in ((b"text", LIMITS), (huge, LIMITS), (encoded(Image.new("RGB", (9, 9)), "PNG")[:40], LIMITS)):
        with pytest.raises(BadImage) as here:
            IN_PROCESS.decode(data, limits)
        with pytest.raises(BadImage) as there:
            decoders.decode(data, limits)
        assert str(there.value) == str(here.value)


def test_a_picture_that_crashes_its_decoder_fails_alone_after_three_attempts(tmp_path: Path, nightmares: None) -> None:
    save_picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"crash" + str(tmp_path / "attempts").encode())
    store, decoders = Store.open(tmp_path), IsolatedDecoders()
    prepared = [
        prepare_image(
            store, image_record(region(box_xywh=(2.0, 3.0, 6.0, 4.0)), file_name=name), LIMITS, decoder=decoders
        )
        for name in ("good.png", "bad.png", "good.png")
    ]
    assert [len(image.regions) for image in prepared] == [1, 0, 1]
    reason = prepared[1].failures[0].reason
    assert prepared[1].failures[0].kind == "image"
    assert reason == "bad.png: its decoder did not survive it in 3 attempts: the process was ended by SIGSEGV."
    assert (tmp_path / "attempts").read_text() == "xxx"


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"hang", "s of CPU"), (b"memory", "more memory"), (b"lie", "something else than pixels")],
)
def test_hanging_filling_the_memory_and_lying_cost_the_picture(nightmares: None, data: bytes, words: str) -> None:
    decoders = IsolatedDecoders()
    with pytest.raises(BadImage, match=words):
        decoders.decode(data, LIMITS)
    good = decoders.decode(encoded(Image.new("RGB", (5, 4), "red"), "PNG"), LIMITS)
    assert isinstance(good, np.ndarray) and good.shape == (4, 5, 3) and good[0, 0].tolist() == [255, 0, 0]


def test_a_decoder_process_knows_no_credentials(nightmares: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(BadImage) as told:
        IsolatedDecoders().decode(b"environment", LIMITS)
    names = str(told.value).split(",")
    assert "PATH" in names and not any("AWS" in name or "HOME" in name for name in names)


def test_threads_get_their_own_pictures(nightmares: None) -> None:
    decoders = IsolatedDecoders()
    colours = [(n, 255 - n, n // 2) for n in range(0, 240, 8)]
    files = [encoded(Image.new("RGB", (9, 7), colour), "PNG") for colour in colours]

    def colour_of(data: bytes) -> tuple[int, ...] | str:
        try:
            return tuple(decoders.decode(data, LIMITS)[0, 0].tolist())  # type: ignore[index]
        except BadImage as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(colour_of, [*files[:15], b"crash", *files[15:]]))
    assert "SIGSEGV" in str(found.pop(15)) and found == colours


def test_processes_end_with_their_owner() -> None:
    decoders = IsolatedDecoders()
    decoders.check()
    process = decoders._idle.get()
    child = process._child
    assert child.poll() is None
    del process
    assert child.poll() is not None


def test_where_no_process_can_run_the_run_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_START", "import sys; sys.exit(3)")
    with pytest.raises(RunError, match="exit code 3.*--no-isolate-decoders"):
        IsolatedDecoders().check()


def test_a_run_without_ray_survives_a_picture_that_crashes_its_decoder(tmp_path: Path, nightmares: None) -> None:
    setup = Setup(tmp_path, save_model(tmp_path / "model"), 3)
    (setup.corpus / "images" / "0002.png").write_bytes(b"crash")
    result = rlabel_here("label", setup.arguments(tmp_path / "out", no_ray=True, images_per_shard=3))
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["regions"], told["failures"]) == (6, 2)
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert all("0002.png" in reason and "SIGSEGV" in reason for reason in reasons) and len(reasons) == 2
