"""What a loaded module returns where the original's own output class is not at hand."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.fx._pytree as fx_pytree
import torch.utils._pytree as pytree


@dataclass(frozen=True)
class Form:
    """What the original was (`object` or `namedtuple`), its class by name, how it was flattened (JSON text), the fields
    that hold values, and all its fields."""

    container: str
    kind: str
    context: str
    names: tuple[str, ...]
    fields: tuple[str, ...]


class Output:
    """Values by attribute, by name or index in brackets, and by iteration; a field without a value is None."""

    def __init__(self, form: Form, values: list[Any]) -> None:
        self.__dict__["_form"] = form
        self.__dict__["_values"] = tuple(values)

    def __getattr__(self, name: str) -> Any:
        form = self.__dict__.get("_form")
        if form is None or name not in form.fields:
            raise AttributeError(f"the output has no `{name}`" + (f"; it has {', '.join(form.names)}" if form else ""))
        return self._values[form.names.index(name)] if name in form.names else None

    def __getitem__(self, key: int | slice | str) -> Any:
        if isinstance(key, str):
            if key not in self._form.names:
                raise KeyError(key)
            return self._values[self._form.names.index(key)]
        return self._values[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        name = self._form.kind.rpartition(":")[2]
        return f"{name}({', '.join(f'{key}={value!r}' for key, value in self.items())})"

    def keys(self) -> tuple[str, ...]:
        return self._form.names

    def values(self) -> tuple[Any, ...]:
        return self._values

    def items(self) -> list[tuple[str, Any]]:
        return list(zip(self._form.names, self._values, strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        return self._values


def _flatten(output: Output) -> tuple[list[Any], Form]:
    return list(output.values()), output._form


def _unflatten(values: Any, form: Form) -> Output:
    return Output(form, list(values))


pytree.register_pytree_node(Output, _flatten, _unflatten, serialized_type_name="surgery.bundle.Output")
fx_pytree.register_pytree_flatten_spec(Output, lambda output, spec: list(output.values()))
