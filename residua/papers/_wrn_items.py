"""The tables and figures of wrn. Layer 4."""

from __future__ import annotations

from residua.claims import Item, Row
from residua.papers import _charts
from residua.papers._wrn_arms import BLOCKS, CIFAR10, CIFAR100, DROPOUT, LAYERS, QUOTED, SVHN, TYPES
from residua.papers._wrn_times import ON_CPU

ITEMS = (
    Item(
        "table2",
        "Block types at about equal size",
        arms=tuple(arm.name for arm in TYPES),
        rows=tuple(Row(f"wrn_{depth}_2-{kind}", published=f"table2/{kind}/error", label=kind) for kind, depth in BLOCKS.items()),
        draw=lambda evidence: _charts.compared(
            evidence, {arm.name: arm.name.partition("-")[2] for arm in TYPES}, ["test_error"], "wrn-table2", "Block types"
        ),
        claims=("b33_best",),
        note="The paper whitens the images by ZCA; no recipe here does.",
    ),
    Item(
        "table3",
        "The number of convolutions in a block",
        arms=("wrn_40_2", *(arm.name for arm in LAYERS)),
        rows=tuple(
            Row("wrn_40_2" if l == 2 else f"wrn_40_2-l{l}", published=f"table3/l{l}/error", label=f"l = {l}")
            for l in (1, 2, 3, 4)
        ),
        draw=lambda evidence: _charts.by_size(
            evidence,
            {"WRN-40-2": {l: "wrn_40_2" if l == 2 else f"wrn_40_2-l{l}" for l in (1, 2, 3, 4)}},
            "test_error",
            "wrn-table3",
            "Convolutions in a block",
            "convolutions in a block",
            whole=True,
        ),
        claims=("two_convs_best", "equal_sizes_of_table3"),
        note="The paper whitens the images by ZCA; no recipe here does.",
    ),
    Item(
        "table4",
        "Depth against width",
        arms=(*(arm.name for arm in CIFAR10), *(arm.name for arm in CIFAR100)),
        rows=tuple(
            Row(arm.name, published=f"table4/{arm.recipe.model.name.replace('_', '-')}/{arm.recipe.data.source}")
            for arm in (*CIFAR10, *CIFAR100)
        ),
        draw=lambda evidence: [
            *_charts.by_size(
                evidence,
                {"WRN-40-k": {1: "wrn_40_1", 2: "wrn_40_2", 4: "wrn_40_4", 8: "wrn_40_8"}},
                "test_error",
                "wrn-table4",
                "Error by width",
                "widening factor k",
                whole=True,
            ),
            *_charts.training(
                evidence,
                {"wrn_40_1": "WRN-40-1", "wrn_40_2": "WRN-40-2", "wrn_40_4": "WRN-40-4"},
                "wrn-curves",
                "Training by width",
            ),
        ],
        claims=("width_helps", "depth_helps_up_to_28", "parameter_counts", "linear_in_depth_quadratic_in_width"),
        note="The paper whitens the images of this table by ZCA; no recipe here does.",
    ),
    Item(
        "table5",
        "Wide against thin",
        arms=tuple(
            f"{name}{suffix}"
            for name in ("wrn_40_4", "wrn_16_8", "wrn_28_10", "preact_resnet1001-wrn")
            for suffix in ("", "-cifar100")
        ),
        rows=tuple(
            Row(f"{name}{suffix}", published=f"table5/{name.replace('_', '-').replace('-resnet1001-wrn', '-1001')}/{source}")
            for name in ("wrn_40_4", "wrn_16_8", "wrn_28_10", "preact_resnet1001-wrn")
            for suffix, source in (("", "cifar10"), ("-cifar100", "cifar100"))
        ),
        claims=("wide16_matches_1001", "wrn40_4_vs_1001", "wrn28_10_margin", "resnet1202_row", "preact1001_batch64"),
        note=QUOTED,
    ),
    Item(
        "table6",
        "Dropout inside the block",
        arms=("wrn_28_10", "wrn_28_10-cifar100", *(arm.name for arm in (*DROPOUT, *SVHN))),
        rows=tuple(
            Row(f"{model.replace('-', '_')}{where}{suffix}", published=f"table6/{model}{'-drop' if suffix else ''}/{column}")
            for model in ("wrn-16-4", "wrn-28-10", "wrn-52-1")
            for suffix in ("", "-dropout")
            for where, column in (("", "cifar10"), ("-cifar100", "cifar100"), ("-svhn", "svhn"))
            if (model, column) != ("wrn-28-10", "svhn")
        ),
        claims=("dropout_helps",),
    ),
    Item(
        "table7",
        "Wider networks of basic units on ImageNet",
        arms=("resnet18-fair", "wrn_18_1_5", "wrn_18_2", "wrn_18_3", "resnet34-fair", "wrn_34_1_5", "wrn_34_2"),
        rows=tuple(
            Row(arm, measure, f"table7/wrn-{depth}-{width}/{column}")
            for depth, widths in ((18, ("1.0", "1.5", "2.0", "3.0")), (34, ("1.0", "1.5", "2.0")))
            for width in widths
            for measure, column in (("test_error", "top1"), ("top5_error", "top5"))
            for arm in [f"resnet{depth}-fair" if width == "1.0" else f"wrn_{depth}_{width.removesuffix('.0').replace('.', '_')}"]
        ),
        claims=("wide_imagenet_monotone",),
    ),
    Item(
        "table8",
        "WRN-50-2 against deeper networks on ImageNet",
        arms=("resnet50-fair", "resnet101-fair", "resnet152-fair", "wrn_50_2"),
        rows=tuple(
            Row(arm, measure, f"table8/{row}/{column}")
            for arm, row in (
                ("resnet50-fair", "resnet-50"),
                ("resnet101-fair", "resnet-101"),
                ("resnet152-fair", "resnet-152"),
                ("wrn_50_2", "wrn-50-2-bottleneck"),
            )
            for measure, column in (("test_error", "top1"), ("top5_error", "top5"))
        ),
        claims=("wide50_beats_152", "wide50_size", "wrn50_2_top5", "secondary_doubled_channels", "protocols_differ"),
    ),
    Item(
        "fig2",
        "Training curves by width",
        arms=("wrn_40_1", "wrn_40_4"),
        draw=lambda evidence: [
            *_charts.training(evidence, {"wrn_40_1": "WRN-40-1", "wrn_40_4": "WRN-40-4"}, "wrn-fig2", "Thin and wide"),
            *_charts.training(evidence, {"wrn_40_4": "WRN-40-4"}, "wrn-fig2-loss", "Loss of WRN-40-4", measure="loss"),
        ],
        claims=("loss_rises_after_first_drop",),
        note=("The paper draws ResNet-164 beside WRN-28-10; here the thinnest and the widest of its 40 layers stand for them."),
    ),
    Item(
        "fig4",
        "Seconds an update by depth and width",
        arms=("wrn-times",),
        rows=tuple(
            Row("wrn-times", f"{name}_ms", f"figure4_times/{row}/time_ms", label=name)
            for name, row in (
                ("preact_resnet164", "thin-164"),
                ("preact_resnet1001", "thin-1001"),
                ("wrn_40_4", "wrn-40-4"),
                ("wrn_16_10", "wrn-16-10"),
                ("wrn_28_10", "wrn-28-10"),
            )
        ),
        claims=("wrn40_4_faster", "wrn28_10_faster", "figure4_errors"),
        note=ON_CPU,
    ),
)
