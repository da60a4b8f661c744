"""JPEG bytes to RGB pixels in a buffer of the caller's, by simplejpeg (libjpeg-turbo, which leaves the GIL): many
threads at once, the accurate inverse DCT and the smooth upsampling of PIL, so the pixels are PIL's to the bit."""

from __future__ import annotations

import numpy as np
import simplejpeg

_KINDS = {"YCbCr", "Gray", "RGB"}  # CMYK becomes RGB in another way than PIL's


def decode_into(data: np.ndarray | bytes, out: np.ndarray, scale: int = 1) -> bool:
    """Decode the JPEG `data` into `out` (H, W, 3) uint8, contiguous; as it lies, EXIF's rotation is not known here.

    scale: 2, 4 or 8: H and W are those of the image over it, rounded up, which libjpeg's inverse DCT makes directly.
    False where it is damaged, of another size, or of a kind that only PIL reads (CMYK); `out` then holds anything.
    """
    try:
        height, width, kind, _ = simplejpeg.decode_jpeg_header(data)
        if tuple(-(-int(side) // scale) for side in (height, width)) != out.shape[:2] or kind not in _KINDS:
            return False
        least = {} if scale == 1 else {"min_height": out.shape[0], "min_width": out.shape[1]}
        return simplejpeg.decode_jpeg(data, "RGB", buffer=out, **least).shape == out.shape
    except ValueError:  # what libjpeg calls a warning too: PIL judges
        return False


def decode_upright(data: np.ndarray | bytes, orientation: int, out: np.ndarray, scale: int = 1) -> bool:
    """The same, turned upright from EXIF's orientation, 1 to 8."""
    if orientation == 1:
        return decode_into(data, out, scale)
    lying = np.empty((*(out.shape[:2] if orientation < 5 else out.shape[1::-1]), 3), np.uint8)
    whole = decode_into(data, lying, scale)
    out[:] = _UPRIGHT[orientation](lying)
    return whole


_UPRIGHT = {  # EXIF's orientation -> (H, W, 3) as it lies to (H, W, 3) upright
    2: lambda lying: lying[:, ::-1],
    3: lambda lying: lying[::-1, ::-1],
    4: lambda lying: lying[::-1],
    5: lambda lying: lying.swapaxes(0, 1),
    6: lambda lying: lying[::-1].swapaxes(0, 1),
    7: lambda lying: lying[::-1, ::-1].swapaxes(0, 1),
    8: lambda lying: lying[:, ::-1].swapaxes(0, 1),
}
