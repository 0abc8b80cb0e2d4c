"""What a training step of Llama-3.2-1B may take on an H100, from the bytes and launches that the emulator counted.

An estimate: nothing here was measured on a GPU. Every part of the step takes as long as its bytes or its operations do at
the shares of the peaks below, one part after another; the host queues launches meanwhile.
"""

import json
import math
import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "crates/model/src/catalogue/configs/llama-3.2-1b.json"
TOKENS = 8192

# By what is counted and where: how often each thing is queued.
Launches = dict[tuple[str, str], dict[str, int]]

# The share of the memory's bandwidth that kernels which memory bounds reach: the goal for them.
BANDWIDTH_SHARE = 0.85
# Attention's share of the peak: FlashAttention-2, which uses the same instructions, reaches 35 % on an H100, and tuned
# matrix products 80 to 90 % (Shah et al. 2024, FlashAttention-3, arXiv:2407.08608).
ATTENTION_SHARE = 0.35
# The share that products are hoped to reach; `tessera plan` has a lower one, for whole steps.
PRODUCT_SHARE = 0.70
# What a launch costs the host.
LAUNCH_SECONDS = 3e-6
MULTIPROCESSORS = 132


def source(path: str, pattern: str) -> str:
    """What a pattern's group matches in a source file, so that no constant is written down twice."""
    found = re.search(pattern, (ROOT / path).read_text(), re.DOTALL)
    if not found:
        raise SystemExit(f"step_estimate: {path} has nothing like {pattern}")
    return found.group(1)


def h100(field: str) -> float:
    return float(source("crates/train/src/plan/cluster/gpu.rs", rf"const H100: Gpu = .*?{field}: ([\d.e]+)"))


PEAK, BANDWIDTH, PLAN_SHARE = (
    h100(field) for field in ("peak_flops_per_second", "memory_bytes_per_second", "achieved")
)
CHUNK_TOKENS = int(source("crates/train/src/engine/mod.rs", r"CHUNK_TOKENS: usize = (\d+)"))
LOGITS_BYTES = int(source("crates/model/src/head.rs", r"Home::Gpu => (\d+) << 20")) << 20


