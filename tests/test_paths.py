"""Paths against their enumeration, one decision at every skip, and against closed forms."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from step_by_step import Builder, series

from residua.flow import Flow, Step
from residua.paths import num_paths, path_lengths

# A graph by its grammar: ("layer",) | ("series", *parts) | ("choice", bypass, branch) | ("join", *towers) | ("gate", part).
Tree = tuple


def enumerated(flow: Flow) -> Counter[tuple[int, int]]:
    """(layers, units) of every path: all decisions at all choices; those count that the way back from the output meets."""
    choices = [number for number, step in enumerate(flow.steps) if step.kind == "choice"]
    paths: dict[frozenset[tuple[int, int]], tuple[int, int]] = {}
    for decisions in itertools.product((0, 1), repeat=len(choices)):
        decided = dict(zip(choices, decisions))
        layers, units = {flow.output: 0}, {flow.output: 0}
        met = set()
        for number in reversed(range(len(flow.steps))):
            if number not in layers:
                continue
            step = flow.steps[number]
            taken = step.inputs
            if step.kind == "choice":
                met.add((number, decided[number]))
                taken = (step.inputs[decided[number]],)
            for source in taken:
                layers[source] = max(layers.get(source, 0), layers[number] + (step.kind == "layer"))
                units[source] = max(units.get(source, 0), units[number] + (step.kind == "choice" and bool(decided[number])))
        ends = [number for number in layers if not flow.steps[number].inputs]
        paths[frozenset(met)] = max(layers[end] for end in ends), max(units[end] for end in ends)
    return Counter(paths.values())


def assert_as_enumerated(flow: Flow) -> None:
    paths = enumerated(flow)
    layers, units = Counter[int](), Counter[int]()
    for (length, taken), count in paths.items():
        layers[length] += count
        units[taken] += count
    assert num_paths(flow) == sum(paths.values())
    assert path_lengths(flow).counts == layers
    assert path_lengths(flow, "units").counts == units


def grown(tree: Tree, build: Builder, x: int) -> int:
    """The graph of a tree, from step x on."""
    kind, *parts = tree
    if kind == "layer":
        return build.add("layer", x)
    if kind == "series":
        for part in parts:
            x = grown(part, build, x)
        return x
    ends = [grown(part, build, x) for part in parts]
    return build.add("choice" if kind == "choice" else "join", *(ends if kind != "gate" else [x, *ends]))


def num_choices(tree: Tree) -> int:
    return (tree[0] == "choice") + sum(num_choices(part) for part in tree[1:])


def trees() -> st.SearchStrategy[Tree]:
    leaf: st.SearchStrategy[Tree] = st.sampled_from([("layer",), ("series",)])
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(st.just("choice"), inner, inner),
            st.lists(inner, min_size=2, max_size=4).map(lambda parts: ("series", *parts)),
            st.lists(inner, min_size=1, max_size=3).map(lambda parts: ("join", *parts)),
            st.tuples(st.just("gate"), inner),
        ),
        max_leaves=14,
    ).filter(lambda tree: num_choices(tree) <= 9)


@settings(max_examples=400, deadline=None)
@given(trees())
def test_paths_of_series_parallel_graphs_are_those_that_enumeration_finds(tree: Tree) -> None:
    build = Builder()
    build.add("layer", grown(tree, build, 0))
    assert_as_enumerated(build.flow())


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 14), st.integers(1, 3))
def test_paths_of_any_graph_are_those_that_enumeration_finds(seed: int, size: int, sources: int) -> None:
    """Ways that cross at will, several sources, layers of several inputs, steps that nothing reads."""
    draw = random.Random(seed)
    steps = [Step("source", ()) for _ in range(sources)]
    for number in range(sources, sources + size):
        kind = draw.choice(["layer", "choice", "choice", "join"])
        count = 2 if kind == "choice" else draw.choice([1, 1, 2, 3])
        near = [max(0, number - 1 - int(draw.expovariate(0.5))) for _ in range(count)]
        steps.append(Step(kind, tuple(near)))
    assert_as_enumerated(Flow(tuple(steps), len(steps) - 1))


@pytest.mark.parametrize("num_units", [0, 1, 3, 16, 54, 600, 5000])
def test_units_in_series_have_two_to_their_number_paths(num_units: int) -> None:
    assert num_paths(series(num_units)) == 2**num_units


def test_lengths_of_units_in_series_are_binomial() -> None:
    units = path_lengths(series(54), "units")
    layers = path_lengths(series(54))
    assert units.counts == {k: math.comb(54, k) for k in range(55)}
    assert layers.counts == {2 + 2 * k: math.comb(54, k) for k in range(55)}
    assert (units.mean, units.shortest, units.longest) == (27, 0, 54)
    assert units.standard_deviation == pytest.approx(math.sqrt(54 / 4), rel=1e-15)


def test_the_effective_paths_of_54_units_are_0_45_per_cent_of_all() -> None:
    """Veit et al. 2016, section 5: lengths of 5 to 17 modules; and most paths take 19 to 35."""
    units = path_lengths(series(54), "units")
    assert 100 * units.share(5, 17) == pytest.approx(0.453667, abs=5e-7)
    assert 100 * units.share(19, 35) == pytest.approx(98.0166, abs=5e-5)
    assert units.share(0, 54) == 1


def test_projections_lengthen_the_paths_that_take_them() -> None:
    """ResNet-50's 16 units of three layers, four of them projected: (z + z^3)^4 (1 + z^3)^12 between stem and classifier."""
    lengths = path_lengths(series(16, layers=3, projections=4))
    expected = Counter[int]()
    for projected in range(5):
        for plain in range(13):
            expected[2 + 4 + 2 * projected + 3 * plain] += math.comb(4, projected) * math.comb(12, plain)
    assert lengths.counts == expected
    assert lengths.longest == 50


