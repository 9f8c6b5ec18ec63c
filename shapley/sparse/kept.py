"""Trained layers in files: with the place that they were trained for, and the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from shapley.errors import ShapleyError
from shapley.hf.tensors import save_tensors
from shapley.sparse.insert import PLACES, Place
from shapley.sparse.layer import LayerSpec, SparseLayer

_FORMAT = "neuron-shapley-sparse-layer"


@dataclass(frozen=True)
class KeptLayer:
    """A layer, in evaluation mode, and what it was trained in.

    Attributes:
        place: for ``shapley.sparse.insert.inserted``.
        model: as ``shapley.hf.load.describe`` gives it.
    """

    layer: SparseLayer
    place: Place
    model: Mapping[str, Any]

    def check_fingerprint(self, fingerprint: str, name: str, path: Path) -> None:
        """Raises ShapleyError when the layer was trained in another model than the one of this fingerprint and name."""
        if self.model["fingerprint"] != fingerprint:
            raise ShapleyError(
                f"{path} belongs to another model: the layer was trained in {self.model['name']} "
                f"(fingerprint {self.model['fingerprint']}), not in {name} ({fingerprint})"
            )


def save_layer(path: Path, layer: SparseLayer, place: Place, model: Mapping[str, Any]) -> None:
    """Write a layer to a safetensors file, atomically; what is no tensor is in the metadata."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in layer.state_dict().items()}
    metadata = {
        "format": _FORMAT,
        "spec": json.dumps(asdict(layer.spec)),
        "place": place,
        "model": json.dumps(dict(model)),
    }
    save_tensors(tensors, path, metadata)


def load_layer(path: Path) -> KeptLayer:
    """The layer of a file.

    Raises:
        ShapleyError: no such file, or of something else.
    """
    other = f"{path} holds no sparse layer of this version"
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("place") not in PLACES:
                raise ShapleyError(other)
            place, model = cast(Place, metadata["place"]), json.loads(metadata["model"])
            layer = SparseLayer(LayerSpec(**json.loads(metadata["spec"])))
            layer.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ShapleyError(f"cannot read the sparse layer {path}: {error}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # of metadata, or of tensors of other shapes
        raise ShapleyError(other) from error
    return KeptLayer(layer.eval(), place, model)
