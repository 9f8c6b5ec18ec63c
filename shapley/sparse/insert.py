"""A sparse layer in a Hugging Face model, in place of its last MLP or after its last block.

For a while (``inserted``), in which it stays outside of the model's own parameters: ``layer.parameters()`` are what is trained.
Or for good (``insert``), which makes its units the model's players.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import Tensor, nn

from shapley.errors import ShapleyError, unknown_name
from shapley.hf.sites import BlockSites, ModelSites, set_sites
from shapley.sparse.layer import SparseLayer

if TYPE_CHECKING:
    from shapley.hf.load import LanguageModel

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
    with ExitStack() as stack:
        _insert(stack, lm.model, lm.sites, layer, place, lm.name)
        yield


def insert(model: Any, sites: ModelSites, layer: SparseLayer, place: Place, name: str) -> None:
    """The same, for good: the layer becomes a part of the model and of its config, and its units, one layer of them, its
    players (``find_sites``): ``mlp_hidden`` is what the winners give, ``mlp_in`` and ``mlp_out`` what the layer reads and
    writes.

    Args:
        sites: the model's own.
        name: of the model, to be told.

    Raises:
        ShapleyError: as ``inserted``.
    """
    last = sites.blocks[-1]
    # Behind the MLP's own norm, where there is one: there the layer's output is not yet what is added.
    end = last.exit if place == "replace" and sites.undoes_gain else layer
    stack = ExitStack()
    _insert(stack, model, sites, layer, place, name)
    stack.pop_all()
    model.sparse_layer = layer
    model.config.sparse_layer = {"place": place} | asdict(layer.spec)  # so that the fingerprint tells it
    units = (BlockSites(last.block, layer.down, layer, end, (layer.up,)),)
    below = tuple(block.block for block in sites.blocks[:-1])
    set_sites(model, ModelSites(units, sites.blocks_path, sites.family, layer.spec.units, sites.d_model, below))


def has_units(model: Any) -> bool:
    """Whether a model's players are units of a sparse layer."""
    return isinstance(getattr(model, "sparse_layer", None), SparseLayer)


def _insert(stack: ExitStack, model: Any, sites: ModelSites, layer: SparseLayer, place: Place, name: str) -> None:
    if place not in PLACES:
        raise unknown_name("place of a sparse layer", place, PLACES)
    if layer.spec.width != sites.d_model:
        raise ShapleyError(
            f"a sparse layer of width {layer.spec.width} does not fit into {name}, whose residual stream has {sites.d_model}"
        )
    last = sites.blocks[-1]
    layer.to(next(last.block.parameters()).device)
    applied = _Applied(layer)
    stack.callback(model.register_forward_pre_hook(applied.begin, with_kwargs=True).remove)
    if place == "add":
        stack.callback(last.block.register_forward_hook(applied.add).remove)
        return
    family = sites.family
    # Nothing reads what they compute any more; in their place, what passes the input on.
    for path in family.up:
        _swap(stack, last.block, path, nn.Identity())
    _swap(stack, last.block, family.down, _Down(applied))
    # Found again: where the entry is an up-projection, it was just swapped.
    entry = last.block.get_submodule(family.entry)
    stack.callback(entry.register_forward_pre_hook(applied.enter, with_kwargs=True).remove)


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
