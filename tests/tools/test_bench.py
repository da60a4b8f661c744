"""tools.bench: the arithmetic of its rows, its gate, its baseline, and every job of it in miniature."""

import mmap
import statistics
import time

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import growth
from benchmarks.profile_step import by_kind, profile_step
from saccade.base.errors import UserError
from saccade.losses.registry import find_method
from saccade.tools import bench
from saccade.tools.benchmark.baseline import FLAVOURS, ManyCrops
from saccade.tools.benchmark.compare import compare
from saccade.tools.benchmark.measure import Contender, cpu_seconds, measure, memory_mib
from saccade.tools.benchmark.rows import Row, environment, read_rows, write_rows
from saccade.tools.benchmark.suites import noise, photo_recipe, photos
from tests.present import present

CPU = torch.device("cpu")


def contender(kind: str, executor: str, seconds: float, images: int = 10, **row) -> Contender:
    def work():
        while True:
            time.sleep(seconds)
            yield images

    return Contender(Row(kind, executor, "r", "d", "cpu", 32, images, 2, **row), work)


def test_rates_are_medians_of_rounds_and_views_are_images_times_views():
    fast, slow = contender("loader", "resident", 0.01), contender("baseline", "torchvision-pil", 0.04)
    rows = measure([fast, slow], CPU, rounds=3, seconds=0.1)
    assert rows[0].rounds == 3 and rows[0].images_per_second == statistics.median(fast.rates)
    assert rows[0].views_per_second == 2 * rows[0].images_per_second
    assert rows[0].views_per_second_low <= rows[0].views_per_second <= rows[0].views_per_second_high
    assert 250 / 2 < rows[1].images_per_second <= 250  # 10 images in 40 ms, on a busy machine up to twice as long
    assert rows[0].times_baseline == pytest.approx(
        statistics.median(a / b for a, b in zip(fast.rates, slow.rates, strict=True))
    )
    assert rows[0].times_baseline > 2 and rows[1].times_baseline == 1


def test_share_of_the_model_is_the_whole_over_the_step():
    rows = measure(
        [contender("model", "none", 0.01, backbone="b"), contender("train", "resident", 0.02, backbone="b")],
        CPU,
        3,
        0.1,
    )
    assert 0.3 < present(rows[1].share_of_model) < 0.8 and rows[0].share_of_model is None


def test_every_contender_has_its_turn_in_every_round_and_is_closed():
    turns, closed = [], []

    def make(name: str) -> Contender:
        def work():
            turns.append(name)
            while True:
                yield 1

        return Contender(Row("loader", name, "r", "d", "cpu", 1, 1, 1), work, close=lambda: closed.append(name))

    measure([make("a"), make("b")], CPU, rounds=2, seconds=0.0)
    assert turns == ["a", "b"] * 3 and closed == ["a", "b"]


def test_a_budget_ends_the_rounds_but_never_before_the_first():
    row = measure([contender("loader", "a", 0.01)], CPU, rounds=50, seconds=0.02, budget=0.0)[0]
    assert row.rounds == 1 and row.images_per_second > 0


def test_a_contender_that_fails_is_left_out_and_says_why():
    def broken():
        yield 1
        raise RuntimeError("workers were killed")

    good, bad = contender("loader", "a", 0.01), Contender(Row("loader", "b", "r", "d", "cpu", 1, 1, 1), broken)
    rows = measure([bad, good], CPU, rounds=3, seconds=0.02, tolerant=True)
    assert rows[0].more == {"error": "RuntimeError: workers were killed"} and rows[0].images_per_second == 0
    assert rows[1].rounds == 3 and rows[1].images_per_second > 0
    with pytest.raises(RuntimeError, match="killed"):
        measure([Contender(Row("loader", "b", "r", "d", "cpu", 1, 1, 1), broken)], CPU, rounds=1, seconds=0.0)