class Model(NamedTuple):
    """Extents of a dense model whose head is its embedding."""

    blocks: int
    hidden: int
    inner: int
    queries: int
    keys: int
    head_size: int
    vocabulary: int

    @classmethod
    def read(cls) -> "Model":
        config = json.loads((ROOT / CONFIG).read_text())
        names = ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"]
        return cls(*(config[name] for name in [*names, "head_dim", "vocab_size"]))

    @property
    def layers(self) -> list[tuple[str, int, int]]:
        """The products of a block: inputs and outputs."""
        attended = self.queries * self.head_size
        qkv = attended + 2 * self.keys * self.head_size
        return [
            ("qkv", self.hidden, qkv),
            ("output", attended, self.hidden),
            ("gate_up", self.hidden, 2 * self.inner),
            ("down", self.inner, self.hidden),
        ]

    @property
    def block_parameters(self) -> int:
        return sum(inputs * outputs for _, inputs, outputs in self.layers) + 2 * self.hidden

    @property
    def parameters(self) -> int:
        return self.blocks * self.block_parameters + self.vocabulary * self.hidden + self.hidden

    @property
    def logits_rows(self) -> int:
        """Rows of logits that exist at a time: a power of two."""
        fitting = max(LOGITS_BYTES // (4 * self.vocabulary), 64)
        return min(1 << fitting.bit_length() - 1, TOKENS)

    def training_flops(self) -> float:
        """What one row needs, nothing counted twice: attention over its causal half."""
        attention = self.blocks * self.queries * self.head_size * TOKENS**2
        return 6 * ((self.blocks * self.block_parameters + self.hidden + self.vocabulary * self.hidden) * TOKENS + attention)


class Part(NamedTuple):
    """A part of a step: what it does, how long that takes, and how many launches it is."""

    name: str
    flops: float
    bytes: float
    seconds: float
    launches: int


def memory_seconds(count: float) -> float:
    return count / (BANDWIDTH_SHARE * BANDWIDTH)


def product(rows: int, inputs: int, outputs: int, output_bytes: int, share: float) -> tuple[float, float, float]:
    """Operations, bytes and seconds of a product of bf16 factors [rows, inputs] and [inputs, outputs]: what takes longer of
    operations and bytes."""
    flops = 2.0 * rows * inputs * outputs
    moved = 2.0 * (rows * inputs + inputs * outputs) + output_bytes * rows * outputs
    return flops, moved, max(flops / (share * PEAK), memory_seconds(moved))


def linear(rows: int, inputs: int, outputs: int, forwards: int, output_bytes: int, share: float) -> list[tuple]:
    """A linear layer on all tokens, `rows` at a time: its forwards, the gradient of its input, and that of its weight, which
    is read and written in fp32."""
    times = math.ceil(TOKENS / rows)
    products = [product(rows, inputs, outputs, output_bytes, share)] * forwards
    products += [product(rows, outputs, inputs, 2, share), product(outputs, rows, inputs, 8, share)]
    return products * times


def products_of_blocks(model: Model, share: float) -> list[tuple]:
    """`down` is not computed again."""
    one_block = []
    for name, inputs, outputs in model.layers:
        rows = min(CHUNK_TOKENS, TOKENS) if name in ("gate_up", "down") else TOKENS
        one_block += linear(rows, inputs, outputs, 1 if name == "down" else 2, 2, share)
    return one_block * model.blocks


def elements_in_block(model: Model) -> dict[str, float]:
    """What a launch in a block works on where all tokens are one chunk."""
    stream = TOKENS * model.hidden
    return {
        "rms_norm_forward_bf16": stream,
        "rms_norm_backward_bf16": stream,
        "bias_backward_f32": 2 * MULTIPROCESSORS * model.hidden,
        "rope_bf16": TOKENS * (model.queries + model.keys) * model.head_size,
        "swiglu_forward_bf16": TOKENS * model.inner,
        "swiglu_backward_bf16": TOKENS * model.inner,
        "attention_delta_bf16": TOKENS * model.queries * model.head_size,
        "cast_f32_bf16": model.block_parameters,
        "copy": stream,
    }


def elements_of_rest(model: Model) -> dict[str, float]:
    """The same outside of blocks. Of the casts there one is that of the embedding and one that of the gradient of the logits."""
    stream, logits = TOKENS * model.hidden, TOKENS * model.vocabulary
    return {
        "rms_norm_forward_bf16": stream,
        "rms_norm_backward_bf16": stream,
        "rows_gather_bf16": stream,
        "rows_scatter_bf16": stream,
        "embedding_backward_bf16": stream,
        "cross_entropy_f32": logits,
        "cast_f32_bf16": (model.vocabulary * model.hidden + logits) / 2,
        "fill": stream,
    }


def bytes_of(counts: dict[str, int], elements: dict[str, float], each: dict[str, float]) -> float:
    return sum(count * elements.get(name, 0) * each.get(name, 0) for name, count in counts.items())


def together(*counts: dict[str, int]) -> dict[str, int]:
    names = {name for one in counts for name in one}
    return {name: sum(one.get(name, 0) for one in counts) for name in names}


def row(model: Model, launches: Launches, each: dict[str, float], share: float) -> list[Part]:
    """The parts of a micro-batch of one row. Bytes do not depend on chunks, but for sums of columns; launches do."""
    chunks = math.ceil(TOKENS / CHUNK_TOKENS)
    once = together(*(launches["dense block", part] for part in ("forward", "backward", "computed again")))
    further = launches["dense block", "each further chunk of tokens"]
    block = together(once, *[further] * (chunks - 1))
    rest = launches["outside of blocks", "micro-batch"]
    # Products are parts of their own; copies and fills of the residual stream are bf16.
    each = {**each, "copy": 4, "fill": 2}
    attention = [name for name in once if name.startswith(("attention_forward", "attention_backward"))]
    other = {name: count for name, count in once.items() if name != "product" and name not in attention}

    def products(name: str, all_products: list[tuple]) -> Part:
        return Part(name, *map(sum, zip(*all_products)), len(all_products))

    pairs = model.blocks * model.queries * model.head_size * TOKENS * (TOKENS + 1) / 2
    # Forward twice, and both sides of the backward: see PASSES in the emulator's traffic/attention.rs.
    attention_flops = (2 * 4 + 8 + 6) * pairs
    head = linear(model.logits_rows, model.hidden, model.vocabulary, 1, 4, share)
    logits_chunks = math.ceil(TOKENS / model.logits_rows)
    blocks_bytes = model.blocks * bytes_of(other, elements_in_block(model), each)
    rest_bytes = bytes_of(rest, elements_of_rest(model), each)
    of_attention = model.blocks * sum(once[name] for name in attention)
    of_products = products("products of blocks", products_of_blocks(model, share))
    in_blocks = model.blocks * sum(block.values()) - of_products.launches - of_attention
    # What is not done once for a micro-batch is done for each chunk of logits.
    once_for_all = {"embedding_backward_bf16", "embedding_sort", "copy"}
    in_head = {name: count for name, count in rest.items() if name not in once_for_all | {"product"}}
    of_rest = sum(rest[name] for name in once_for_all) + logits_chunks * sum(in_head.values())
    return [
        of_products,
        Part("attention", attention_flops, 0, attention_flops / (ATTENTION_SHARE * PEAK), of_attention),
        Part("the rest of blocks", 0, blocks_bytes, memory_seconds(blocks_bytes), in_blocks),
        products(f"products of the head, {model.logits_rows} rows at a time", head),
        Part("loss, embedding, final norm", 0, rest_bytes, memory_seconds(rest_bytes), of_rest),
    ]


def update(model: Model, launches: Launches, each: dict[str, float]) -> Part:
    """Norm, AdamW and the clearing of gradients, over all parameters once."""
    moved = model.parameters * (each["squared_norm_pieces"] + each["adamw"] + 4)
    count = model.blocks * sum(launches["dense block", "update"].values())
    count += sum(launches["outside of blocks", "update"].values())
    return Part("update", 0, moved, memory_seconds(moved), count)


def outcome(model: Model, parts: list[Part], final: Part, rows: int) -> tuple[float, float, float]:
    """Seconds of the GPU and of the host, and MFU, of a step of so many rows."""
    gpu = rows * sum(part.seconds for part in parts) + final.seconds
    host = (rows * sum(part.launches for part in parts) + final.launches) * LAUNCH_SECONDS
    return gpu, host, rows * model.training_flops() / (max(gpu, host) * PEAK)


def table(launches: Launches, each: dict[str, float]) -> str:
    """The estimate as Markdown. `each`: bytes that a kernel moves for an element."""
    model = Model.read()
    final = update(model, launches, each)
    shares = [PLAN_SHARE, PRODUCT_SHARE]
    by_share = [row(model, launches, each, share) for share in shares]
    lines = [
        f"| part of a step of one row | TFLOP | GB | launches | ms, products at {shares[0]:.0%} | ms, at {shares[1]:.0%} |\n",
        "|---|---:|---:|---:|---:|---:|\n",
    ]
    for low, high in [*zip(*by_share), (final, final)]:
        flops = f"{low.flops / 1e12:.1f}" if low.flops else "–"
        moved = f"{low.bytes / 1e9:.1f}" if low.bytes else "–"
        cells = [low.name, flops, moved, f"{low.launches:,}", f"{1e3 * low.seconds:.1f}", f"{1e3 * high.seconds:.1f}"]
        lines.append("| " + " | ".join(cells) + " |\n")
    for rows in (1, 8):
        found = [outcome(model, parts, final, rows) for parts in by_share]
        for name, place, form in [("GPU, ms", 0, "{:.0f}"), ("host, ms", 1, "{:.0f}"), ("**MFU, estimated**", 2, "{:.0%}")]:
            values = [form.format(one[place] * (1 if place == 2 else 1e3)) for one in found]
            lines.append(f"| {name}, {rows} row{'s' if rows > 1 else ''} a step | | | | {values[0]} | {values[1]} |\n")
    return "".join(lines) + assumptions()


def assumptions() -> str:
    text = (
        f"Assumed: an H100 SXM does {PEAK / 1e12:.1f} TFLOP/s and moves {BANDWIDTH / 1e12:.2f} TB/s, of which kernels that "
        f"memory bounds reach {BANDWIDTH_SHARE:.0%}, the goal. A product takes the longer of its operations, at "
        f"{PLAN_SHARE:.0%} of the peak, which `tessera plan` takes for whole steps, or at {PRODUCT_SHARE:.0%}, and its bytes "
        f"at that bandwidth. Attention reaches {ATTENTION_SHARE:.0%} of the peak, as FlashAttention-2 does on an H100 "
        "(arXiv:2407.08608), and its backward does 14 operations where 10 are necessary. Nothing overlaps. A launch costs "
        f"the host {1e6 * LAUNCH_SECONDS:.0f} µs, which shows only where the host's sum is larger than the GPU's. Bytes are "
        "those counted above, element for element. Every block is computed again, micro-batches have one row. MFU counts "
        "what the model needs: 6 operations a parameter and token, attention over its causal half, nothing twice."
    )
    return "\n" + textwrap.fill(text, 130) + "\n"
