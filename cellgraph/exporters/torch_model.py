"""The trained model around an exported layer, as Python that needs only torch: what goes in front
of it, the head behind it, and how its file of weights is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Of a file in safetensors that holds float32: a length, a header in JSON, then the numbers.
_LOAD = '''\
def load(path: str) -> CLASS:
    """The trained model from the file of its weights (safetensors, float32)."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        numbers = file.read()
    weights = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            values = torch.frombuffer(bytearray(numbers[start:end]), dtype=torch.float32)
            weights[name] = values.reshape(entry["shape"])
    model = CLASS()
    model.load_state_dict(weights)
    return model.eval()
'''


@dataclass(frozen=True, slots=True)
class Ends:
    """What surrounds the layer of a model: an embedding in front of it for tokens, nothing for
    frames, and a linear head behind it. Widths are sizes of vocabularies or frames."""

    input_kind: Literal["tokens", "frames"]
    input_width: int
    output_width: int


def model(layer: str, ends: Ends, hidden_size: int, num_layers: int) -> tuple[str, ...]:
    """The lines behind those of the class `layer`: a class `<layer>Model` and a function `load`."""
    tokens = ends.input_kind == "tokens"
    name = f"{layer}Model"
    entering = hidden_size if tokens else ends.input_width
    width, out = ends.input_width, ends.output_width
    given = "tokens x (T, B)" if tokens else f"frames x (T, B, {width})"
    embedding = [f"        self.embedding = nn.Embedding({width}, {hidden_size})"] if tokens else []
    return (
        f"class {name}(nn.Module):",
        '    """The trained model; `load` reads its weights."""',
        "",
        "    def __init__(self) -> None:",
        "        super().__init__()",
        *embedding,
        f"        self.layers = {layer}({entering}, {hidden_size}, {num_layers})",
        f"        self.head = nn.Linear({hidden_size}, {out})",
        "",
        "    def forward(self, x, state=None):",
        f'        """{given}; returns logits (T, B, {out}) and the last state."""',
        f"        y, state = self.layers({'self.embedding(x)' if tokens else 'x'}, state)",
        "        return self.head(y), state",
        "",
        "",
        *_LOAD.replace("CLASS", name).splitlines(),
    )
