"""The operations beyond the papers', each against what torchvision or PIL makes of the same drawn numbers."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomErasing

from saccade.base.errors import UserError
from saccade.pipelines.draw import draw
from saccade.pipelines.operations import Blur, Grey, Jitter, Solarise
from saccade.pipelines.operations.cutout import Cutout
from saccade.pipelines.operations.equalise import Equalise
from saccade.pipelines.operations.erase import Erase
from saccade.pipelines.operations.gain import Gain
from saccade.pipelines.operations.gamma import Gamma
from saccade.pipelines.operations.noise import Noise, normal
from saccade.pipelines.operations.posterise import Posterise
from saccade.pipelines.operations.randaugment import POOL, RandAugment
from saccade.pipelines.operations.registry import find_operation, known_operations
from saccade.pipelines.operations.rotate import Rotate
from saccade.pipelines.operations.turn import Turn
from saccade.pipelines.render import appearance
from saccade.pipelines.views import View, Views
from tests.pipelines.oracle import drawn, pictures

COUNT, SIZE = 48, 24
P_MIN = 1e-4  # a fixed seed: always passes or always fails


def applied(operation, size=SIZE, count=COUNT, seed=0):
    """8-bit images, their drawn numbers, and what `apply` makes of them in float64."""
    view = View("view", size, operations=(replace(operation, p=1.0),))
    images = pictures(count, size, size, seed)
    params = drawn(Views((view,)), images, seed)["view"]
    out = operation.apply(images.double() / 255, params.drawn[operation.name])
    return images, [params.values(operation.name, n) for n in range(count)], out


@pytest.mark.parametrize("operation", [o() for o in known_operations().values()], ids=list(known_operations()))
def test_apply_is_torchvisions_where_it_has_one(operation):
    images, values, out = applied(operation)
    assert out.min() >= 0 and out.max() <= 1 + 1e-12
    for image, numbers, ours in zip(images.double() / 255, values, out, strict=True):
        expected = operation.reference(image, numbers)
        if expected is None:
            assert operation.name in ("equalise", "noise", "randaugment")  # judged below
            return
        # float32 inside of torchvision's rotation and hue
        torch.testing.assert_close(ours, expected.double(), rtol=0, atol=2e-5 if operation.name == "rotate" else 2e-6)


def as_pil(image):
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def test_equalise_is_pils_on_images_of_8_bits():
    images, _, out = applied(Equalise())
    for image, ours in zip(images, out, strict=True):
        pil = F.to_tensor(Equalise().with_pil(as_pil(image), {})).double()
        torch.testing.assert_close(ours, pil, rtol=0, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
def test_posterise_keeps_the_pixels_pil_keeps_apart(bits):
    images, _, out = applied(Posterise(bits=bits))
    for image, ours in zip(images, out, strict=True):
        pil = torch.from_numpy(np.array(Posterise(bits=bits).with_pil(as_pil(image), {}))).permute(2, 0, 1)
        assert torch.equal(
            (ours * 2**bits).round().long(), torch.div(pil, 2 ** (8 - bits), rounding_mode="floor").long()
        )


@pytest.mark.parametrize("member", POOL)
def test_members_of_randaugments_pool_are_pils(member):
    operation = RandAugment(count=1, each=1.0)
    size = 12 if member.startswith("shear") else SIZE  # larger, and level 4 asks for points midway between two pixels
    images, view = pictures(96, size, size), View("view", size, operations=(operation,))
    params = drawn(Views((view,)), images)["view"].drawn["randaugment"]
    params = {**params, "member": torch.full_like(params["member"], list(POOL).index(member))}
    out = operation.apply(images.double() / 255, params) * 255
    for n, image in enumerate(images):
        numbers = {name: column[n].tolist() for name, column in params.items()}
        pil = torch.from_numpy(np.array(operation.with_pil(as_pil(image), numbers))).permute(2, 0, 1).double()
        error = (out[n] - pil).abs()
        # half a level of rounding, contrast's mean as well; moved pixels may fall on the other side of an edge
        assert (error <= 1.5).double().mean() > 0.995, (member, numbers, error.max())


def test_randaugment_draws_fixmatchs_numbers():
    view = View("view", 32, operations=(RandAugment(), Cutout(p=1.0)))
    n = 20_000
    columns = draw(Views((view,)), 0, 0, torch.arange(n), torch.full((n, 2), 32))["view"].drawn["randaugment"]
    first = {name: column[:, :5] for name, column in columns.items() if name != "chosen"}
    for name, low, high in (("member", 0, 13), ("level", 1, 9)):
        values, counts = first[name].unique(return_counts=True)
        assert values.tolist() == list(range(low, high + 1)) and counts.float().std() / counts.float().mean() < 0.03
    assert abs(first["taken"].float().mean() - 0.5) < 0.01 and abs(first["backwards"].float().mean() - 0.5) < 0.01
    assert not columns["taken"][:, 5:].any()


def test_erasing_is_distributed_as_torchvisions():
    n, size = 4000, 48
    view = View("view", size, operations=(Erase(p=1.0),))
    columns = draw(Views((view,)), 1, 0, torch.arange(n), torch.full((n, 2), size))["view"].drawn["erase"]
    out = Erase().apply(torch.ones(n, 3, size, size), columns)[:, 0] == 0
    torch.manual_seed(0)
    theirs = [_torchvisions_box(size) for _ in range(n)]
    ours = [out.any(2).sum(1), out.any(1).sum(1), out.any(2).int().argmax(1), out.any(1).int().argmax(1)]
    for mine, k in zip(ours, (2, 3, 0, 1), strict=True):
        assert ks_2samp(mine.numpy(), [box[k] for box in theirs]).pvalue > P_MIN


def _torchvisions_box(size):
    return RandomErasing.get_params(torch.empty(3, size, size), scale=(0.02, 0.33), ratio=(0.3, 3.3), value=[0.0])[:4]


def test_two_erasings_of_one_view_differ():
    view = View("view", 32, operations=(Erase(p=1.0), Erase(p=1.0)))
    params = draw(Views((view,)), 0, 0, torch.arange(100), torch.full((100, 2), 32))["view"]
    assert not torch.isclose(params.drawn["erase"]["top"], params.drawn["erase_2"]["top"]).any()


def test_noise_is_normal_and_a_function_of_its_seed_alone():
    noise = normal(torch.tensor([1, 2, 1]), 60_001)
    assert torch.equal(noise[0], noise[2]) and kstest(noise[0].numpy(), "norm").pvalue > P_MIN
    assert abs(torch.corrcoef(noise[:2])[0, 1]) < 5 / 60_001**0.5
    assert abs(torch.corrcoef(torch.stack([noise[0, 1:], noise[0, :-1]]))[0, 1]) < 5 / 60_001**0.5
    grey = torch.full((2, 3, 64, 64), 0.5)
    out = Noise().apply(grey, {"sigma": torch.tensor([0.1, 0.0]), "seed": torch.tensor([5, 6])})
    assert abs(out[0].std() - 0.1) < 0.003 and torch.equal(out[1], grey[1])


def test_columns_hold_what_changes_nothing_where_not_chosen():
    operations = (Gamma(), Gain(), Noise(), Rotate(), Turn(), Erase())
    view = View("view", 16, operations=operations)
    params = draw(Views((view,)), 0, 0, torch.arange(400), torch.full((400, 2), 16))["view"]
    image = pictures(400, 16, 16).double() / 255
    for operation in operations:
        unchosen = {name: c[~params.chosen(operation.name)] for name, c in params.drawn[operation.name].items()}
        left = image[~params.chosen(operation.name)]
        assert len(left) > 50
        torch.testing.assert_close(operation.apply(left, unchosen), left, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_kernels_and_torch_take_turns_in_the_views_order(backend):
    """Usual operations before, between, and in another order than the kernels'."""
    jitter, grey, blur, solarise = Jitter(), Grey(0.7), Blur(0.7), Solarise(0.7)
    orders = [
        (Posterise(p=0.5), jitter, grey, blur, solarise),
        (jitter, grey, Posterise(p=0.5), blur, solarise, Erase()),
        (solarise, blur, grey, jitter),
        (blur, Turn(), blur, Rotate(), Noise()),
    ]
    images = pictures(32, 20, 20)
    for operations in orders:
        view = View("view", 20, operations=operations)
        recipe = Views((view,), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
        params = drawn(recipe, images)["view"]
        out = appearance(images, view, params, recipe, backend=backend)
        for n in range(len(images)):
            image = images[n : n + 1].double() / 255
            for key, operation in view.keyed.items():
                one = {name: column[n : n + 1] for name, column in params.drawn[key].items()}
                image = operation.apply(image, one) if params.chosen(key)[n] else image
            expected = F.normalize(image[0], list(recipe.mean), list(recipe.std))
            # a pixel on the edge of a level may fall on its other side in float32
            close = (out[n].double() - expected).abs() < 1e-4
            assert close.double().mean() > 0.998, (n, [o.name for o in operations])


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (Posterise(bits=9), "posterise bits = 9; give 1 to 8."),
        (Posterise(p=2.0), "p = 2.0 is no probability"),
        (Gamma(gamma=(2.0, 1.0)), "two rising positive numbers"),
        (Rotate(degrees=181.0), "0 to 180"),
        (Erase(scale=(0.0, 1.0)), "rising and positive"),
        (Cutout(side=0), "1 pixel or more"),
        (Noise(sigma=(-1.0, 0.0)), "from 0"),
        (Gain(amount=2.0), "0 to 1"),
        (RandAugment(count=9), "1 to 8"),
    ],
)
def test_wrong_numbers_are_one_sentence(operation, words):
    with pytest.raises(UserError, match="view 'mine': ") as error:
        View("mine", 32, operations=(operation,))
    assert words in str(error.value)


def test_every_operation_says_its_name_in_plain_values():
    for name, kind in known_operations().items():
        assert asdict(kind())["name"] == name == kind.name


def test_unknown_operations_are_answered_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean posterise"):
        find_operation("posterize")
    with pytest.raises(UserError, match="there is no file"):
        find_operation(f"{tmp_path}/mine.py:Mine")
    (tmp_path / "mine.py").write_text(
        "from saccade.pipelines.operations import Operation\nx = 1\n1 / 0 if x > 1 else 0\n"
    )
    with pytest.raises(UserError, match="has no Mine; it has the operations none"):
        find_operation(f"{tmp_path}/mine.py:Mine")
    with pytest.raises(UserError, match="is no operation"):
        find_operation(f"{tmp_path}/mine.py:x")
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        find_operation(f"{tmp_path}/broken.py:Mine")
    assert find_operation("saccade.pipelines.operations.turn:Turn") is Turn
