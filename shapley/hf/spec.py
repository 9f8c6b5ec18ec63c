"""What hooks need to know of reference activations, apart from how they are collected."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SiteStatistics:
    """Activations of one site over a reference text, without the first position of each sequence.

    Attributes:
        mean: ``[n_layers, width]`` float32.
        std: ``[n_layers, width]`` float32.
        donors: ``[n_layers, n_donors, width]`` float32, activations at evenly spaced reference positions.
        fingerprint: of the model, the site and the text they were computed from.
    """

    mean: Tensor
    std: Tensor
    donors: Tensor
    fingerprint: str

    @property
    def site_std(self) -> Tensor:
        """``[n_layers]``: the root mean square over neurons of their standard deviations, the unit ``sd``."""
        return self.std.double().square().mean(dim=1).sqrt().float()
