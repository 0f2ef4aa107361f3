"""Does the exported file say what the network said? Checked example by example.

Covers the outputs on the examples given. It does not cover other runtimes, or inputs unlike them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from tutelage.errors import DataError, ExportError
from tutelage.export.artifact import run_onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Parity:
    """`n` examples; the largest difference of any logit; the share of equal decisions.

    `mean_kl` is KL(reference || artifact) in nats, averaged over the examples.
    """

    n: int
    largest_error: float
    agreement: float
    mean_kl: float


def parity(
    path: Path | str,
    reference_logits: Float[np.ndarray, "n classes"],
    inputs: Float[np.ndarray, "n c h w"],
    *,
    threads: int = 1,
) -> Parity:
    """Run the artifact over `inputs` and compare it with `reference_logits`.

    Raises `DataError` when the two differ in number, and `ExportError` when the artifact has
    another number of classes or answers with NaN.
    """
    if len(reference_logits) != len(inputs):
        raise DataError(
            f"{len(reference_logits)} reference logits for {len(inputs)} inputs: parity needs one "
            "row for each. Pass the logits of the same examples."
        )
    got = run_onnx(path, inputs, threads).astype(np.float64)
    want = np.asarray(reference_logits, dtype=np.float64)
    if got.shape != want.shape:
        raise ExportError(
            f"{path} answers {list(got.shape)} where {list(want.shape)} is expected. "
            "Export it from the network that gave the reference."
        )
    if not np.isfinite(got).all():
        raise ExportError(f"{path} answers with NaN or infinity. Export it again in float32.")
    p, q = _log_softmax(want), _log_softmax(got)
    return Parity(
        n=len(got),
        largest_error=float(np.abs(got - want).max()),
        agreement=float((got.argmax(1) == want.argmax(1)).mean()),
        mean_kl=float(max(0.0, (np.exp(p) * (p - q)).sum(1).mean())),
    )


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
