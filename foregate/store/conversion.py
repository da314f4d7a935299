"""Where each tensor of a checkpoint goes in the model's parameters. Moves no bytes, and knows no family.

transformers says which keys become which parameter, and by what operations (merging a list of experts, concatenating
gate and up, transposing). Here these are undone on a view of the parameter, a torch tensor on the meta device, until
every checkpoint tensor has its own strided view of it: the place where its numbers belong.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from foregate.errors import ModelError, SourceError, need
from foregate.store.headers import Stored

Views = dict[str, Any]  # source pattern -> meta tensor, or a list of them, as transformers' operations take and give
Keys = dict[str | None, list[str]]  # source pattern (None: the key is only renamed) -> keys of the checkpoint


def places(model: Any, wanted: Collection[str], tensors: Mapping[str, Stored]) -> dict[str, list[tuple[str, Any]]]:
    """For each wanted parameter of a model on the meta device: the checkpoint's keys, each with its view.

    A view has as many numbers as the checkpoint's tensor, and meets them in the tensor's row-major order; its offset
    and strides are those in the parameter. A parameter that the checkpoint lacks is left out.

    Raises: ModelError for a conversion that is more than a new order of the numbers; SourceError for tensors whose
    shapes do not add up to the parameter's.
    """
    loading = need("transformers.core_model_loading", "models")
    mapping = need("transformers.conversion_mapping", "models").get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, loading.WeightConverter)]
    renamings = [entry for entry in mapping if isinstance(entry, loading.WeightRenaming)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, state = model.base_model_prefix, model.state_dict()
    found: dict[str, Keys] = defaultdict(lambda: defaultdict(list))
    for key in sorted(tensors, key=loading.dot_natural_key):  # as transformers does: a list of experts in its order
        name, pattern = loading.rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = loading.rename_source_key(key, [], [], prefix, state)
        if name in wanted:
            found[name][pattern].append(key)
    return {
        name: _undone(model, name, _converter(name, keys, by_pattern, tensors), keys, tensors)
        for name, keys in found.items()
    }


def _converter(name: str, keys: Keys, by_pattern: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Any | None:
    """The one conversion that makes the parameter of these keys, or None where one tensor is taken as it is."""
    used = list({id(by_pattern[p]): by_pattern[p] for p in keys if p is not None}.values())
    plain = keys.get(None, [])
    if len(used) + len(plain) > 1:
        several = [key for group in keys.values() for key in group]
        raise SourceError(f"{tensors[several[0]].file}: both {several[0]} and {several[-1]} would be {name}")
    return used[0] if used else None


def _undone(
    model: Any, name: str, converter: Any | None, keys: Keys, tensors: Mapping[str, Stored]
) -> list[tuple[str, Any]]:
    """The views of one parameter's tensors: its operations forwards for the shapes, then backwards for the views."""
    torch = need("torch", "models")
    parameter = torch.empty(model.get_parameter(name).shape, device="meta")
    given = {str(p): [torch.empty(tensors[k].shape, device="meta") for k in group] for p, group in keys.items()}
    first = tensors[next(iter(keys.values()))[0]]
    steps = [given] if converter is None else _steps(model, name, converter, given, first)
    made = _only(steps[-1])
    if made.shape != parameter.shape:
        wanted = tuple(parameter.shape)
        raise SourceError(f"{first.file}: {name} would be {tuple(made.shape)}, and the model wants {wanted}")
    views: Views = dict.fromkeys(steps[-1], parameter)
    if converter is not None:
        for operation, before in zip(reversed(converter.operations), reversed(steps[:-1]), strict=True):
            views = UNDO[type(operation).__name__](operation, before, views, converter.source_patterns)
    return [pair for p, group in keys.items() for pair in zip(group, _listed(views[str(p)]), strict=True)]


def _steps(model: Any, name: str, converter: Any, given: Views, first: Stored) -> list[Views]:
    """What goes into each operation of a conversion, and what comes out of the last."""
    steps = [given]
    for operation in converter.operations:
        if type(operation).__name__ not in UNDO:
            raise ModelError(
                f"the experts of {model.config.model_type} pass through {type(operation).__name__} when loaded, so "
                "they cannot be read in place; `foregate pack` makes a store of them"
            )
        try:
            made = operation.convert(
                dict(steps[-1]),
                source_patterns=converter.source_patterns,
                target_patterns=converter.target_patterns,
                full_layer_name=name,
                model=model,
                config=model.config,
            )
        except (RuntimeError, ValueError, IndexError) as error:
            reason = " ".join(str(error).split())[:160]
            raise SourceError(f"{first.file}: the tensors of {name} do not fit together ({reason})") from error
        steps.append(made)
    return steps


# --- one function per operation of transformers: what it was given -> the views of that -------------------------------


def _unmerge(operation: Any, before: Views, after: Views, patterns: list[str]) -> Views:
    """MergeModulelist stacks the tensors of each pattern."""
    return {
        p: [(after[p] if p in after else _only(after)).select(operation.dim, i) for i in range(len(given))]
        for p, given in before.items()
    }


def _unconcatenate(operation: Any, before: Views, after: Views, patterns: list[str]) -> Views:
    """Concatenate puts the patterns behind each other in the order that the mapping gives them in."""
    whole, start = _only(after), 0
    views: dict[str, list[Any]] = {}
    for p in (p for p in patterns if p in before):
        views[p] = []
        for given in _listed(before[p]):
            length = given.shape[operation.dim]
            views[p].append(whole.narrow(operation.dim, start, length))
            start += length
    return {p: found if isinstance(before[p], list) else found[0] for p, found in views.items()}


def _untranspose(operation: Any, before: Views, after: Views, patterns: list[str]) -> Views:
    """Transpose, unless the tensor already has the parameter's shape where it is told to check that."""
    ((p, given),) = before.items()
    view, shape = _only(after), _only({p: given}).shape
    kept = operation.check_dims and shape == view.shape
    return {p: view if kept else view.transpose(operation.dim0, operation.dim1)}


def _uninterleave(operation: Any, before: Views, after: Views, patterns: list[str]) -> Views:
    """Interleave reads the dimension as [n / 2, 2] and transposes that; the view keeps the two dimensions."""
    ((p, _),) = before.items()
    view, dim = _only(after), operation.dim
    length = view.shape[dim]
    # What comes out is [2, n / 2] (the inverse: [n / 2, 2]), so that is how the view is taken apart.
    halves = (length // 2, 2) if operation.inverse else (2, length // 2)
    return {p: view.unflatten(dim, halves).transpose(dim, dim + 1)}


UNDO: dict[str, Callable[[Any, Views, Views, list[str]], Views]] = {
    "MergeModulelist": _unmerge,
    "Concatenate": _unconcatenate,
    "Transpose": _untranspose,
    "Interleave": _uninterleave,
}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _only(views: Views) -> Any:
    (value,) = views.values()
    return value[0] if isinstance(value, list) else value
