"""Tokens as colours: the principal components of many frames at once, in one basis.

A basis fitted jointly gives one thing one colour in every frame; fitted frame by frame, colours
would flip. Memory: the tokens once more, in float32, on the CPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from tfkit.diffusion import check_whole

Tokens = Tensor | Mapping[str, Tensor]  # (..., d), or one such for each layer


@dataclass(eq=False)
class TokenPCA:
    """The first principal components of tokens; signs are set so that they stay from run to run."""

    components: int = 3

    def __post_init__(self):
        check_whole("components", self.components)

    def fit(self, tokens: Tokens) -> "TokenPCA":
        """Finds the basis of all tokens (..., d), of all layers given, together. Returns itself.

        Raises ValueError for layers of several widths and for fewer tokens than components.
        """
        rows = _rows(tokens)
        if min(rows.shape) < self.components:
            raise ValueError(
                f"{len(rows)} tokens of width {rows.shape[1]}: expected at least {self.components} "
                "of each for as many components"
            )
        self._pca = PCA(self.components, svd_solver="covariance_eigh").fit(rows)
        axes = self._pca.components_
        largest = np.abs(axes).argmax(1)
        axes *= np.sign(axes[np.arange(len(axes)), largest])[:, None]
        scores = self._pca.transform(rows)
        self._low, self._high = np.percentile(scores, [1, 99], axis=0)
        return self

    def transform(self, tokens: Tokens) -> Tokens:
        """Coordinates (..., components) of tokens (..., d) in the basis; a mapping gives one."""
        if isinstance(tokens, Mapping):
            return {name: self.transform(value) for name, value in tokens.items()}
        if not hasattr(self, "_pca"):
            raise ValueError("this TokenPCA has no basis yet: call fit(tokens) first")
        if tokens.shape[-1] != self._pca.n_features_in_:
            raise ValueError(
                f"tokens of width {tokens.shape[-1]}: the basis was fitted to tokens of width "
                f"{self._pca.n_features_in_}"
            )
        scores = self._pca.transform(_rows(tokens)).astype(np.float32)
        return torch.from_numpy(scores).reshape(*tokens.shape[:-1], self.components)

    def to_rgb(self, tokens: Tokens) -> Tokens:
        """Colours in [0, 1]: each component between its 1st and 99th percentile of the fit."""
        if isinstance(tokens, Mapping):
            return {name: self.to_rgb(value) for name, value in tokens.items()}
        scores = self.transform(tokens)
        low, high = (torch.from_numpy(v.astype(np.float32)) for v in (self._low, self._high))
        return ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def _rows(tokens: Tokens) -> np.ndarray:
    """All tokens as rows (n, d) of one matrix."""
    if not isinstance(tokens, Mapping):
        return tokens.detach().float().cpu().reshape(-1, tokens.shape[-1]).numpy()
    widths = sorted({value.shape[-1] for value in tokens.values()})
    if len(widths) != 1:
        raise ValueError(f"layers of widths {widths}: one basis needs layers of one width")
    return np.concatenate([_rows(value) for value in tokens.values()])
