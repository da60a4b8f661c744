"""tools.doctor: every verdict from speeds that leave no doubt, and one real examination."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from saccade.base.errors import UserError
from saccade.tools import doctor
from saccade.tools.benchmark.diagnosis import Speeds, advise, bottleneck, warnings_for
from saccade.tools.benchmark.inspection import decode_rate, decoded_gib, without_colour
from saccade.tools.benchmark.suites import noise, photo_recipe

HEALTHY = Speeds(
    "t",
    "dali",
    "cuda",
    "bf16",
    loader=5000,
    model=1000,
    whole=990,
    geometry=6000,
    decode=20000,
    disk=90000,
    copy=50000,
    cpus=16,
    machine_cpus=16,
    threads=16,
    free_memory=64,
    decoded_set=500,
)


def test_the_stem_of_small_images_on_larger_ones_is_named_where_a_cpu_pays_for_it():
    costly = replace(HEALTHY, device="cpu", copy=None, stem="cifar", image_size=64)
    assert "backbone.stem=plain" in advise(costly, "model")[0]
    for other in ({"stem": "plain"}, {"image_size": 32}, {"device": "cuda"}):
        assert "backbone.stem" not in " ".join(advise(replace(costly, **other), "model"))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        ({}, "model"),
        ({"loader": 500, "disk": 510, "decode": 3000, "whole": 490}, "disk"),
        ({"loader": 500, "decode": 600, "whole": 490}, "decode"),
        ({"loader": 500, "geometry": 4000, "whole": 490}, "colour"),
        ({"loader": 500, "geometry": 520, "whole": 490}, "crop"),
        ({"copy": 700, "whole": 690}, "copy"),
    ],
)
def test_verdict_names_the_slowest_part(changed, part):
    speeds = replace(HEALTHY, **changed)
    assert bottleneck(speeds)[0] == part
    assert advise(speeds, part)


def test_healthy_machine_has_no_warnings():
    assert warnings_for(HEALTHY) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"cpus": 2}, "only 2 of the machine's 16 CPUs"),
        ({"free_memory": 1.0}, "1.0 GiB of memory"),
        ({"executor": "reference", "shared_memory": 0.06}, "--shm-size"),
        ({"disk": 300}, "the disk gives 300"),
        ({"executor": "resident"}, "decoded set takes 500.0 GiB"),
        ({"device": "cpu", "threads": 1}, "OMP_NUM_THREADS"),
    ],
)
def test_warnings_name_the_number(changed, words):
    assert any(words in w for w in warnings_for(replace(HEALTHY, **changed)))


def test_expected_gain_never_exceeds_what_the_model_allows():
    speeds = replace(HEALTHY, executor="reference", loader=400, decode=500, whole=395)
    text = next(a for a in advise(speeds, "decode") if "--pipeline threads" in a)
    assert "up to 2.5 times" in text  # 3 x 400 is more than the step's 1000; 1000 / 395 is 2.5


def test_a_set_that_fits_into_memory_is_decoded_once_for_all():
    speeds = replace(HEALTHY, loader=500, decode=600, whole=490, decoded_set=4.0)
    assert "--store raw" in advise(speeds, "decode")[0]
    assert "--store raw" not in " ".join(advise(replace(speeds, decoded_set=50.0), "decode"))


def test_without_colour_keeps_the_crops():
    recipe = photo_recipe(64, crops=2)
    bare = without_colour(recipe)
    assert [v.crop for v in bare] == [v.crop for v in recipe] and not any(v.operations for v in bare)


def test_estimates_of_arrays_are_exact():
    assert decode_rate(noise(10, 8), 2) is None
    assert decoded_gib(noise(1000, 32)) == pytest.approx(1000 * 3 * 32 * 32 / 2**30)


@pytest.mark.slow
def test_examination_of_a_folder(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "a").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (60, 50 + i, 3), dtype=np.uint8)).save(tmp_path / "a" / f"{i}.jpg")
    argv = [
        "--data",
        str(tmp_path),
        "--method",
        "simclr",
        "--backbone",
        "test_resnet",
        "--image-size",
        "32",
        "--batch-size",
        "8",
        "--pipeline",
        "reference",
        "--workers",
        "1",
    ]
    threads = torch.get_num_threads()
    try:
        assert doctor.main(argv) == 0
    finally:
        torch.set_num_threads(threads)
    printed = capsys.readouterr().out
    for words in (
        "reading the files",
        "decoding",
        "loader ceiling",
        "model ceiling",
        "end to end",
        "bottleneck:",
        "  - ",
    ):
        assert words in printed


@pytest.mark.parametrize(
    ("argv", "words"), [(["--method", "stecc"], "did you mean"), (["--resume", "x"], "starts no run")]
)
def test_bad_input_is_one_clear_sentence(argv, words):
    with pytest.raises(UserError, match=words):
        doctor.main(argv)


def test_unknown_flag_is_the_doctors_own_error(capsys):
    with pytest.raises(SystemExit):
        doctor.main(["--batchsize", "8"])
    assert "tools.doctor: unknown argument " in capsys.readouterr().err
