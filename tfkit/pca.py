"""Tokens as colours: the principal components of many frames at once, in one basis.

A basis fitted jointly gives one thing one colour in every frame; fitted frame by frame, colours
would flip. Memory: the tokens once more, in float32, on the CPU; incrementally, one layer's or
timestep's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, overload

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from sklearn.decomposition import PCA, IncrementalPCA
from torch import Tensor

from tfkit.settings import check_whole
from tfkit.tracks import grid_of

Tokens = Tensor | Mapping[Any, Tensor]  # (..., d), or one such for each layer (and timestep)
SEEN = 200_000  # tokens whose colours set the range, where they come one by one


@dataclass(eq=False)
class TokenPCA:
    """The first principal components of tokens; signs are set so that they stay from run to run."""

    components: int = 3

    def __post_init__(self) -> None:
        check_whole("components", self.components)

    def fit(self, tokens: Tokens, *, incremental: bool = False) -> "TokenPCA":
        """Finds the basis of all tokens (..., d), of all entries given, together. Returns itself.

        incremental: take a mapping's entries one after another (a TokenFolder's come from disk),
        for what does not fit into memory; the basis is then approximate (Ross et al., 2008).
        Raises ValueError for entries of several widths and for fewer tokens than components.
        """
        if incremental:
            return self._fit_one_by_one(tokens if isinstance(tokens, Mapping) else {"": tokens})
        rows = _rows(tokens)
        self._check(*rows.shape)
        self._offset = _middle(rows)
        rows = rows - self._offset
        self._pca = PCA(self.components, svd_solver="covariance_eigh").fit(rows)
        return self._settle(self._pca.transform(rows))

    def _fit_one_by_one(self, tokens: Mapping) -> "TokenPCA":
        self._pca = IncrementalPCA(self.components)
        for i, value in enumerate(tokens.values()):
            rows = _rows(value)
            self._check(*rows.shape)
            self._offset = self._offset if i else _middle(rows)
            self._pca.partial_fit(rows - self._offset)
        thin = max(1, sum(value[..., 0].numel() for value in tokens.values()) // SEEN)
        some = [
            self._pca.transform(_rows(value)[::thin] - self._offset) for value in tokens.values()
        ]
        return self._settle(np.concatenate(some))

    def _check(self, count: int, width: int) -> None:
        if min(count, width) < self.components:
            raise ValueError(
                f"{count} tokens of width {width}: expected at least {self.components} "
                "of each for as many components"
            )

    def _settle(self, scores: np.ndarray) -> "TokenPCA":
        """Turns each axis so that its largest weight is positive; keeps the range of colours."""
        axes = self._pca.components_
        signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(1)])
        self._pca.components_ = axes * signs[:, None]
        self._low, self._high = np.percentile(scores * signs, [1, 99], axis=0)
        return self

    @overload
    def transform(self, tokens: Tensor) -> Tensor: ...

    @overload
    def transform(self, tokens: Mapping[Any, Tensor]) -> dict[Any, Tensor]: ...

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
        scores = self._pca.transform(_rows(tokens) - self._offset).astype(np.float32)
        return torch.from_numpy(scores).reshape(*tokens.shape[:-1], self.components)

    @overload
    def to_rgb(self, tokens: Tensor) -> Tensor: ...

    @overload
    def to_rgb(self, tokens: Mapping[Any, Tensor]) -> dict[Any, Tensor]: ...

    def to_rgb(self, tokens: Tokens) -> Tokens:
        """Colours (..., components) in [0, 1], of tokens (..., d) or of each value of a mapping.

        Each component lies between its 1st and 99th percentile of the fit, and is clamped there.
        Raises ValueError before the fit and for tokens of another width.
        """
        if isinstance(tokens, Mapping):
            return {name: self.to_rgb(value) for name, value in tokens.items()}
        scores = self.transform(tokens)
        low, high = (torch.from_numpy(v.astype(np.float32)) for v in (self._low, self._high))
        return ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)


def foreground(tokens: Float[Tensor, "f n d"], size: tuple[int, int]) -> Bool[Tensor, "f n"]:
    """Which tokens show what stands out: the first component of all frames, split in two.

    The threshold is Otsu's (1979); the ground is the side that most of the picture's border is on.
    size: (h, w) of the pictures, for the tokens' grid. (Oquab et al., DINOv2, figure 1, split
    by hand there.)
    """
    rows, columns = grid_of(tokens, size)
    scores = TokenPCA(1).fit(tokens).transform(tokens)[..., 0]
    low, high = scores.min(), scores.max()
    steps = ((scores - low) / (high - low).clamp(min=1e-12) * 255).round().byte().numpy()
    threshold, _ = cv2.threshold(steps, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    above = torch.from_numpy(steps > threshold)
    place = torch.arange(rows * columns)
    y, x = place // columns, place % columns
    border = (y == 0) | (y == rows - 1) | (x == 0) | (x == columns - 1)
    return above if above[:, border].float().mean() <= 0.5 else ~above


def _middle(rows: np.ndarray) -> np.ndarray:
    """About the mean of rows, which are taken from there on: in float32 a far mean drowns them."""
    return rows.mean(0, dtype=np.float64).astype(rows.dtype)


def _rows(tokens: Tokens) -> np.ndarray:
    """All tokens as rows (n, d) of one matrix."""
    if not isinstance(tokens, Mapping | Tensor):
        raise ValueError(
            f"tokens: a {type(tokens).__name__}; expected a tensor (..., d), as "
            "tfkit.extract_tokens returns by layer (torch.from_numpy(x) of an array), or a mapping"
        )
    if not isinstance(tokens, Mapping):
        return tokens.detach().float().cpu().reshape(-1, tokens.shape[-1]).numpy()
    widths = sorted({value.shape[-1] for value in tokens.values()})
    if len(widths) != 1:
        raise ValueError(f"layers of widths {widths}: one basis needs layers of one width")
    return np.concatenate([_rows(value) for value in tokens.values()])
