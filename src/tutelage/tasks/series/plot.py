"""One series as a small picture, for the report."""

from __future__ import annotations

import io

import numpy as np

from tutelage.tasks.series.base import Series

_SHOWN = (192, 96)
_LINES = ("#1f5fa8", "#c2571a", "#2c7d4f", "#8a3f94")


def plot(series: Series, index: int) -> bytes:
    """Draw one series as a PNG of 192 x 96 pixels: at most four channels, each on its own scale."""
    from PIL import Image, ImageDraw

    width, height = 2 * _SHOWN[0], 2 * _SHOWN[1]
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    at = np.linspace(6, width - 7, series.shape[1])
    for values, colour in zip(series.values[index], _LINES, strict=False):
        known = np.flatnonzero(~np.isnan(values))
        if len(known) == 0:
            continue
        y = values[known].astype(np.float64)
        spread = y.max() - y.min()
        share = (y - y.min()) / spread if spread > 0 else np.full(len(y), 0.5)
        points = list(
            zip(at[known].tolist(), ((height - 13) * (1 - share) + 6).tolist(), strict=True)
        )
        pen.line(points if len(points) > 1 else points * 2, fill=colour, width=3)
    image = image.resize(_SHOWN, Image.Resampling.LANCZOS)
    held = io.BytesIO()
    image.quantize(32).save(held, format="PNG", optimize=True)
    return held.getvalue()
