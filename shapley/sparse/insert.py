"""A sparse layer in a Hugging Face model, in place of its last MLP or after its last block; undone at the end.

The layer stays outside of the model's own parameters: ``layer.parameters()`` are what is trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from shapley.errors import ShapleyError, unknown_name
from shapley.hf.load import LanguageModel
from shapley.sparse.layer import SparseLayer

Place = Literal["replace", "add"]
PLACES: tuple[Place, ...] = get_args(Place)


@contextmanager
def inserted(lm: LanguageModel, layer: SparseLayer, place: Place) -> Iterator[None]:
    """Run the model with the layer in it. What the attention mask says is padding neither wins nor counts.

    Args:
        lm: any family (``shapley.hf.sites``).
        layer: goes to the device of the last block.
        place: ``replace``, in place of the last block's MLP: it reads ``mlp_in``, and what it returns is what the
            down-projection did (a post-norm comes after it, where there is one). ``add``: after the last block, before the
            final norm: it reads the residual stream, and is added to it.

    Raises:
        ShapleyError: another place, or a layer of another width.
    """
    if place not in PLACES:
        raise unknown_name("place of a sparse layer", place, PLACES)
    if layer.spec.width != lm.sites.d_model:
        raise ShapleyError(
            f"a sparse layer of width {layer.spec.width} does not fit into {lm.name}, whose residual stream has "
            f"{lm.sites.d_model}"
        )
    last = lm.sites.blocks[-1]
    layer.to(next(last.block.parameters()).device)
    applied = _Applied(layer)
    with ExitStack() as stack:
        stack.callback(lm.model.register_forward_pre_hook(applied.begin, with_kwargs=True).remove)
        if place == "add":
            stack.callback(last.block.register_forward_hook(applied.add).remove)
        else:
            family = lm.sites.family
            # Nothing reads what they compute any more; in their place, what passes the input on.
            for path in family.up:
                _swap(stack, last.block, path, nn.Identity())
            _swap(stack, last.block, family.down, _Down(applied))
            # Found again: where the entry is an up-projection, it was just swapped.
            entry = last.block.get_submodule(family.entry)
            stack.callback(entry.register_forward_pre_hook(applied.enter, with_kwargs=True).remove)
        yield


@dataclass
class _Applied:
    """One layer during forward passes: what is padding, and what entered the MLP."""

    layer: SparseLayer
    mask: Tensor | None = None
    entered: Tensor | None = None

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self.mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.entered = args[0] if args else kwargs["hidden_states"]

    def add(self, module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # by family and transformers version
            return (output[0] + self.of(output[0]), *output[1:])
        return output + self.of(output)

    def of(self, x: Tensor) -> Tensor:
        """The layer's output for ``[rows, tokens, width]``, or flattened over rows and tokens (old OPT)."""
        real = None
        if self.mask is not None:
            tokens = x.shape[:-1].numel() // len(self.mask)  # with a cache fewer than the mask has
            real = self.mask[:, -tokens:].reshape(x.shape[:-1]).to(x.device)
        out: Tensor = self.layer(x, real)
        return out


class _Down(nn.Module):
    """In place of the down-projection: whatever was made of the MLP's input, the layer reads the input itself."""

    def __init__(self, applied: _Applied) -> None:
        super().__init__()
        self.applied = applied  # no module: the layer's parameters do not become the model's

    def forward(self, hidden: Tensor) -> Tensor:
        entered, self.applied.entered = self.applied.entered, None
        assert entered is not None
        return self.applied.of(entered)


def _swap(stack: ExitStack, block: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path below the block, until the stack is left."""
    parent, _, name = path.rpartition(".")
    holder = block.get_submodule(parent)
    stack.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, module)


def original_parameters(lm: LanguageModel) -> int:
    """Of the last block's MLP: its projections' weights and biases."""
    last = lm.sites.blocks[-1]
    return sum(weight.numel() for module in (*last.up, last.down) for weight in module.parameters())
