"""A tree of tensors and plain values as one safetensors file, with a checksum of all of it that reading checks first.

The tensors lie under their paths (`learner/student.backbone.conv1.weight`), readable by anything that knows the format;
the rest is JSON in the header, where the tree refers to them. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

FORMAT = "saccade checkpoint 1"
PIECE = 1 << 24  # bytes written at a time
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Damaged(ValueError):
    """A file that is not what was written; the text says how that shows."""


def snapshot(tree: Any) -> Any:
    """The same tree with every tensor copied to the CPU: what trains on changes it no more."""
    if isinstance(tree, Tensor):
        return tree.detach().to("cpu", copy=True)
    if isinstance(tree, Mapping):
        return {key: snapshot(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(snapshot(value) for value in tree)
    return tree


def size_of(tree: Any) -> int:
    """Bytes of the tensors in it, which is what its file takes but for some kilobytes."""
    found: dict[str, Tensor] = {}
    _plain(tree, "", found)
    return sum(tensor.nbytes for tensor in found.values())


def write_tree(file: BinaryIO, tree: Any) -> None:
    """Write tensors, numbers, texts, None, and dicts, lists and tuples of those. Raises OSError."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(tree, "", tensors))
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # keeps every offset aligned
    header: dict[str, Any] = {"__metadata__": {"format": FORMAT, "state": text, "sha256": _digest(text, tensors)}}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(struct.pack("<Q", len(encoded)) + encoded)
    for name in order:
        for piece in _pieces(tensors[name]):
            file.write(piece)


def read_tree(path: Path) -> Any:
    """The tree as it was written, on the CPU. Raises OSError, and Damaged for anything that is not bit for bit that."""
    content = path.read_bytes()
    try:
        header = _metadata(content)
        if header.get("format") != FORMAT:
            raise Damaged("it is no checkpoint of Saccade")
        tensors = load(content)
        if _digest(header["state"], tensors) != header["sha256"]:
            raise Damaged("its checksum is wrong: some of it was changed after it was written")
        return _tree(json.loads(header["state"]), tensors)
    except SafetensorError as error:
        raise Damaged("it is cut short, or its table is broken") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError, struct.error) as error:
        if isinstance(error, Damaged):
            raise
        raise Damaged("its table is broken") from error


def _metadata(content: bytes) -> dict[str, str]:
    """The texts in a safetensors file's header."""
    (length,) = struct.unpack_from("<Q", content)
    if length > len(content) - 8:
        raise Damaged("it is cut short")
    found = json.loads(content[8 : 8 + length])["__metadata__"]
    return {str(name): str(value) for name, value in found.items()}


def _plain(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """`tree` as JSON; its tensors go into `tensors` and are referred to by name."""
    if isinstance(tree, Tensor):
        last = tree.ndim == 4 and not tree.is_contiguous() and tree.is_contiguous(memory_format=torch.channels_last)
        tensors[path] = tree.detach().cpu().contiguous()
        return {"tensor": path, "channels_last": last}
    if isinstance(tree, Mapping):  # as pairs: an optimizer's keys are numbers
        return {"dict": [[key, _plain(value, f"{path}/{key}".lstrip("/"), tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        items = [_plain(value, f"{path}/{k}", tensors) for k, value in enumerate(tree)]
        return {"tuple": items} if isinstance(tree, tuple) else items
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"a checkpoint holds no {type(tree).__name__} ({path})")


def _tree(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(plain, list):
        return [_tree(value, tensors) for value in plain]
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        tensor = tensors[plain["tensor"]]
        # fused optimizers walk the memory of a weight and of its state side by side: both must have one layout
        return tensor.contiguous(memory_format=torch.channels_last) if plain["channels_last"] else tensor
    if "tuple" in plain:
        return tuple(_tree(value, tensors) for value in plain["tuple"])
    return {key: _tree(value, tensors) for key, value in plain["dict"]}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the values, and of each tensor's name, type, shape and bytes in the order of their names."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {DTYPES.get(tensor.dtype)} {list(tensor.shape)}\n".encode())
        for piece in _pieces(tensor):
            found.update(piece)
    return found.hexdigest()


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a contiguous tensor, without a copy."""
    raw: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    for start in range(0, len(raw), PIECE):
        yield memoryview(raw[start : start + PIECE])
