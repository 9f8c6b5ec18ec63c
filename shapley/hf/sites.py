"""Where the neurons of a Hugging Face causal language model are.

In every block, three sites (docs/design.md, "Words"):

- ``mlp_hidden``: the input of the MLP's down-projection; its columns are the neurons. Taken there, and not at the
  activation function, because in a gated MLP the activation function sees only one of the two factors.
- ``mlp_in``: the vector that enters the MLP (after the block's layer norm).
- ``mlp_out``: the vector that the MLP adds back to the residual stream (after a post-norm, where there is one).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from shapley.errors import ShapleyError
from shapley.hf.rotated import Rotated
from shapley.types import Site


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture.

    Args:
        blocks: path from the causal language model to its ``ModuleList`` of blocks.
        down: path from a block to the down-projection; its input is ``mlp_hidden``.
        entry: path from a block to the module whose input is ``mlp_in``.
        exit: path from a block to the module whose output is ``mlp_out``.
        up: paths from a block to the projections that read ``mlp_in``.
    """

    blocks: str
    down: str
    entry: str
    exit: str
    up: tuple[str, ...]


_GATED = ("mlp.gate_proj", "mlp.up_proj")
_LLAMA = Family("model.layers", "mlp.down_proj", "mlp", "mlp", _GATED)
_POST_NORM = Family("model.layers", "mlp.down_proj", "mlp", "post_feedforward_layernorm", _GATED)
_GPT2 = Family("transformer.h", "mlp.c_proj", "mlp", "mlp", ("mlp.c_fc",))
_NEOX = Family("gpt_neox.layers", "mlp.dense_4h_to_h", "mlp", "mlp", ("mlp.dense_h_to_4h",))
_FALCON = Family("transformer.h", "mlp.dense_4h_to_h", "mlp", "mlp", ("mlp.dense_h_to_4h",))