def test_a_round_that_time_cut_short_counts_for_nobody():
    first, second = contender("loader", "a", 0.1), contender("loader", "b", 0.1)
    rows = measure(
        [first, second], CPU, rounds=9, seconds=0.0, budget=0.5
    )  # a turn takes 0.2 s: time is up in the third
    assert rows[0].rounds == rows[1].rounds == len(first.rates) == len(second.rates) == 1


def test_bunches_are_timed_whole():
    made = []

    def work():
        while True:
            made.append(1)
            yield 1

    c = Contender(Row("loader", "a", "r", "d", "cpu", 1, 1, 1), work, warm_up=0, stride=4)
    measure([c], CPU, rounds=1, seconds=0.0)
    assert len(made) == 8  # one bunch to warm up, one timed


def test_cpu_time_and_memory_are_those_of_this_process():
    before = cpu_seconds()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    assert 0.2 < cpu_seconds() - before < 2
    held = memory_mib()
    with mmap.mmap(-1, 256 << 20) as block:  # fresh pages: an array could lie in memory that was freed before
        np.frombuffer(block, np.uint8)[:] = 1
        assert memory_mib() - held > 180


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_baseline_makes_the_recipes_views(flavour):
    recipe = photo_recipe(64, crops=2)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))
    views = ManyCrops(recipe, flavour)(image)
    assert [tuple(v.shape) for v in views] == [(3, 64, 64)] * 2 + [(3, 27, 27)] * 2
    assert all(v.dtype == torch.float32 for v in views)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_baseline_has_the_recipes_distribution(flavour):
    """RSA's derived view, without its colour: the baseline's pixels are the parent's crop, as in the recipe."""
    recipe = find_method("rsa").recipe("cifar10", 32).views
    derived = [v for v in recipe if v.parent]
    assert derived, "the recipe this test is about has no derived view any more"
    image = Image.fromarray(np.full((40, 40, 3), 128, dtype=np.uint8))
    views = dict(zip(recipe.names, ManyCrops(recipe, flavour)(image), strict=True))
    weak = views[present(derived[0].parent)]
    expected = (torch.full((3,), 128 / 255) - torch.tensor(recipe.mean)) / torch.tensor(recipe.std)
    assert torch.allclose(weak.mean((1, 2)), expected, atol=1e-4)


def rows_file(path, rates, hardware=None):
    machine = {**environment(), **({"hardware": hardware} if hardware else {})}
    rows = [
        Row("loader", name, "r", "d", "cpu", 32, 8, 2, images_per_second=rate / 2, views_per_second=rate)
        for name, rate in rates.items()
    ]
    write_rows(path, rows, machine)
    return path


def test_rows_carry_versions_hardware_commit_and_date(tmp_path):
    record = read_rows(rows_file(tmp_path / "a.json", {"x": 100.0}))[0]
    assert {
        "kind",
        "executor",
        "recipe",
        "data",
        "device",
        "views_per_second",
        "images_per_second",
        "date",
        "commit",
        "versions",
        "hardware",
    } <= set(record)
    assert (
        record["versions"]["torch"] == torch.__version__.split("+")[0]
        or record["versions"]["torch"] == torch.__version__
    )


def test_gate_fails_on_a_slower_row_and_passes_within_the_tolerance(tmp_path, capsys):
    old = rows_file(tmp_path / "old.json", {"a": 100.0, "b": 100.0, "gone": 5.0})
    new = rows_file(tmp_path / "new.json", {"a": 95.0, "b": 70.0, "fresh": 9.0})
    assert bench.main(["--compare", str(old), str(new)]) == 1
    printed = capsys.readouterr().out
    assert printed.count("SLOWER") == 1 and "-30.0%" in printed and "1 of 2 rows" in printed
    assert bench.main(["--compare", str(old), str(new), "--tolerance", "0.35"]) == 0


def test_gate_refuses_another_machine_unless_forced(tmp_path):
    old = rows_file(tmp_path / "old.json", {"a": 100.0}, {"cpu": "slow", "cpus": 1})
    new = rows_file(tmp_path / "new.json", {"a": 200.0}, {"cpu": "fast", "cpus": 64})
    with pytest.raises(UserError, match="different machines"):
        compare(old, new, 0.1, force=False)
    assert compare(old, new, 0.1, force=True) == 0


