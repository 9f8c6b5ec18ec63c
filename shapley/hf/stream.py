"""Who reads and writes the residual stream, family by family: what ``shapley.hf.residual`` turns, and where
``shapley.hf.learned`` finds the norm before an MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from shapley.errors import ShapleyError
from shapley.hf.sites import ModelSites


@dataclass(frozen=True)
class _Family:
    """Module paths, of one architecture.

    Args:
        embeddings: from the model, what the stream begins with.
        attention: in a block, what reads the stream for attention.
        out: in a block, the projection of attention that writes the stream.
        norms: in a block, the norms before attention and before the MLP; ``None`` where the stream is read as it is.
        final: from the model, the norm before the output embedding.
        ends: in a block, norms behind attention and behind the MLP, which write in place of their projections.
    """

    embeddings: tuple[str, ...]
    attention: tuple[str, ...]
    out: str
    norms: tuple[str | None, str | None]
    final: str
    ends: tuple[str, ...] = ()


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_EMBED, _OUT, _FINAL = ("model.embed_tokens",), "self_attn.o_proj", "model.norm"
_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
_LLAMA = _Family(_EMBED, _QKV, _OUT, ("input_layernorm", "post_attention_layernorm"), _FINAL)
_GEMMA = _Family(_EMBED, _QKV, _OUT, ("input_layernorm", "pre_feedforward_layernorm"), _FINAL, _BEHIND)
_GPT = ("transformer.wte", "transformer.wpe")

_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "olmo2": _Family(_EMBED, _QKV, _OUT, (None, None), _FINAL, _BEHIND),
    "phi3": _Family(_EMBED, ("self_attn.qkv_proj",), _OUT, ("input_layernorm", "post_attention_layernorm"), _FINAL),
    "gpt2": _Family(_GPT, ("attn.c_attn",), "attn.c_proj", ("ln_1", "ln_2"), "transformer.ln_f"),
    "gpt_neo": _Family(
        _GPT,
        tuple(f"attn.attention.{x}_proj" for x in "qkv"),
        "attn.attention.out_proj",
        ("ln_1", "ln_2"),
        "transformer.ln_f",
    ),
    "gptj": _Family(
        ("transformer.wte",),
        tuple(f"attn.{x}_proj" for x in "qkv"),
        "attn.out_proj",
        ("ln_1", "ln_1"),
        "transformer.ln_f",
    ),
    "gpt_neox": _Family(
        ("gpt_neox.embed_in",),
        ("attention.query_key_value",),
        "attention.dense",
        ("input_layernorm", "post_attention_layernorm"),
        "gpt_neox.final_layer_norm",
    ),
    "opt": _Family(
        ("model.decoder.embed_tokens", "model.decoder.embed_positions"),
        _QKV,
        "self_attn.out_proj",
        ("self_attn_layer_norm", "final_layer_norm"),
        "model.decoder.final_layer_norm",
    ),
    "phi": _Family(_EMBED, _QKV, "self_attn.dense", ("input_layernorm", "input_layernorm"), "model.final_layernorm"),
    "falcon": _Family(
        ("transformer.word_embeddings",),
        ("self_attention.query_key_value",),
        "self_attention.dense",
        ("input_layernorm", "post_attention_layernorm"),
        "transformer.ln_f",
    ),
    # Its embeddings are followed by a norm, which begins the stream.
    "bloom": _Family(
        (),
        ("self_attention.query_key_value",),
        "self_attention.dense",
        ("input_layernorm", "post_attention_layernorm"),
        "transformer.ln_f",
    ),
    "stablelm": _LLAMA,
}
_BEGINS = {"bloom": "transformer.word_embeddings_layernorm"}


@dataclass(frozen=True)
class Stream:
    """The residual stream of a model, as paths of its modules.

    Attributes:
        reads: a norm (or none) and the projections that read what it gives; the last pair is the final norm and the output
            embedding.
        writers: embeddings and projections whose outputs are added to the stream.
        ends: norms whose outputs are added to it.
        before_mlp: by layer, the norm before its MLP, or none.
        behind_mlp: by layer, the norm behind its MLP, or none.
    """

    reads: tuple[tuple[str | None, tuple[str, ...]], ...]
    writers: tuple[str, ...]
    ends: tuple[str, ...]
    before_mlp: tuple[str | None, ...]
    behind_mlp: tuple[str | None, ...]

    @property
    def final(self) -> str:
        """The norm before the output embedding."""
        norm = self.reads[-1][0]
        assert norm is not None
        return norm


def find_stream(model: Any, sites: ModelSites) -> Stream:
    """Who reads and writes the stream of a causal language model.

    Raises:
        ShapleyError: a model type, or a variant of it, whose stream is not known.
    """
    model_type = str(model.config.model_type)
    family = _FAMILIES.get(model_type)
    if family is None:
        raise ShapleyError(
            f"who reads the residual stream of model type {model_type!r} is not known: it is for {', '.join(_FAMILIES)}; "
            "take a basis of the neurons, as pca"
        )
    _refuse_variants(model, model_type)
    reads: list[tuple[str | None, tuple[str, ...]]] = []
    writers, ends, before, behind = list(family.embeddings), [], [], []
    if model_type in _BEGINS:
        ends.append(_BEGINS[model_type])
    for layer, block in enumerate(sites.blocks):
        own = f"{sites.blocks_path}.{layer}."
        first, second = _norms(block.block, family.norms)
        attention, mlp = (tuple(own + path for path in paths) for paths in (family.attention, sites.family.up))
        if first == second and first is not None:
            reads.append((own + first, attention + mlp))
        else:
            reads += [(None if norm is None else own + norm, to) for norm, to in ((first, attention), (second, mlp))]
        if family.ends:
            ends += [own + path for path in family.ends]
        else:
            writers += [own + family.out, own + sites.family.down]
        before.append(None if second is None else own + second)
        behind.append(own + family.ends[-1] if family.ends else None)
    head = model.get_output_embeddings()
    reads.append((family.final, (next(name for name, module in model.named_modules() if module is head),)))
    return Stream(tuple(reads), tuple(writers), tuple(ends), tuple(before), tuple(behind))


def _norms(block: nn.Module, named: tuple[str | None, str | None]) -> tuple[str | None, str | None]:
    """Before attention and before the MLP: in Falcon and StableLM, of the block's own variant."""
    if hasattr(block, "ln_attn"):
        return "ln_attn", "ln_mlp"
    first, second = named
    own = second is None or getattr(block, second, None) is not None
    return first, second if own else first


def _refuse_variants(model: Any, model_type: str) -> None:
    """Streams that pass through a norm, or begin with a projection."""
    config = model.config
    found = None
    if getattr(config, "apply_residual_connection_post_layernorm", False) and model_type == "bloom":
        found = "apply_residual_connection_post_layernorm"
    if model_type == "opt" and not config.do_layer_norm_before:
        found = "norms on the stream (do_layer_norm_before=False)"
    if model_type == "opt" and config.word_embed_proj_dim != config.hidden_size:
        found = "embeddings of another width (word_embed_proj_dim)"
    if model_type == "opt" and config._remove_final_layer_norm:
        found = "no norm at its end (_remove_final_layer_norm)"
    if found:
        raise ShapleyError(f"the residual stream of this {model_type} model cannot be turned: it has {found}")