FAMILIES: dict[str, Family] = {
    "gpt2": _GPT2,
    "gpt_neo": _GPT2,
    "gpt_neox": _NEOX,
    "gptj": Family("transformer.h", "mlp.fc_out", "mlp", "mlp", ("mlp.fc_in",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _POST_NORM,
    "gemma3_text": _POST_NORM,
    "olmo2": _POST_NORM,
    "opt": Family("model.decoder.layers", "fc2", "fc1", "fc2", ("fc1",)),
    "phi": Family("model.layers", "mlp.fc2", "mlp", "mlp", ("mlp.fc1",)),
    "phi3": Family("model.layers", "mlp.down_proj", "mlp", "mlp", ("mlp.gate_up_proj",)),
    "falcon": _FALCON,
    # Bloom's MLP module adds the residual itself, so what it adds back is its down-projection's output.
    "bloom": Family("transformer.h", "mlp.dense_4h_to_h", "mlp", "mlp.dense_4h_to_h", ("mlp.dense_h_to_4h",)),
    "stablelm": _LLAMA,
}

# Tried in this order, in every block, on a model type that has no entry.
_DOWN_NAMES = ("down_proj", "c_proj", "dense_4h_to_h", "fc_out", "fc2", "w2", "wo")
_UP_NAMES = ("gate_proj", "up_proj", "gate_up_proj", "c_fc", "dense_h_to_4h", "fc_in", "fc1", "w1", "w3", "wi")
_SITES = "_neuron_shapley_sites"
_EXPERT_CONFIG_KEYS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def register_family(model_type: str, family: Family) -> None:
    """Teach the package where the MLPs of another architecture are (``model_type`` as in the model's config)."""
    FAMILIES[model_type] = family


@dataclass(frozen=True)
class BlockSites:
    """The modules of one block, found."""

    block: nn.Module
    down: nn.Module
    entry: nn.Module
    exit: nn.Module
    up: tuple[nn.Module, ...]


@dataclass(frozen=True)
class ModelSites:
    """The sites of a whole model: ``n_layers`` blocks with ``d_mlp`` neurons and residual width ``d_model`` each; ``below`` are
    the model's blocks before these, which have no players."""

    blocks: tuple[BlockSites, ...]
    blocks_path: str
    family: Family
    d_mlp: int
    d_model: int
    below: tuple[nn.Module, ...] = ()

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def undoes_gain(self) -> bool:
        """Whether a norm follows the down-projection: it divides a gain that all neurons have in common out again."""
        last = self.blocks[-1]
        return last.down not in last.exit.modules()

    @property
    def rotated(self) -> bool:
        """Whether the players of ``mlp_hidden`` are directions, of a basis that it was turned into."""
        first = self.blocks[0]
        down = first.block.get_submodule(self.family.down)
        # A sparse layer may sit in a model that was turned: its units are no directions.
        return isinstance(down, Rotated) and down.inner is first.down

    def width(self, site: Site) -> int:
        """Number of columns of a site."""
        return self.d_mlp if site == "mlp_hidden" else self.d_model


def find_sites(model: nn.Module) -> ModelSites:
    """The sites of a causal language model.

    Raises:
        ShapleyError: a mixture-of-experts model, or an architecture in which no MLP was found.
    """
    known = model.__dict__.get(_SITES)
    if known is not None:
        return known
    model_type = str(getattr(model.config, "model_type", "?"))
    _refuse_experts(model, model_type)
    family = FAMILIES.get(model_type) or _family_by_structure(model, model_type)
    told = f"model type {model_type!r}:"
    blocks = [
        _block_sites(block, family, f"{told} block {layer}")
        for layer, block in enumerate(_part(model, family.blocks, "the list of blocks", f"{told} the model").children())
    ]
    shapes = [_down_shape(block.down, f"{told} block {layer}") for layer, block in enumerate(blocks)]
    d_model, d_mlp = shapes[0]
    if any(shape != (d_model, d_mlp) for shape in shapes):
        raise ShapleyError(f"model type {model_type!r} has blocks of different MLP widths, which is not supported")
    return ModelSites(tuple(blocks), family.blocks, family, d_mlp, d_model)


def _block_sites(block: nn.Module, family: Family, called: str) -> BlockSites:
    return BlockSites(
        block,
        _turned(_part(block, family.down, "the down-projection", called)),
        _part(block, family.entry, "what reads mlp_in", called),
        _part(block, family.exit, "what gives mlp_out", called),
        tuple(_part(block, path, "an up-projection", called) for path in family.up),
    )


def _part(whole: nn.Module, path: str, what: str, called: str) -> nn.Module:
    """The module at a path, where its family has it; ``called``: the whole, to be told."""
    found, holder = whole, "it"
    for i, name in enumerate(names := path.split(".")):
        try:
            found = found.get_submodule(name)
        except AttributeError as missing:
            raise ShapleyError(
                f"{called} is not built as its family's MLPs are: {what} was expected at {path}, and {holder} has no "
                f"attribute `{name}` that is a module; take a model with an MLP in every block, or, where they are built "
                "otherwise, tell the package with shapley.register_family(model_type, shapley.Family(...))"
            ) from missing
        holder = f"its {'.'.join(names[: i + 1])} ({type(found).__name__})"
    return found


def set_sites(model: nn.Module, sites: ModelSites) -> None:
    """Have ``find_sites`` give these: of players that are no MLP's of the architecture."""
    model.__dict__[_SITES] = sites


def _turned(down: nn.Module) -> nn.Module:
    """The projection whose input is the players' activation: of a rotated one, behind the rotation."""
    return down.inner if isinstance(down, Rotated) else down


def write_weights(block: BlockSites) -> Tensor:
    """The down-projection as ``[d_mlp, d_model]``, a view: row i is what neuron i writes."""
    return input_first(block.down)


def read_weights(block: BlockSites) -> list[Tensor]:
    """The projections that read ``mlp_in``, each ``[d_model, width]``, views."""
    return [input_first(up) for up in block.up]


def input_first(projection: nn.Module) -> Tensor:
    """A projection's weight as ``[in, out]``, a view."""
    weight = projection.get_parameter("weight")
    return weight if _is_conv1d(projection) else weight.T


def _is_conv1d(module: nn.Module) -> bool:
    """transformers' ``Conv1D`` (gpt2) stores its weight as [in, out], unlike ``nn.Linear``."""
    return type(module).__name__ == "Conv1D"


def _down_shape(down: nn.Module, called: str) -> tuple[int, int]:
    """``(d_model, d_mlp)``."""
    weight = getattr(down, "weight", None)
    if not isinstance(weight, nn.Parameter) or weight.dim() != 2:
        raise ShapleyError(
            f"{called}: the down-projection ({type(down).__name__}) has no matrix `weight`, which neurons are counted and read "
            "by; take a model that is not quantised"
        )
    d_mlp, d_model = input_first(down).shape
    return d_model, d_mlp


def _refuse_experts(model: nn.Module, model_type: str) -> None:
    text_config = getattr(model.config, "text_config", model.config)
    by_config = [key for key in _EXPERT_CONFIG_KEYS if (getattr(text_config, key, None) or 0) > 1]
    by_module = [name for name, module in model.named_modules() if _looks_like_experts(type(module).__name__)]
    if by_config or by_module:
        found = f"config has {by_config[0]}" if by_config else f"module {by_module[0]}"
        raise ShapleyError(
            f"model type {model_type!r} is a mixture of experts ({found}), which is not supported: "
            "its neurons sit in routed experts; use a dense model"
        )


def _looks_like_experts(class_name: str) -> bool:
    lowered = class_name.lower()
    return "experts" in lowered or "sparsemoe" in lowered or lowered.endswith("moe")


def _family_by_structure(model: nn.Module, model_type: str) -> Family:
    """Find the longest list of alike blocks whose members hold one down-projection each."""
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(block) for block in module}) == 1
    ]
    for name, blocks in sorted(lists, key=lambda pair: -len(pair[1])):
        for down_name in _DOWN_NAMES:
            paths = [path for path, _ in blocks[0].named_modules() if _is_mlp_child(path, down_name)]
            if len(paths) != 1:
                continue
            parent, _, _ = paths[0].rpartition(".")
            ups = tuple(
                path
                for path, _ in blocks[0].named_modules()
                if path.rpartition(".")[0] == parent and path.rpartition(".")[2] in _UP_NAMES
            )
            if ups:
                entry = parent or ups[0]
                return Family(name, paths[0], entry, parent or paths[0], ups)
    raise ShapleyError(
        f"no MLP found in model type {model_type!r}: looked in {[name for name, _ in lists] or 'no block lists'} for "
        f"one down-projection a block named {', '.join(_DOWN_NAMES)} beside one of {', '.join(_UP_NAMES)}; "
        "tell the package with shapley.register_family(model_type, shapley.Family(...))"
    )


def _is_mlp_child(path: str, name: str) -> bool:
    parent, _, last = path.rpartition(".")
    return last == name and "attn" not in parent and "attention" not in parent