@pytest.mark.parametrize(
    ("content", "words"), [("[1, 2]", "no list of measurements"), ("{", "cannot be read"), ("[]", "no row with a rate")]
)
def test_gate_says_what_is_wrong_with_a_file(tmp_path, content, words):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match=words):
        compare(tmp_path / "bad.json", tmp_path / "bad.json", 0.1, False)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--batch-size", "0"], "not positive"),
        (["--seconds", "-1"], "not positive"),
        (["--executors", "magic"], "use one of"),
        (["--method", "stecc"], "did you mean stec"),
        (["--data", "/nowhere"], "no such file or folder"),
        (["--compare", "/nowhere", "/nowhere"], "cannot be read"),
    ],
)
def test_bad_input_is_one_clear_sentence(flags, words):
    with pytest.raises(UserError, match=words):
        bench.main(flags)


def test_own_method_and_data(tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "set.npz", images=rng.integers(0, 256, (64, 16, 16, 3), dtype=np.uint8), labels=np.arange(64) % 4
    )
    argv = [
        "--method",
        "simclr",
        "--data",
        str(tmp_path / "set.npz"),
        "--backbone",
        "test_resnet",
        "--batch-size",
        "8",
        "--quick",
        "--seconds",
        "0.01",
        "--json",
        str(tmp_path / "rows.json"),
        "--picture",
        str(tmp_path / "bars.png"),
    ]
    assert bench.main(argv) == 0
    rows = read_rows(tmp_path / "rows.json")
    assert [(r["kind"], r["executor"]) for r in rows] == [
        ("loader", "resident"),
        ("baseline", "torchvision-pil"),
        ("baseline", "torchvision-v2"),
        ("model", "none"),
        ("train", "resident"),
    ]
    assert all(r["views_per_second"] == pytest.approx(2 * r["images_per_second"], rel=1e-3) for r in rows)
    assert all(r["views_per_second"] > 0 for r in rows)
    assert Image.open(tmp_path / "bars.png").size[0] > 500
    assert "torchvision-pil" in capsys.readouterr().out


def test_growth_sweeps_run(tmp_path):
    made = growth.views_sweep(growth.Sweep("views", "views", (1, 2)), CPU, 1, 0.0)
    growth.draw_sweep(growth.VIEWS, made, tmp_path / "views.png")
    assert [r.more["x"] for r in made] == [1, 2] and Image.open(tmp_path / "views.png").size[1] > 200


@pytest.mark.slow
def test_growth_sweeps_in_processes_of_their_own_run(tmp_path):
    made = growth.batch_sweep(growth.Sweep("batch", "images", (8, 16)), CPU, 1, 0.0)
    growth.draw_sweep(growth.BATCH, made, tmp_path / "batch.png")
    assert [r.more["x"] for r in made] == [8, 16, 8, 16] and Image.open(tmp_path / "batch.png").size[1] > 300
    queue = growth.queue_sweep(growth.Sweep("queue", "keys", (128,)), CPU, 1, 0.0)
    assert queue[0].recipe.startswith("moco-v2")


def test_profile_counts_every_operator_once():
    own = {"aten::mkldnn_convolution": 5.0, "aten::native_batch_norm": 2.0, "make the batch": 1.0, "mystery": 0.5}
    assert by_kind(own) == {"convolutions": 5.0, "batch norm": 2.0, "make the batch": 1.0, "everything else": 0.5}


def test_photos_are_the_same_images_in_every_copy(tmp_path):
    source = photos(tmp_path, copies=2)
    assert len(source) == 216 and np.array_equal(source.read(0), source.read(1))
    assert noise(3, 8).images.shape == (3, 8, 8, 3)


def test_profile_names_the_kinds_of_work(capsys):
    assert profile_step(["--method", "simclr", "--batch-size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "convolutions" in printed and "make the batch" in printed and "%" in printed