@pytest.mark.parametrize("layers", [1202, 10_002])
def test_the_lengths_of_the_deepest_networks_are_exact(layers: int) -> None:
    flow = series((layers - 2) // 2)
    lengths = path_lengths(flow)
    assert lengths.num_paths == num_paths(flow) == 2 ** ((layers - 2) // 2)
    assert lengths.mean == layers / 2 + 1
    assert lengths.longest == layers


def nested(levels: int) -> Flow:
    """A U-Net: at every level two layers down, the inner level, one layer up; the shortcut goes past both."""
    build = Builder()

    def level(x: int, left: int) -> int:
        x = build.chain(x, 2)
        return build.add("layer", build.add("choice", x, build.add("layer", level(x, left - 1)))) if left else x

    build.add("layer", level(0, levels))
    return build.flow()


@pytest.mark.parametrize("levels", [0, 1, 4, 60])
def test_a_nest_has_a_path_more_than_levels(levels: int) -> None:
    flow = nested(levels)
    assert num_paths(flow) == levels + 1
    assert path_lengths(flow, "units").counts == dict.fromkeys(range(levels + 1), 1)
    assert path_lengths(flow).counts == {2 * (down + 1) + down + min(down + 1, levels) + 1: 1 for down in range(levels + 1)}


def test_a_dense_block_doubles_with_every_layer() -> None:
    """Layer k reads the concatenation of all before it, folded from the left: a choice a layer."""
    build = Builder()
    x = build.add("layer", 0)
    for _ in range(12):
        x = build.add("choice", x, build.chain(x, 2))
    flow = build.flow()
    assert num_paths(flow) == 2**12
    assert path_lengths(flow).counts == {1 + 2 * k: math.comb(12, k) for k in range(13)}


def test_the_three_forms_of_a_resnext_block_have_the_same_paths() -> None:
    """32 towers that are summed at their end, 32 towers whose maps are concatenated early, one grouped convolution."""

    def block(form: str) -> Flow:
        build = Builder()
        if form == "grouped":
            branch = build.chain(0, 3)
        else:
            split = 3 if form == "paths" else 2
            towers = [build.chain(0, split) for _ in range(32)]
            joined = towers[0]
            for tower in towers[1:]:
                joined = build.add("join", joined, tower)
            branch = build.chain(joined, 3 - split)
        build.add("choice", 0, branch)
        return build.flow()

    assert {form: dict(path_lengths(block(form)).counts) for form in ("paths", "early", "grouped")} == {
        form: {0: 1, 3: 1} for form in ("paths", "early", "grouped")
    }


def test_towers_that_hold_skips_multiply_and_the_longest_counts() -> None:
    build = Builder()
    towers = []
    for layers in (1, 3):
        x = build.add("layer", 0)
        towers.append(build.add("choice", x, build.chain(x, layers)))
    build.add("join", *towers)
    assert path_lengths(build.flow()).counts == {1: 1, 2: 1, 4: 2}


def test_a_decoder_that_reads_its_encoder_in_every_layer_takes_one_way_through_it() -> None:
    """E choices in the encoder, D in the decoder: all of the decoder's bypasses never meet the encoder."""
    encoder, decoder = 5, 4
    build = Builder()
    start = build.add("source")
    memory = build.add("layer", start)
    for _ in range(encoder):
        memory = build.add("choice", memory, build.add("layer", memory))
    x = build.add("layer", 0)
    for _ in range(decoder):
        keys, values = build.add("layer", memory), build.add("layer", memory)
        x = build.add("choice", x, build.add("join", build.add("join", build.add("layer", x), keys), values))
    flow = build.flow()
    assert num_paths(flow) == (2**decoder - 1) * 2**encoder + 1
    assert_as_enumerated(flow)


def test_an_unknown_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="layers or units"):
        path_lengths(series(1), "metres")


@pytest.mark.parametrize(
    ("steps", "output", "message"),
    [
        ((Step("source", ()), Step("choice", (0,))), 1, "Step 1 is a choice with 1 inputs"),
        ((Step("source", ()), Step("layer", (1,))), 1, "earlier steps only"),
        ((Step("source", ()), Step("lair", (0,))), 1, "'lair'"),
        ((Step("source", (0,)),), 0, "Step 0 is a source with 1 inputs"),
        ((Step("source", ()), Step("layer", ())), 1, "Step 1 is a layer with 0 inputs"),
        ((Step("source", ()),), 1, "The output is step 1 of 1"),
    ],
)
def test_a_flow_that_breaks_its_rules_is_refused(steps: tuple[Step, ...], output: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Flow(steps, output)
