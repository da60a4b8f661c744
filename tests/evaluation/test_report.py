"""report.html: everything inside it, every name escaped, and what it finds is there."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import train
from saccade.base.errors import UserError
from saccade.evaluation.report import Findings, afterwards, page
from saccade.evaluation.report.findings import THUMB, find, findings
from saccade.pipelines.sources.open import open_dataset
from saccade.tools import report

EVIL = '<script>alert("x")</script>&</pre>"\'\n\x1b[31m'


class Page(HTMLParser):
    """Every tag with its attributes, and every text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def made(n: int = 60, classes: bool = True) -> Findings:
    """Six kinds of features and colours; image 1 is image 0 again, image 7 is said to be of another kind."""
    generator = torch.Generator().manual_seed(0)
    kind = torch.arange(n) % 6
    features = torch.eye(16)[kind] * 5 + 0.3 * torch.randn(n, 16, generator=generator)
    pictures = np.random.default_rng(0).integers(0, 256, (n, THUMB, THUMB, 3), dtype=np.uint8)
    features[1], pictures[1], kind[1] = features[0], pictures[0], kind[0]
    labels = kind.clone() if classes else torch.full((n,), -1)
    if classes:
        labels[7:8] = 3
    names = [f"{i}.jpg" for i in range(n)]
    return findings(features, labels, [EVIL if c == 0 else str(c) for c in labels.tolist()], names, pictures, n)


def test_it_finds_the_duplicate_and_the_wrong_label():
    found = made()
    assert found.duplicates[0][:2] == (0, 1) and len(found.duplicates) == 1
    assert found.wrong[0].image == 7 and found.wrong[0].said == "1"
    assert all(i != query for query, nearest in found.nearest.items() for i, _ in nearest)
    assert found.places.min() >= 0 and found.places.max() <= 1 and len(found.odd) == 24
    assert made(classes=False).wrong == []


@pytest.mark.parametrize("n", [3, 4, 21])
def test_few_images_make_a_page_too(n, tmp_path):
    assert "<canvas" in page(tmp_path, made(n))


def test_the_page_is_whole_escaped_and_fetches_nothing(tmp_path):
    (tmp_path / "recipe.toml").write_text(f"# {EVIL} http://example.org\nmethod = 'x'\n")
    (tmp_path / "config.json").write_text(json.dumps({"data": EVIL, "recipe": {"method": EVIL}}))
    (tmp_path / "summary.json").write_text(json.dumps({"versions": {EVIL: "1"}, "hardware": EVIL}))
    (tmp_path / "verdict.json").write_text(
        json.dumps({"sentence": f"better {EVIL}", "learned": "better", "test": EVIL})
    )
    Image.new("RGB", (30, 20)).save(tmp_path / "curves.png")
    text = page(tmp_path, made())
    read = Page(text)
    assert [tag for tag, _ in read.tags].count("script") == 2 and "alert" not in "".join(
        t for t in re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    )
    for tag, attributes in read.tags:
        assert not set(attributes) & {"href", "srcset", "action", "onclick", "onerror"} or tag == "link"
        for name in ("src", "href"):
            assert name not in attributes or str(attributes[name]).startswith("data:")
    data = json.loads(next(t for t in read.texts if t.startswith('{"x"')))
    assert len(data["x"]) == len(data["names"]) == 60 and "<" not in text.partition('id="data">')[2].partition("<")[0]
    assert any("alert" in t for t in read.texts)  # said, as text
    assert "default-src &#x27;none&#x27;" in text


def images(path: Path, n: int) -> str:
    rng, kind = np.random.default_rng(0), np.arange(n) % 4
    pictures = (rng.integers(0, 60, (n, 16, 16, 3)) + kind[:, None, None, None] * 45).astype(np.uint8)
    np.savez(path, images=pictures, labels=kind)
    return str(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    data, out = images(folder / "images.npz", 48), folder / "run"
    flags = ["--data", data, "--out", str(out), "--batch-size", "16", "--steps", "3", "--workers", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(afterwards, "SHARE", 1e3)
        assert train.main(flags) == 0
    return out


def test_a_run_ends_with_its_page_and_the_command_makes_it_again(run, capsys):
    first = Page((run / "report.html").read_text())
    assert {"canvas", "figure", "pre", "table"} <= {tag for tag, _ in first.tags}
    assert report.main([str(run), "--images", "20"]) == 0
    assert "20 of 48 images" in capsys.readouterr().out
    assert "20 of 48 images" in " ".join(Page((run / "report.html").read_text()).texts)


def test_a_short_run_spends_no_time_on_it(tmp_path, capsys):
    data, out = images(tmp_path / "images.npz", 48), tmp_path / "run"
    command = ["--data", data, "--out", str(out), "--batch-size", "16", "--steps", "1", "--eval-every", "0"]
    assert train.main(command) == 0
    assert f"saccade report {out} makes one" in capsys.readouterr().out and not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--images", "1"], "is too few"),
        (["--images", "99999"], "more than a page"),
        (["--data", "/nowhere"], "no such"),
    ],
)
def test_what_cannot_be_shown_is_one_sentence(run, arguments, words):
    with pytest.raises(UserError, match=words):
        report.main([str(run), *arguments])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_ten_thousand_points_fluidly_and_has_nothing_to_say(tmp_path):
    rng, n = np.random.default_rng(0), 10_000
    pictures = np.repeat(rng.integers(0, 256, (n, 1, 1, 3), dtype=np.uint8), THUMB, 1).repeat(THUMB, 2)
    names, kinds = [f"{i}.jpg" for i in range(n)], [str(i % 20) for i in range(n)]
    found = Findings(names, kinds, pictures, rng.random((n, 2)), "chance", [], {0: [(1, 0.5)]}, [], [], [], n)
    text = page(tmp_path, found)
    timing = (
        "<script>addEventListener('load', () => { const map = document.getElementById('map'), t = performance.now();"
        "for (let i = 0; i < 20; i++) { document.getElementById('frame').dispatchEvent(new WheelEvent('wheel',"
        "{deltaY: i % 2 ? 40 : -40, clientX: 500, clientY: 300})); map.redraw(); }"
        "map.getContext('2d').getImageData(0, 0, 1, 1);"
        "document.title = 'ms a frame: ' + (performance.now() - t) / 20 + ' drawn ' + map.dataset.drawn; });</script>"
    )
    (tmp_path / "timed.html").write_text(text.replace("</body>", timing + "</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"]
    command += ["--enable-logging=stderr", "--dump-dom", f"file://{tmp_path}/timed.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    spent = re.search(r"ms a frame: ([\d.]+) drawn (\d+)", done.stdout)
    assert spent and int(spent[2]) > 5000 and float(spent[1]) < 200  # of two shared cores without a GPU


def test_an_unreadable_image_is_not_shown_as_another(tmp_path):
    for k in range(24):
        Image.new("RGB", (20, 20), (10 * k, 255 - 10 * k, 90)).save(tmp_path / f"{k:02}.png")
    (tmp_path / "05.png").write_bytes(b"no image")
    found = find(torch.nn.Flatten(), open_dataset(str(tmp_path)).splits["train"], 8, (0.0,) * 3, (1.0,) * 3, 24)
    assert "05.png" not in found.names and len(found.names) == len(found.thumbnails) == found.total == 23
    for name, picture in zip(found.names, found.thumbnails, strict=True):
        assert abs(int(picture[32, 32, 0]) - 10 * int(name[:2])) <= 1
