"""Every operation as batched torch with per-sample parameters: one code path for CPU and CUDA, nothing drawn.

Images are float (N, 3, H, W) in [0, 1]. The meaning is torchvision's functional operations on float tensors
(`pipelines/reference.py`); tests/pipelines/test_ops.py holds every one of these to it. float64 in, float64 out.
"""

from __future__ import annotations

import torch
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601-2, torchvision's rgb_to_grayscale


def crop_resize(pixels: Tensor, box: Tensor, flip: Tensor, size: int, interpolation: str = "bilinear") -> Tensor:
    """Cut `box`, resize to size x size with antialiasing, mirror where `flip`.

    pixels: (N, 3, H, W) uint8 or float; box: (N, 4) int64 top, left, height, width; flip: (N,) bool.
    Returns (N, 3, size, size) float in [0, 1]. The two 1-d filters are (size x H) and (size x W) matrices, so the
    work is two batched matrix products: meant for small sources (up to about 128 px).
    """
    image = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    rows = _filter_matrix(box[:, 0], box[:, 2], image.shape[2], size, interpolation).to(image.dtype)
    columns = _filter_matrix(box[:, 1], box[:, 3], image.shape[3], size, interpolation).to(image.dtype)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    n, channels, height, width = image.shape
    image = torch.bmm(image.reshape(n, channels * height, width), columns.transpose(1, 2))  # N x CH x S
    image = torch.matmul(rows[:, None], image.view(n, channels, height, size))  # N x C x S x S
    return image.clamp(0, 1) if interpolation == "bicubic" else image


def _filter_matrix(start: Tensor, length: Tensor, source: int, size: int, interpolation: str) -> Tensor:
    """(N, size, source): row o holds the antialiased filter weights of output pixel o, zero outside the crop.

    float64: in float32 the filters of a 500-pixel crop would stand 3e-5 pixels off.
    """
    position = torch.arange(source, device=start.device, dtype=torch.float64)
    scale = (length.double() / size)[:, None, None]  # source pixels per output pixel
    stretch = scale.clamp(min=1)  # antialiasing: the filter widens when the image shrinks
    centre = (torch.arange(size, device=start.device, dtype=torch.float64)[None, :, None] + 0.5) * scale
    offset = position[None, None, :] - start[:, None, None]
    weight = _KERNELS[interpolation]((offset + 0.5 - centre) / stretch)
    weight = weight * ((offset >= 0) & (offset < length[:, None, None]))
    return weight / weight.sum(dim=2, keepdim=True)


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic with a = -0.5, the one PIL and torch's antialiased resize use."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


_KERNELS = {"bilinear": _triangle, "bicubic": _cubic}


def jitter(
    image: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor, order: Tensor
) -> Tensor:
    """Brightness, contrast, saturation and hue in each sample's own order; factors (N,), order (N, 4).

    The first three are all blends f x + (1 - f) g with g black, the mean luminance or the luminance, so each of the
    four positions is one blend for the whole batch, and a hue shift for the quarter of it whose turn that is.
    """
    factors = torch.stack([brightness, contrast, saturation, torch.ones_like(hue)], dim=1)  # N x 4
    for position in range(4):
        operation = order[:, position].long()
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        luma = _luminance(image)
        mean = luma.mean(dim=(2, 3), keepdim=True)
        is_contrast = (operation == 1)[:, None, None, None]
        is_saturation = (operation == 2)[:, None, None, None]
        target = torch.where(is_contrast, mean, torch.where(is_saturation, luma, torch.zeros_like(luma)))
        blended = (factor * image + (1 - factor) * target).clamp(0, 1)
        is_hue = operation == 3
        if image.device.type == "cpu":
            shifted = image.clone()
            shifted[is_hue] = shift_hue(image[is_hue], hue[is_hue])
        else:  # picking rows would make the host wait for the device
            shifted = shift_hue(image, hue)
        image = torch.where(is_hue[:, None, None, None], shifted, blended)
    return image


def shift_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue by `shift` (N,) of the colour circle, in HSV, exactly."""
    red, green, blue = image.unbind(1)
    value, chroma = image.amax(1), image.amax(1) - image.amin(1)
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sextant = sextant + 6 * shift[:, None, None]
    # Each channel is the value less the chroma, faded in over the sextants around its own opposite hue.
    distance = [(offset + sextant).remainder(6) for offset in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in distance], dim=1)


def grey(image: Tensor, chosen: Tensor) -> Tensor:
    """The luminance in all three channels of the chosen (N,) samples."""
    return torch.where(chosen[:, None, None, None], _luminance(image), image)


def blur(image: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur with reflected borders; sigma (N,) in pixels, 0 leaves a sample as it is.

    Both directions are products with a banded (S x S) matrix that already holds the reflection.
    """
    height, width = image.shape[2:]
    rows = _blur_matrix(sigma.to(image.dtype), kernel_size, height)
    columns = rows if width == height else _blur_matrix(sigma.to(image.dtype), kernel_size, width)
    image = torch.matmul(image, columns.transpose(1, 2)[:, None])
    return torch.matmul(rows[:, None], image)


def _blur_matrix(sigma: Tensor, kernel_size: int, size: int) -> Tensor:
    radius = kernel_size // 2
    tap = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (tap / sigma.clamp(min=1e-3)[:, None]) ** 2)  # sigma 0 becomes the identity
    weight = weight / weight.sum(dim=1, keepdim=True)
    source = torch.arange(size, device=sigma.device)[:, None] + tap.long()
    source = source.abs()
    source = torch.where(source >= size, 2 * (size - 1) - source, source)  # reflect without repeating the border
    matrix = torch.zeros(len(sigma), size, size, device=sigma.device, dtype=sigma.dtype)
    return matrix.scatter_add_(2, source.expand(len(sigma), -1, -1), weight[:, None, :].expand(-1, size, -1))


def solarise(image: Tensor, chosen: Tensor) -> Tensor:
    """x -> 1 - x where x >= 0.5, in the chosen (N,) samples (the same pixels as PIL's threshold 128 on uint8)."""
    return torch.where(chosen[:, None, None, None] & (image >= 0.5), 1 - image, image)


def normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(image - mean) / std per channel."""
    if mean == (0.0, 0.0, 0.0) and std == (1.0, 1.0, 1.0):
        return image
    # Plain numbers, channel by channel: a tensor of them would be a copy to the device, for which the host waits.
    return torch.stack([(image[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)


def _luminance(image: Tensor) -> Tensor:
    return (LUMA[0] * image[:, 0] + LUMA[1] * image[:, 1] + LUMA[2] * image[:, 2])[:, None]
