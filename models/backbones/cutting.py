"""Cuts a library's network into stages: modules that, one after another, compute what the network computes.

The network's own forward pass is followed by torch.fx, only into containers: its blocks stay as they are. A cut is
possible where a single tensor passes on, and no parameter is used on both sides.

This file is part of models that are served by PyTorch (their source is stored in the registry), so it imports nothing
but torch.
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

# The number of photos while a network is followed: a large prime, so that a size that is a multiple of it comes from
# the number of photos. Nothing is computed: the network is on the meta device, which knows shapes only.
_BATCH = 10_007
_EIGHTH = 3  # later_stages: those at an eighth (in halvings) of the photo's resolution and below
_MAX_SHARE = 0.98  # of the stages' parameters, in one of them: with more, the network is not really cut
_MIN_SHARE = 0.01  # of all parameters, in a block of a network with a single resolution
_HALVES = 1.5  # a resolution is another one if it is lower by this factor


class CannotCut(ValueError):
    """A network whose stages cannot be found; the message says why."""


@dataclass(frozen=True)
class Division:
    """How a network is cut: `parts` are the stages' names and graphs, the last one pools.

    `features` is the width after pooling, `later` and `last` the first stages of `later_stages` and `last_stage`.
    """

    parts: tuple[tuple[str, fx.Graph], ...]
    features: int
    later: str
    last: str

    def stages(self, net: nn.Module) -> list[tuple[str, nn.Module]]:
        """The stages of a network of the same architecture and image size; they share its parameters."""
        return [(name, fx.GraphModule(net, graph, name)) for name, graph in self.parts]


class _Value(fx.Proxy):
    """A value of the forward pass, whose shape is known."""

    def __getattr__(self, name: str) -> Any:
        assert isinstance(self.tracer, _TopLevel)
        known = getattr(self.tracer.values[self.node], name)
        return known if _is_number(known) else super().__getattr__(name)


class _TopLevel(fx.Tracer):
    """Follows a forward pass into the modules `inside`, and knows the shapes of all values.

    Sizes that do not depend on the number of photos are plain numbers, so that code can decide by them.
    """

    proxy_buffer_attributes = True

    def __init__(self, inside: set[str], arguments: Iterable[Any]) -> None:
        super().__init__()
        self.inside, self.arguments = inside, iter(arguments)
        self.values: dict[fx.Node, Any] = {}
        self._computing = False  # inside of a block, whose calls belong to no graph

    def is_leaf_module(self, module: nn.Module, path: str) -> bool:
        return path not in self.inside

    def create_proxy(self, kind: str, target: Any, *rest: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, *rest, **named)
        self._computing = True
        try:
            value = self.values[proxy.node] = self._value(proxy.node)
        finally:
            self._computing = False
        return value if _is_number(value) else proxy

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self._computing else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        return bool(self.values[obj.node])

    def iter(self, obj: fx.Proxy) -> Any:
        parts: Any = obj
        return iter([parts[place] for place in range(len(self.values[obj.node]))])

    def _value(self, node: fx.Node) -> Any:
        known: Any = fx.map_arg((node.args, node.kwargs), lambda source: self.values[source])
        args, kwargs = known
        args = [
            list(one) if isinstance(one, list) else one for one in args
        ]  # of which some blocks change parts
        target: Any = node.target
        if node.op == "placeholder":
            return next(self.arguments)
        if node.op == "get_attr":
            return operator.attrgetter(target)(self.root)
        if node.op == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return args if node.op == "output" else target(*args, **kwargs)


class _Flow:
    """The graph of a forward pass, with what passes from each of its nodes to the later ones."""

    def __init__(self, net: nn.Module, inside: set[str], image_size: int) -> None:
        _, *options = inspect.signature(net.forward).parameters.values()
        defaults = {one.name: one.default for one in options if one.default is not inspect.Parameter.empty}
        images = torch.empty((_BATCH, 3, image_size, image_size), device="meta")
        tracer = _TopLevel(inside, (images, *defaults.values()))
        with torch.no_grad():
            self.graph = tracer.trace(net, defaults)
        self.net, self.values = net, tracer.values
        if any(str(node.target).startswith("_tensor_constant") for node in self.graph.nodes):
            raise CannotCut("it computes constants between its blocks")
        for node in reversed(self.graph.nodes):  # sizes that have become numbers
            if not node.users and node.op.startswith("call_") and not _has_tensor(self.values[node]):
                self.graph.erase_node(node)
        nodes = list(self.graph.nodes)
        self.input = nodes[0]
        self.constant: set[fx.Node] = set()  # depends on no photo
        for node in nodes[1:-1]:
            if all(source in self.constant for source in node.all_input_nodes):
                self.constant.add(node)
        self.nodes = [node for node in nodes if node not in self.constant]
        self.place = {node: place for place, node in enumerate(self.nodes)}

    def parameters(self, node: fx.Node) -> set[nn.Parameter]:
        """The parameters that this node uses, directly or by what depends on no photo."""
        found = {
            one
            for source in node.all_input_nodes
            if source in self.constant
            for one in self.parameters(source)
        }
        if node.op == "call_module":
            found |= set(self.net.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr" and isinstance(self.values[node], nn.Parameter):
            found.add(self.values[node])
        return found

    def cuts(self) -> list[fx.Node]:
        """The nodes after which the forward pass can be cut, in its order."""
        last_use = {node: max((self.place[user] for user in node.users), default=-1) for node in self.nodes}
        used: dict[nn.Parameter, list[int]] = {}
        for node in self.nodes:
            for parameter in self.parameters(node):
                used.setdefault(parameter, []).append(self.place[node])
        shared = [(places[0], places[-1]) for places in used.values() if places[0] != places[-1]]
        found = []
        for place, node in enumerate(self.nodes[1:-1], 1):
            passing = [
                one
                for one in self.nodes[: place + 1]
                if last_use[one] > place and _has_tensor(self.values[one])
            ]
            value = self.values[node]
            of_photos = passing == [node] and isinstance(value, Tensor) and value.shape[0] == _BATCH
            if of_photos and not any(first <= place < last for first, last in shared):
                found.append(node)
        return found

    def part(self, first: int, last: int) -> fx.Graph:
        """The graph from the value of one place to that of another."""
        graph = fx.Graph()
        start = graph.placeholder("features")
        copies = {self.nodes[first]: start}

        def copy(node: fx.Node) -> fx.Node:
            if node not in copies:
                if node in self.place and self.place[node] < first:  # a multiple of the number of photos
                    shape = graph.call_function(getattr, (start, "shape"))
                    photos = graph.call_function(operator.getitem, (shape, 0))
                    copies[node] = graph.call_function(operator.mul, (photos, self.values[node] // _BATCH))
                else:
                    copies[node] = graph.node_copy(node, copy)
            return copies[node]

        for node in self.nodes[first + 1 : last + 1]:
            copy(node)
        graph.output(copies[self.nodes[last]])
        return graph

    def used(self, first: int, last: int) -> set[nn.Parameter]:
        """The parameters that are used between two places."""
        return {one for node in self.nodes[first + 1 : last + 1] for one in self.parameters(node)}


def _has_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_has_tensor, value)))


def _is_number(value: Any) -> bool:
    """Whether it is a number, or several, that are the same for any number of photos."""
    if isinstance(value, list | tuple):
        return all(map(_is_number, value))
    return isinstance(value, bool | float) or (isinstance(value, int) and value % _BATCH != 0)


def _module_of(node: fx.Node) -> str:
    """The module that gives this value, or it among others; "" if none does."""
    if node.target is operator.getitem:
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "call_module" else ""


def _by_resolution(flow: _Flow, image_size: int) -> dict[str, float]:
    """The last module of each resolution, or of a network with a single resolution every block, with the factor by
    which its output's resolution is lower than the photo's."""

    def reduction(node: fx.Node) -> float:
        _, *sizes = flow.values[node].shape  # channels first or last, or tokens [N, C]
        side = sizes[0] ** 0.5 if len(sizes) == 2 else sizes[1] if sizes[1] == sizes[2] else sizes[0]
        return float(image_size / side)

    modules = [node for node in flow.cuts() if _module_of(node) and flow.values[node].dim() in (3, 4)]
    sizes = [(_module_of(node), reduction(node)) for node in modules]
    sizes = [(target, size) for target, size in sizes if size < image_size]  # not pooled yet
    ends = [before for before, after in pairwise(sizes) if after[1] >= _HALVES * before[1]] + sizes[-1:]
    if len(ends) > 2:
        return dict(ends)
    least = _MIN_SHARE * _count(flow.net.parameters())
    blocks = {_module_of(node) for node in modules if _count(flow.parameters(node)) > least}
    return {target: size for target, size in sizes if target in blocks}


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _containers(net: nn.Module) -> set[str]:
    """The paths of the modules that consist of blocks: lists of them, and what holds most of the network."""
    found, total = {""}, _count(net.parameters())

    def visit(module: nn.Module, path: str) -> None:
        for name, child in module.named_children():
            listed = isinstance(child, nn.Sequential | nn.ModuleList)
            if listed or (_count(child.parameters()) > total / 2 and len(list(child.children())) > 1):
                found.add(f"{path}{name}")
                visit(child, f"{path}{name}.")

    visit(net, "")
    return found


def _above(modules: Iterable[str]) -> set[str]:
    """The paths of all modules that hold these."""
    return {module[:end] for module in modules for end, sign in enumerate(module) if sign == "."} | {""}


def divide(net: nn.Module, image_size: int, reductions: Mapping[str, float]) -> Division:
    """The division of a network without its classifier, which is on the meta device, at the ends of the modules
    `reductions`, each with the factor by which its output's resolution is lower than the photo's.

    Raises CannotCut where they are no stages, and whatever the network raises for photos of this size.
    """
    flow = _Flow(net, _containers(net) | _above(reductions), image_size)
    last_in: dict[str, fx.Node] = {}
    for node in flow.cuts():
        last_in |= {one: node for one in reductions if f"{_module_of(node)}.".startswith(f"{one}.")}
    output = flow.nodes[-1].all_input_nodes[0]
    features = flow.values[output]
    if not (isinstance(features, Tensor) and features.dim() == 2):
        raise CannotCut("it does not give one vector of features for each photo")
    stages: list[str] = []
    borders = [flow.place[flow.input]]
    for stage in sorted(last_in, key=lambda module: flow.place[last_in[module]]):
        end = flow.place[last_in[stage]]
        if not flow.used(borders[-1], end):  # such as a pooling layer: it belongs to the stage before it
            stages, borders = stages[:-1], borders[:-1] or [0]
        stages, borders = [*stages, stage], [*borders, end]
    sizes = [_count(flow.used(*ends)) for ends in pairwise(borders)]
    if len(stages) < 2 or max(sizes) > _MAX_SHARE * sum(sizes):
        raise CannotCut(
            "almost everywhere, several values pass from a block to the next one, or blocks share weights"
        )
    names = [*(stage.replace(".", "_") for stage in stages), "pool"]
    borders.append(flow.place[output])
    parts = [(name, flow.part(*ends)) for name, ends in zip(names, pairwise(borders), strict=True)]
    factors = [reductions[stage] for stage in stages]
    low = [place for place, factor in enumerate(factors) if place and round(math.log2(factor)) >= _EIGHTH]
    later = low[0] if low and max(factors) >= _HALVES * min(factors) else len(stages) // 2
    return Division(tuple(parts), features.shape[1], names[later], names[len(stages) - 1])


def resolutions(net: nn.Module, image_size: int) -> dict[str, float]:
    """`reductions` for `divide` of a network whose library names no stages."""
    return _by_resolution(_Flow(net, _containers(net), image_size), image_size)
