"""Makes the photos beside it: python tests/data/make_photos.py FOLDER.

Dead leaves (Lee, Mumford and Huang 2001): shapes with radii by a power law that hide one another, each with a texture
of 1/f noise, under one light. Such images have photographs' spectrum, edges and correlated channels.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

# name: (width, height, how it is stored). Two classes; no two of one size, wide and tall ones.
PHOTOS = {
    "leaves/00.jpg": (240, 180, "4:2:0"),
    "leaves/01.jpg": (150, 200, "4:2:0"),
    "leaves/02.jpg": (231, 173, "4:4:4"),
    "leaves/03.jpg": (128, 128, "progressive"),
    "leaves/04.jpg": (200, 112, "4:2:2"),
    "leaves/05.jpg": (166, 220, "grey"),
    "pebbles/00.jpg": (256, 144, "4:2:0"),
    "pebbles/01.jpg": (140, 210, "4:2:0"),
    "pebbles/02.jpg": (225, 169, "exif"),
    "pebbles/03.jpg": (97, 133, "4:2:0"),
    "pebbles/04.jpg": (192, 160, "cmyk"),
    "pebbles/05.jpg": (211, 157, "4:2:0"),
}
SHAPES = 260
PALETTES = {  # RGB at the dark and the light end: foliage and earth, stone and sand
    "leaves": np.array([[20, 40, 15], [215, 200, 90]]),
    "pebbles": np.array([[50, 45, 55], [235, 220, 200]]),
}


def pink(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise with amplitudes that fall as 1/frequency, mean 0, deviation 1. (height, width)"""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random((height, width)))
    field = np.real(np.fft.ifft2(phases / frequency))
    return field / field.std()


def dead_leaves(kind: str, seed: int, width: int, height: int) -> Image.Image:
    """An RGB image; every later shape hides what is below it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float64)
    dark, light = PALETTES[kind]
    pixels = np.zeros((height, width, 3))
    texture, hue = pink(rng, height, width), pink(rng, height, width)
    for _ in range(SHAPES):
        radius = 4 * rng.random() ** (-1 / 1.6)  # many small ones, few large: density r^-2.6
        stretch, angle = (rng.uniform(1.8, 3.5) if kind == "leaves" else rng.uniform(1.0, 1.4)), rng.uniform(0, np.pi)
        dx, dy = x - rng.uniform(0, width), y - rng.uniform(0, height)
        along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
        distance = np.hypot(along / stretch, across) / min(radius, 0.35 * max(width, height))
        inside = distance < 1
        shade = 0.75 + 0.35 * np.sqrt(np.clip(1 - distance[inside] ** 2, 0, 1)) * rng.uniform(0.6, 1.2)
        tone = np.clip(rng.beta(1.6, 1.6) + 0.07 * texture[inside], 0, 1)[:, None]
        tint = rng.normal(0, 12, 3) + 5 * hue[inside, None] * np.array([1.0, 0.2, -1.0])
        pixels[inside] = (dark + tone * (light - dark) + tint) * shade[:, None]
    light_from = 1 + 0.25 * (x / width - 0.5) * rng.choice([-1, 1]) - 0.2 * (y / height - 0.5)
    grain = rng.normal(0, 2.5, (height, width, 1))
    image = Image.fromarray((pixels * light_from[..., None] + grain).clip(0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(0.6))  # a lens


def save(image: Image.Image, path: Path, how: str) -> None:
    subsampling = {"4:4:4": 0, "4:2:2": 1}.get(how, 2)
    if how == "exif":  # stored lying on its side; 6: turn by 90 degrees to see it upright
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, quality=82, subsampling=subsampling, exif=exif)
    elif how == "grey":
        image.convert("L").save(path, quality=82)
    elif how == "cmyk":
        image.convert("CMYK").save(path, quality=82)
    else:
        image.save(path, quality=82, subsampling=subsampling, progressive=how == "progressive")


def main(folder: Path) -> None:
    for seed, (name, (width, height, how)) in enumerate(PHOTOS.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save(dead_leaves(path.parent.name, seed, width, height), path, how)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("photos"))
