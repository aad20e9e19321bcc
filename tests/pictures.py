"Images that tests make up, and the files that hold them."
import io

import numpy as np
from PIL import Image


def photo(key=0, width=60, height=44):
    "Smooth colors with some noise."
    rng = np.random.default_rng(key)
    small = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), 3), int)
    noisy = smooth + rng.integers(-9, 10, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def saved(img, format, **options):
    "The content of an image file."
    file = io.BytesIO()
    img.save(file, format, **options)
    return file.getvalue()
