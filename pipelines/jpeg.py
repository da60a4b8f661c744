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
