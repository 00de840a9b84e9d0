"""Blocks and walks: the network run as a whole is the judge."""

import itertools

import pytest
import torch

from zeroq_gen.graph import Graph, Node
from zeroq_gen.network import Network
from zeroq_gen.procedural import dead_leaves
from zeroq_gen.quant.blocks import Walk, blocks, live_tensors
from zeroq_gen.small import mobile, resnet, settled
from zeroq_gen.sources import open_model

SIZE = (12, 12)


@pytest.fixture(scope="module")
def images():
    return dead_leaves(4, SIZE, channels=1, seed=0).float() / 128 - 1


@pytest.fixture(scope="module", params=[resnet, mobile])
def graph(request, images):
    module = settled(request.param(width=4), images)
    return open_model(module, size=SIZE, mean=(0.5,), std=(0.5,)).folded


def test_blocks_part_the_network(graph):
    parts = blocks(graph)
    assert tuple(node for part in parts for node in part.nodes) == graph.nodes
    assert parts[0].input == graph.input
    assert parts[-1].output == graph.outputs[0]
    for before, after in itertools.pairwise(parts):
        assert before.output == after.input


def test_blocks_run_one_after_another_are_the_network(graph, images):
    network, value = Network(graph), images
    for part in blocks(graph):
        value = network.run({part.input: value}, [part.output])[part.output]
    assert torch.equal(value, network(images))


def test_a_residual_block_holds_its_sum_and_all_its_layers(graph):
    sums = [part for part in blocks(graph) if any(node.op == "Add" for node in part.nodes)]
    assert len(sums) == sum(node.op == "Add" for node in graph.nodes)
    assert all(len(part.layers) >= 2 for part in sums)
    assert all(part.layers for part in blocks(graph))


def test_what_is_alive_is_what_is_still_read():
    nodes = (
        Node("Relu", ("x",), ("a",)),
        Node("Sigmoid", ("a",), ("b",)),
        Node("Add", ("a", "b"), ("c",)),
        Node("Relu", ("c",), ("d",)),
    )
    graph = Graph(nodes, {}, "x", (1, 1, 2, 2), ("d", "b"), 21)
    assert live_tensors(graph) == [("x",), ("a",), ("a", "b"), ("b", "c"), ("b", "d")]


def test_a_walk_finds_what_a_full_run_finds(graph, images):
    network = Network(graph)

    def halve(name, value):
        return value * 0.5

    walk = Walk(network, list(images.split(2)), edit=halve)
    alive = live_tensors(graph)
    for place in (0, 1, 4, 9, len(graph.nodes)):
        walk.to(place)
        names = list(alive[place])
        expected = network.run({graph.input: images}, names, edit=halve)
        for name in names:
            torch.testing.assert_close(torch.cat(walk[name]), expected[name])
