"""`thalweg bench`: drawn networks, rows and tables, and a worker in a fresh process."""

from __future__ import annotations

import numpy as np
import pytest

import thalweg as tw
from thalweg.bench.cases import CASES, LENET_FORWARD, RANDOM_NETWORKS
from thalweg.bench.measuring import Case, Row, compare, markdown, random_summary
from thalweg.bench.own import random_model
from thalweg.bench.random_networks import draw
from thalweg.bench.sequences import NAMES, Transformer, arrays, transformer
from thalweg.cli import main


@pytest.mark.parametrize("seed", range(RANDOM_NETWORKS))
def test_a_drawn_network_has_the_sizes_and_operations_that_it_states(seed: int) -> None:
    network = draw(seed)
    assert 2 <= len(network.layers) <= 5 and draw(seed) == network
    model = random_model(network)
    x = tw.tensor(np.zeros((3, network.channels, network.size, network.size), np.float32))
    outputs = [x]
    for layer in model:
        outputs.append(layer(outputs[-1]))
    assert outputs[-1].shape == (3, 10) and outputs[-2].shape == (3, network.features)
    convolved = [outputs[i + 1].shape for i, layer in enumerate(model) if isinstance(layer, tw.nn.Conv2d)]
    assert network.operations > 6 * 10 * network.features
    assert [shape[1] for shape in convolved] == [layer.out_channels for layer in network.layers]
    products = [
        2 * np.prod(shape[1:]) * layer.in_channels * layer.kernel_size**2
        for shape, layer in zip(convolved, network.layers, strict=True)
    ]
    assert network.operations == 2 * products[0] + 3 * sum(products[1:]) + 60 * network.features


def test_cases_have_unique_names_and_dense_counts() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    (inference,) = [case for case in CASES if case.name == "lenet inference, batch 64"]
    assert inference.operations == 64 * LENET_FORWARD


def test_a_transformer_is_the_same_network_in_both_frameworks() -> None:
    torch = pytest.importorskip("torch")
    for causal in (True, False):
        sizes = Transformer(2, 2, 16, 12, 30, causal)
        own, theirs = (transformer(nn, nn.functional, sizes) for nn in (tw.nn, torch.nn))
        own.load_state_dict({name: value.detach().numpy() for name, value in theirs.state_dict().items()})
        ids = np.random.default_rng(0).integers(0, 30, (3, 12))
        expected = theirs(torch.from_numpy(ids)).detach().numpy()
        np.testing.assert_allclose(own(tw.tensor(ids)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", sorted(NAMES))
def test_sequence_cases_have_arguments(case: str) -> None:
    assert all(array.size for array in arrays(case))


def test_rows_become_text_and_a_table() -> None:
    rows = [
        Row(Case("random network 0", operations=1), 1, 0.002, 0.8, {"torch": (0.01, 5.0)}),
        Row(Case("random network 1", operations=1), 1, 0.002, 0.6),
    ]
    assert "2.000 ms" in rows[0].text() and "80 % of the peak" in rows[0].text()
    assert "torch 10.000 ms (5.00 x)" in rows[0].text()
    assert random_summary(rows) == ["2 random networks, 1 threads: median 70% of the peak, 60% to 80%"]
    assert markdown(rows).splitlines() == [
        "| case | threads | Thalweg ms | share of peak | torch ms (ratio) |",
        "|---|---|---|---|---|",
        "| random network 0 | 1 | 2.000 | 80% | 10.000 (5.00) |",
        "| random network 1 | 1 | 2.000 | 60% |  |",
    ]


def test_a_worker_measures_in_a_fresh_process() -> None:
    row = compare(Case("trivial compiled call", threaded=False), 1, 1, [])
    assert 1e-7 < row.seconds < 1e-2 and not row.peers


def test_the_command_lists_cases_and_refuses_unknown_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list", "mlp step"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"mlp step, batch {b}" for b in (32, 64, 512)]
    assert main(["bench", "perceptron"]) == 1
    assert "no case's name contains 'perceptron'" in capsys.readouterr().err
