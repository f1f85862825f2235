"""Drawings of graphs: what is in them, and that it can be read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import thalweg as tw
from thalweg import models, nn, optim, viz
from thalweg.errors import ArgumentError, DataError
from thalweg.graph import Graph
from thalweg.viz.layout import Layout, layout
from thalweg.viz.picture import Picture, operations, picture, size

BATCH = 8


def training_graph(model: nn.Module, optimizer: optim.Optimizer | None = None) -> Graph:
    updater = optimizer or optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(x: Any, y: Any) -> Any:
        loss = nn.functional.cross_entropy(model(x), y)
        updater.minimize(loss)
        return loss

    found: Graph = tw.compile(step).graph(tw.spec((BATCH, 1, 28, 28)), tw.spec((BATCH,), "int64"))
    return found


def inference_graph(model: nn.Module) -> Graph:
    found: Graph = tw.compile(lambda x: model(x)).graph(tw.spec((BATCH, 1, 28, 28)))
    return found


def gradient_graph() -> Graph:
    found: Graph = tw.compile(tw.grad(lambda x, y: (x * tw.exp(y)).sum())).graph(tw.spec((3,)), tw.spec((3,)))
    return found


def penalty_graph() -> Graph:
    """A loss that contains a gradient: forward ops behind gradient ops, and gradients of gradients."""
    model = nn.Linear(4, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.1)

    def step(x: Any) -> Any:
        slope = tw.grad(lambda inputs: model(inputs).tanh().sum())(x)
        loss = (slope * slope).sum()
        optimizer.minimize(loss, allow_unused=True)
        return loss

    found: Graph = tw.compile(step).graph(tw.spec((BATCH, 4)))
    return found


GRAPHS: dict[str, Callable[[], Graph]] = {
    "lenet": lambda: inference_graph(models.LeNet()),
    "lenet training": lambda: training_graph(models.LeNet()),
    "resnet": lambda: inference_graph(models.small_resnet().eval()),
    "resnet training": lambda: training_graph(
        (made := models.small_resnet()), optim.Adam(made.parameters(), clip=optim.clip_by_norm(1.0))
    ),
    "gradient": gradient_graph,
    "penalty": penalty_graph,
    "no node": lambda: tw.compile(lambda x: x).graph(tw.spec((2,))),
    "constant": lambda: tw.compile(lambda x: tw.tensor(1.0)).graph(tw.spec((2,))),
}


@pytest.fixture(scope="module")
def lenet() -> Picture:
    return picture(training_graph(models.LeNet()))


# ---- what is in a picture ----------------------------------------------------------------------------------


def test_forward_gradient_and_update_are_told_apart(lenet: Picture) -> None:
    forward = [box.title for box in lenet.part("forward")]
    assert forward == [
        "conv", "relu", "max_pool", "conv", "relu", "max_pool", "reshape",
        "linear", "relu", "linear", "relu", "linear", "cross_entropy",
    ]  # fmt: skip
    assert all(box.title == "sgd_update" for box in lenet.part("update"))
    assert len(lenet.part("update")) == 10
    gradients = {(box.module, box.title) for box in lenet.part("gradient")}
    assert {("", "cross_entropy_gradient"), ("fc1", "matmul"), ("conv2", "sum")} <= gradients


def test_every_parameter_stands_beside_the_op_that_reads_it(lenet: Picture) -> None:
    names = [box.title for box in lenet.part("parameter")]
    layers = ("conv1", "conv2", "fc1", "fc2", "fc3")
    assert names == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
    first = lenet.part("forward")[0]
    assert [box.title for box in lenet.state_of[id(first)]] == ["conv1.weight", "conv1.bias"]


def test_bytes_and_totals(lenet: Picture) -> None:
    first = lenet.part("forward")[0]
    assert str(first.types[0]) == f"f32[{BATCH},6,28,28]"
    assert first.nbytes == BATCH * 6 * 28 * 28 * 4
    assert lenet.parameter_count == 61_706
    assert lenet.parameter_bytes == 61_706 * 4
    assert lenet.buffer_bytes == 61_706 * 4 + 16  # momentum; learning rate and momentum as float64
    assert lenet.totals()[0] == "parameters: 61,706 in 247 kB"
    assert [line.split(":")[0] for line in lenet.totals()[2:]] == ["forward", "gradient", "update"]


def test_updates_say_what_they_set(lenet: Picture) -> None:
    written = [name for box in lenet.part("update") for name in box.writes]
    assert "conv1.weight" in written
    assert "conv1.weight.momentum_buffer" in written
    assert len(written) == 20


def test_the_output_is_marked_and_constants_are_words(lenet: Picture) -> None:
    assert [box.title for box in lenet.boxes if box.result] == ["cross_entropy"]
    assert not any(box.title in ("constant", "broadcast") for box in lenet.boxes)
    assert any("0" in box.operands for box in lenet.part("gradient"))  # the 0 of the gradient of relu


def test_running_statistics_and_clipping_are_one_box_each() -> None:
    found = picture(GRAPHS["resnet training"]())
    together = [box for box in found.part("update") if box.count > 1]
    norms = [box for box in together if box.module.endswith(("bn1", "bn2", "downsample.1"))]
    assert len(norms) == 9
    assert all(any(name.endswith("running_mean") for name in box.writes) for box in norms)
    (clipping,) = [box for box in together if box not in norms]
    assert not clipping.writes
    assert clipping.count > 50


def test_a_gradient_alone() -> None:
    found = picture(gradient_graph())
    assert not found.part("update")
    assert found.part("gradient")
    assert sorted(box.result for box in found.boxes if box.result) == ["output 0", "output 1"]


def test_numbers_in_words() -> None:
    assert [size(count) for count in (0, 999, 1000, 18_816, 1_204_224, 999_999)] == [
        "0 B", "999 B", "1.00 kB", "18.8 kB", "1.20 MB", "1.00 MB",
    ]  # fmt: skip
    assert [operations(count) for count in (0, 940, 54_600_000, 3 * 10**15)] == [
        "0 ops", "940 ops", "54.6 M ops", "3000 T ops",
    ]  # fmt: skip


# ---- where it stands ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_no_two_boxes_overlap_and_all_lie_inside(name: str) -> None:
    found = layout(picture(GRAPHS[name]()))
    for one, other in itertools.combinations(found.rectangles, 2):
        apart_x = abs(one.x - other.x) - (one.width + other.width) / 2
        apart_y = abs(one.y - other.y) - (one.height + other.height) / 2
        assert max(apart_x, apart_y) > 0, f"{one.lines} and {other.lines}"
    for box in found.rectangles:
        assert box.left >= -0.01 and box.right <= found.width + 0.01
        assert box.top >= -0.01 and box.bottom <= found.height + 0.01


def rectangle(found: Layout, title: str, module: str, kind: str) -> Any:
    return next(
        r for r in found.rectangles if (r.box.title, r.box.module, r.box.kind) == (title, module, kind)
    )


def test_forward_flows_down_on_the_left_and_its_gradient_back_up_beside_it(lenet: Picture) -> None:
    found = layout(lenet)
    forward = [r for r in found.rectangles if r.box.kind == "forward"]
    gradient = [r for r in found.rectangles if r.box.kind == "gradient"]
    update = [r for r in found.rectangles if r.box.kind == "update"]
    assert [r.y for r in forward] == sorted(r.y for r in forward)
    assert max(r.right for r in forward) < min(r.left for r in gradient)
    assert max(r.right for r in gradient) < min(r.left for r in update)
    for edge in lenet.edges:
        places = {id(r.box): r for r in found.rectangles}
        source, target = places[id(edge.source)], places[id(edge.target)]
        if edge.source.kind in ("forward", "input") and edge.target.kind == "forward":
            assert source.bottom < target.top
        if edge.source.kind == edge.target.kind == "gradient":
            assert source.top > target.bottom
    for layer in ("fc1", "fc2", "fc3"):
        beside = rectangle(found, "matmul", layer, "gradient")
        assert abs(beside.y - rectangle(found, "linear", layer, "forward").y) < 30


@pytest.mark.parametrize("name", GRAPHS)
def test_every_edge_has_a_path_from_box_to_box(name: str) -> None:
    shown = picture(GRAPHS[name]())
    found = layout(shown)
    routed = [route for route in found.routes if route.edge is not None]
    assert {id(route.edge) for route in routed} == {id(edge) for edge in shown.edges}
    places = {id(r.box): r for r in found.rectangles}
    for route in routed:
        assert route.edge is not None
        source, target = places[id(route.edge.source)], places[id(route.edge.target)]
        (x, y), (to_x, to_y) = route.points[0], route.points[-1]
        assert source.left - 0.01 <= x <= source.right + 0.01
        assert source.top - 0.01 <= y <= source.bottom + 0.01
        assert target.left - 0.01 <= to_x <= target.right + 0.01
        assert target.top - 0.01 <= to_y <= target.bottom + 0.01


# ---- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRAPHS)
def test_the_svg_is_well_formed_and_names_everything(tmp_path: Path, name: str) -> None:
    graph = GRAPHS[name]()
    viz.draw(graph, tmp_path / "g.svg")
    root = ElementTree.parse(tmp_path / "g.svg").getroot()
    texts = {text for text in root.itertext() if text.strip()}
    shown = picture(graph)
    for box in shown.boxes:
        assert any(box.title[:20] in text for text in texts), box.title
    assert float(root.attrib["width"]) > 0
    assert not re.search(r"[^.\w]nan[^\w]", (tmp_path / "g.svg").read_text())


def test_text_that_needs_escaping() -> None:
    graph: Graph = tw.compile(lambda x: x + 1, backend="numpy").graph(tw.spec((2,)))
    renamed = Graph(graph.inputs, graph.nodes, graph.outputs, name="a<b>&c", input_names=("<x>",))
    from thalweg.viz.svg import svg

    root = ElementTree.fromstring(svg(picture(renamed)))
    assert "a<b>&c" in set(root.itertext())


def test_the_same_graph_gives_the_same_drawing(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        tw.manual_seed(0)
        viz.draw(training_graph(models.LeNet()), tmp_path / name)
    assert (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_the_method_of_a_graph(tmp_path: Path) -> None:
    inference_graph(models.LeNet()).draw(tmp_path / "g.txt")
    assert "conv1.weight" in (tmp_path / "g.txt").read_text()


def test_the_table_has_a_line_for_each_box() -> None:
    graph = training_graph(models.LeNet())
    lines = viz.table(graph).splitlines()
    shown = picture(graph)
    assert lines[0] == "step"
    rows = [line for line in lines if line.startswith("  ")]
    assert len(rows) == len(shown.boxes) + len(shown.totals())
    assert any(re.match(r"  relu_2 = relu\(conv_2\) +f32\[8,16,10,10\] +51.2 kB", line) for line in rows)
    assert any("sets fc3.weight, fc3.weight.momentum_buffer" in line for line in rows)


def test_other_endings_are_refused(tmp_path: Path) -> None:
    graph = inference_graph(models.LeNet())
    with pytest.raises(ArgumentError, match=r"g\.png'.*must end in \.svg \(a picture\) or \.txt"):
        viz.draw(graph, tmp_path / "g.png")
    with pytest.raises(ArgumentError, match="draw takes a graph or a plan, received a LeNet"):
        viz.draw(models.LeNet(), tmp_path / "g.svg")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="the directory does not exist"):
        viz.draw(graph, tmp_path / "absent" / "g.svg")
