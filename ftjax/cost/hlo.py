"""Counting a compiled program: the text of a scheduled XLA module -> how often everything runs, bytes, cycles, seconds.

The plain sum over the entry computation is wrong: loops count once there, and communication, random bits, gathers,
scatters and Pallas kernels carry no cycles at all. Here every computation is weighed by how often it runs, what has
no cycles is counted in bytes, and cycles of kernels come from elsewhere (`ftjax.cost.kernels`). Only text goes in, so that a
program for a chip that is not there counts like any other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Container, Iterator, Mapping

BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "s4", "u4", "s2", "u2"), 1),
    **dict.fromkeys(("f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz", "f8e4m3fnuz", "f8e5m2fnuz", "f8e4m3", "f8e3m4", "f8e8m0fnu"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    "c128": 16,
}
"""Bytes of an element; what is no array (tokens, opaque handles) has none."""

FREE = ("ConcatBitcast", "AllocateBuffer", "Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape")
"""Custom calls that only name memory."""

ALIASES = ("get-tuple-element", "tuple", "bitcast", "while", "optimization-barrier", "copy-done", "slice-done")
"""What shows its operands' memory and takes none of its own."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = shape opcode(operands), rest`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    rest: str

    @functools.cached_property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """(dtype, dimensions) of the result, of every element where it is a tuple."""
        return shapes(self.shape)

    @property
    def bytes(self) -> int:
        """Of the result."""
        return sum(array_bytes(*array) for array in self.arrays)

    @property
    def cycles(self) -> int:
        """The compiler's estimate, 0 where it gives none."""
        found = re.search(r'"estimated_cycles":"?(\d+)', self.rest)
        return int(found[1]) if found else 0

    def called(self, attribute: str) -> str | None:
        """The computation that an attribute such as `calls` or `body` names."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, each in the order in which it runs. devices: how many run it together."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str
    devices: int

    @functools.cached_property
    def by_name(self) -> dict[str, dict[str, Instruction]]:
        """computation -> name -> instruction."""
        return {name: {i.name: i for i in body} for name, body in self.computations.items()}


def array_bytes(dtype: str, dimensions: tuple[int, ...]) -> int:
    """Bytes of an array without padding."""
    return BYTES.get(dtype, 0) * math.prod(dimensions)


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """`(f32[8,128]{1,0}, s32[])` to [("f32", (8, 128)), ("s32", ())]."""
    found = re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\]", text)
    return [(dtype, tuple(int(n.strip("<=")) for n in dims.split(",") if n)) for dtype, dims in found]


def parse(text: str) -> Module:
    """The module that `compiled.as_text()` gives.

    A computation ends on a line that is exactly `}` (kernels put newlines and braces into the text), and a line that
    does not begin an instruction goes on with the one before.
    """
    partitions, replicas = (re.search(rf"\b{name}=(\d+)", text[:100_000]) for name in ("num_partitions", "replica_count"))
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, name = "", None
    lines: list[str] = []
    for line in text.splitlines():
        if name is None:
            if found := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
                name, lines = found[2], []
                entry = name if found[1] else entry
        elif line == "}":
            computations[name] = tuple(instruction(whole) for whole in lines)
            name = None
        elif re.match(r"  (ROOT )?%?[\w.\-]+ = ", line):
            lines.append(line)
        elif lines:
            lines[-1] += "\n" + line
    devices = int(partitions[1]) if partitions else 1
    return Module(computations, entry, devices * (int(replicas[1]) if replicas else 1))


def instruction(line: str) -> Instruction:
    """One instruction from its text."""
    name, _, after = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(after, 0) + 1 if after.startswith("(") else after.index(" ")
    shape, after = after[:end], after[end:].lstrip()
    opcode, _, _ = after.partition("(")
    close = _closing(after, len(opcode))
    arguments = after[len(opcode) + 1 : close]
    operands = tuple(re.findall(r"%([\w.\-]+)", arguments))
    return Instruction(name.lstrip("%"), shape, opcode, operands, arguments, after[close + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` closes."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place
    return len(text)


def trip_count(module: Module, computation: str, loop: Instruction) -> int | None:
    """How often a `while` runs: what the compiler says, else (limit - start) / step of its counter; None if unknown."""
    if found := re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.rest):
        return int(found[1])
    condition, body = loop.called("condition"), loop.called("body")
    if condition is None or body is None:
        return None
    test = _reach(module, condition, _root(module, condition))
    direction = test and re.search(r"\bdirection=(\w+)", test[1].rest)
    if test is None or not direction:
        return None
    sides = [_value(module, test[0], name, test[2]) for name in test[1].operands]
    counters = [side for side in sides if isinstance(side, tuple)]
    limits = [side for side in sides if isinstance(side, int)]
    if len(counters) != 1 or len(limits) != 1:
        return None
    index = counters[0][0]
    start = _start(module, computation, loop, index)
    step = _step(module, body, index)
    if start is None or not step:
        return None
    inclusive = direction[1] in ("LE", "GE")
    return max(0, -(-(limits[0] + (1 if step > 0 else -1) * inclusive - start) // step))


_Bound = dict[int, tuple[str, str]]  # parameter number of a fusion's computation -> (computation, operand) it was called with


def _root(module: Module, computation: str) -> Instruction:
    return module.computations[computation][-1]


def _reach(module: Module, computation: str, found: Instruction) -> tuple[str, Instruction, _Bound] | None:
    """The `compare` that an instruction is or, inside fusions and copies, stands for."""
    bound: _Bound = {}
    while found.opcode != "compare":
        inner = found.called("calls") if found.opcode == "fusion" else found.called("to_apply")
        if inner is not None and found.opcode in ("fusion", "call"):
            bound = {number: (computation, name) for number, name in enumerate(found.operands)}
            computation, found = inner, _root(module, inner)
        elif found.opcode in ("copy", "bitcast", "convert") and found.operands:
            found = module.by_name[computation][found.operands[0]]
        else:
            return None
    return computation, found, bound


def _value(module: Module, computation: str, name: str, bound: _Bound) -> int | tuple[int] | None:
    """A constant's value, or (i,) for element i of the loop's state; None for anything else."""
    found = module.by_name[computation].get(name)
    if found is None:
        return None
    match found.opcode:
        case "constant":
            return int(found.arguments) if re.fullmatch(r"-?\d+", found.arguments) else None
        case "get-tuple-element":
            index = re.search(r"\bindex=(\d+)", found.rest)
            return (int(index[1]),) if index else None
        case "copy" | "bitcast" | "convert":
            return _value(module, computation, found.operands[0], bound)
        case "parameter":
            outer = bound.get(int(found.arguments))
            return _value(module, *outer, {}) if outer else None
    return None


def _start(module: Module, computation: str, loop: Instruction, index: int) -> int | None:
    state = module.by_name[computation].get(loop.operands[0])
    while state is not None and state.opcode in ("copy", "opt-barrier"):
        state = module.by_name[computation].get(state.operands[0])
    if state is None or state.opcode != "tuple":
        return None
    found = _value(module, computation, state.operands[index], {})
    return found if isinstance(found, int) else None


def _step(module: Module, body: str, index: int) -> int | None:
    """What a turn of the loop adds to element `index` of its state."""
    root = _root(module, body)
    if root.opcode != "tuple":
        return None
    computation, found, bound = body, module.by_name[body].get(root.operands[index]), {}
    while found is not None and found.opcode in ("fusion", "call", "copy", "get-tuple-element"):
        if found.opcode in ("copy", "get-tuple-element"):
            found = module.by_name[computation].get(found.operands[0])
            if found is not None and found.opcode == "parameter":
                return None
            continue
        inner = found.called("calls") or found.called("to_apply")
        if inner is None:
            return None
        bound = {number: (computation, name) for number, name in enumerate(found.operands)}
        computation, found = inner, _root(module, inner)
    if found is None or found.opcode not in ("add", "subtract"):
        return None
    sides = [_value(module, computation, name, bound) for name in found.operands]
    steps = [side for side in sides if isinstance(side, int)]
    if (index,) not in sides or len(steps) != 1:
        return None
    return steps[0] if found.opcode == "add" else -steps[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """An instruction, the computation it is in, how often it runs, and whether it is part of a fusion."""

    instruction: Instruction
    computation: str
    times: int
    fused: bool


def walk(module: Module, computation: str | None = None, times: int = 1, fused: bool = False) -> Iterator[Run]:
    """Every instruction that runs, in order, bodies of loops once with how often they run; of branches the first.

    A loop whose number of turns is unknown counts once, see `unknown_loops`.
    """
    computation = computation or module.entry
    for each in module.computations.get(computation, ()):
        yield Run(each, computation, times, fused)
        match each.opcode:
            case "while":
                turns = trip_count(module, computation, each)
                for part in ("condition", "body"):
                    if inner := each.called(part):
                        yield from walk(module, inner, times * (1 if turns is None else turns), fused)
            case "fusion" | "call" | "async-start":
                if inner := each.called("calls") or each.called("to_apply"):
                    yield from walk(module, inner, times, fused or each.opcode == "fusion")
            case "conditional":
                if found := re.search(r"(?:branch_computations=\{|true_computation=)%?([\w.\-]+)", each.rest):
                    yield from walk(module, found[1], times, fused)


def unknown_loops(module: Module) -> int:
    """How many loops there are whose number of turns the text does not tell."""
    return sum(
        run.instruction.opcode == "while" and trip_count(module, run.computation, run.instruction) is None
        for run in walk(module)
    )


def kernels(module: Module) -> dict[str, str]:
    """Instruction -> its program, of those that call a Pallas kernel; one that is called in two places has one program."""
    calls = (run.instruction for run in walk(module) if run.instruction.opcode == "custom-call")
    return {call.name: body[1] for call in calls if (body := re.search(r'"body":"([^"]*)"', call.rest))}


def flops(module: Module) -> int:
    """2 · m · n · k of every dot product, loops by their turns (`cost_analysis` counts them once), for one device."""
    return sum(run.times * _dot_flops(module, run) for run in walk(module) if run.instruction.opcode == "dot")


def _dot_flops(module: Module, run: Run) -> int:
    dot = run.instruction
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.rest)
    named = shapes(dot.arguments.partition("%")[0])  # older text repeats the operand's shape before its name
    left = named[0] if named else module.by_name[run.computation][dot.operands[0]].arrays[0]
    inner = [left[1][int(n)] for n in contracted[1].split(",") if n] if contracted else []
    return 2 * math.prod(dot.arrays[0][1]) * math.prod(inner)


@dataclasses.dataclass(frozen=True)
class Rates:
    """What turns counts into seconds: cycles a second, bytes a second of one ring of links (both ways) and of memory."""

    clock: float
    link_bandwidth: float
    memory_bandwidth: float


@dataclasses.dataclass(frozen=True)
class Transfer:
    """A kind of communication. times: how often it runs; bytes: over the links of one device, of all times together.

    blocking: whether it is one operation; else it has a start and an end, between which other things run.
    seconds: those bytes over the link bandwidth; exposed: of them, how long nothing is computed meanwhile; None of a program
    of which no times are known.
    """

    kind: str
    blocking: bool
    times: int
    bytes: float
    seconds: float | None = None
    exposed: float | None = None


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one run of a program on one device.

    compute: what the compiler's cost model says, loops by their turns, and kernels. kernels: their part of it, by their cycles
    or by what they read and write, once, whichever is more. memory: random bits, gathers and scatters, of which the model says
    nothing: their bytes over the memory bandwidth. transfers: communication.
    total: all in.
    uncounted: custom calls without an estimate, name -> how often they run: what they take is not in any figure.
    """

    compute: float
    kernels: float
    memory: float
    transfers: tuple[Transfer, ...]
    total: float
    uncounted: dict[str, int]


def wire_bytes(module: Module, each: Instruction, computation: str) -> float:
    """Bytes over the links of one device for a collective among n on a ring: n - 1 of n parts, twice for a sum that all get.

    Of an all-to-all, every part passes the devices between, which are n / 4 on the mean; a torus of more dimensions has shorter
    ways, so this is rather too much.
    """
    kind, inside = collective(each), module.by_name[computation]
    given = sum(inside[name].bytes for name in each.operands if name in inside)
    if kind == "collective-permute":
        return float(given)
    n = group_size(module, each)
    match kind:
        case "all-gather":
            return given * (n - 1.0)
        case "reduce-scatter":  # the operand may be narrower than what is summed
            return max(given, each.bytes * n) * (n - 1) / n
        case "all-reduce":
            result = each.bytes if each.opcode == kind else 0
            return 2 * max(given, result) * (n - 1) / n
        case "all-to-all":
            return given * (n * n // 4) / n
    return given * (n - 1) / n


def collective(each: Instruction) -> str | None:
    """Which collective an instruction is, or begins."""
    kind = each.opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else None


def group_size(module: Module, each: Instruction) -> int:
    """How many devices a collective is among."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", each.rest):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", each.rest):
        return len(found[1].split(","))
    return module.devices


def unestimated_bytes(module: Module, each: Instruction, computation: str) -> int:
    """Bytes through memory of what the cost model gives no cycles for: random bits, and rows gathered or scattered.

    A gather reads and writes its result; a scatter reads its updates, and reads and writes as many rows of its target.
    Inside a fusion they are found where the fusion as a whole has no estimate.
    """
    match each.opcode:
        case "rng-bit-generator" | "rng":
            return each.bytes
        case "gather":
            return 2 * each.bytes
        case "scatter":
            inside = module.by_name[computation]
            return 3 * sum(inside[name].bytes for name in each.operands[2:] if name in inside)
        case "fusion":
            inner = each.called("calls")
            parts = module.computations.get(inner, ()) if inner else ()
            return sum(unestimated_bytes(module, part, inner) for part in parts if inner and not part.cycles)
    return 0


def times(module: Module, rates: Rates, kernels: Mapping[str, int]) -> Times:
    """How long a program takes, all in. kernels: cycles of custom calls by instruction, see `ftjax.cost.kernels`.

    A computation is followed in its order with two clocks: what is computed, and the links, which carry one collective
    after the other. One that blocks lets the first wait for the second; one with a start and an end only if the links are
    not done by its end.
    """
    timeline = _Timeline(module, rates, kernels)
    total = timeline.follow(module.entry, 1)
    moved = tuple(
        Transfer(kind, blocking, number, size, seconds, exposed)
        for (kind, blocking), (number, size, seconds, exposed) in timeline.transfers.items()
    )
    return Times(timeline.compute, timeline.kernels, timeline.memory, moved, total, timeline.uncounted)


class _Timeline:
    def __init__(self, module: Module, rates: Rates, cycles: Mapping[str, int]) -> None:
        self.module, self.rates, self.cycles = module, rates, cycles
        self.compute = self.kernels = self.memory = 0.0
        self.transfers: dict[tuple[str, bool], tuple[int, float, float, float]] = {}
        self.uncounted: dict[str, int] = {}

    def follow(self, computation: str, turns: int) -> float:
        """Seconds of one turn of a computation; what it adds to the sums is for all its turns."""
        now = links = 0.0
        ends: dict[str, tuple[str, float]] = {}  # of collectives under way: kind, when the links are done with it
        for each in self.module.computations.get(computation, ()):
            opcode = each.opcode
            if opcode == "while":
                number = trip_count(self.module, computation, each)
                parts = [inner for part in ("condition", "body") if (inner := each.called(part))]
                number = 1 if number is None else number
                now += number * sum(self.follow(inner, turns * number) for inner in parts)
            elif opcode == "conditional":
                found = re.search(r"(?:branch_computations=\{|true_computation=)%?([\w.\-]+)", each.rest)
                now += self.follow(found[1], turns) if found else 0.0
            elif opcode == "call" and (inner := each.called("to_apply")):
                now += self.follow(inner, turns)
            elif begun := begins(self.module, computation, each):
                at, sent, blocking = begun
                kind, seconds = self.send(at, sent, blocking, turns)
                end = links = max(now, links) + seconds
                if blocking:
                    self.expose(kind, True, turns * (end - now))
                    now = end + self.work(each, computation, turns)
                else:
                    ends[each.name] = (kind, end)
            elif is_end(self.module, each) and (start := self.origin(computation, each, ends)):
                kind, end = ends.pop(start)
                self.expose(kind, False, turns * max(0.0, end - now))
                now = max(now, end)
            else:
                now += self.work(each, computation, turns)
        return now

    def origin(self, computation: str, end: Instruction, ends: Container[str]) -> str | None:
        """The start that an end belongs to: whatever stands between them hands it on as its first operand."""
        found: Instruction | None = end
        while found is not None and found.name not in ends:
            found = self.module.by_name[computation].get(found.operands[0]) if found.operands else None
        return found.name if found else None

    def work(self, each: Instruction, computation: str, turns: int) -> float:
        """Seconds of an instruction that is neither a loop nor communication."""
        seconds, cycles = each.cycles / self.rates.clock, self.cycles.get(each.name, 0)
        if cycles and not seconds:
            inside = self.module.by_name[computation]
            moved = each.bytes + sum(inside[name].bytes for name in each.operands if name in inside)
            seconds = max(cycles / self.rates.clock, moved / self.rates.memory_bandwidth)
            self.kernels += turns * seconds
        self.compute += turns * seconds
        if not seconds:
            memory = unestimated_bytes(self.module, each, computation) / self.rates.memory_bandwidth
            self.memory += turns * memory
            seconds += memory
            if each.opcode == "custom-call":
                target = re.search(r'custom_call_target="([^"]*)"', each.rest)
                name = target[1] if target else each.name
                if name not in FREE:
                    self.uncounted[name] = self.uncounted.get(name, 0) + turns
        return seconds

    def send(self, computation: str, each: Instruction, blocking: bool, turns: int) -> tuple[str, float]:
        """(kind, seconds that the links are busy) of a collective."""
        size, kind = wire_bytes(self.module, each, computation), collective(each) or each.opcode
        seconds = size / self.rates.link_bandwidth
        old = self.transfers.get((kind, blocking), (0, 0.0, 0.0, 0.0))
        self.transfers[kind, blocking] = (old[0] + turns, old[1] + turns * size, old[2] + turns * seconds, old[3])
        return kind, seconds

    def expose(self, kind: str, blocking: bool, seconds: float) -> None:
        """Note that nothing was computed for so long."""
        number, size, busy, exposed = self.transfers[kind, blocking]
        self.transfers[kind, blocking] = (number, size, busy, exposed + seconds)


def transfers(module: Module) -> tuple[Transfer, ...]:
    """All communication of a program, by kind, without times."""
    found: dict[tuple[str, bool], tuple[int, float]] = {}
    for run in walk(module):
        if not run.fused and (begun := begins(module, run.computation, run.instruction)):
            computation, each, blocking = begun
            key = (collective(each) or each.opcode, blocking)
            times, size = found.get(key, (0, 0.0))
            found[key] = (times + run.times, size + run.times * wire_bytes(module, each, computation))
    return tuple(Transfer(kind, blocking, times, size) for (kind, blocking), (times, size) in found.items())


def begins(module: Module, computation: str, each: Instruction) -> tuple[str, Instruction, bool] | None:
    """(its computation, the collective, whether it blocks) that an instruction is or begins; None for anything else.

    A TPU's compiler also hides collectives in fusions: one that begins it (its computation calls AsyncCollectiveStart), any
    number that compute and carry it on, and one that ends it.
    """
    if collective(each):
        return computation, each, not each.opcode.endswith("-start")
    inner = each.called("calls") if each.opcode in ("fusion", "async-start") else None
    if inner is None:
        return None
    found = next((part for part in module.computations.get(inner, ()) if collective(part)), None)
    if found is None:
        return None
    roles = _roles(module, inner)
    if "AsyncCollectiveStart" in roles or each.opcode == "async-start":
        return inner, found, False
    return None if "AsyncCollectiveDone" in roles or inner.startswith("async_collective_fusion") else (inner, found, True)


def is_end(module: Module, each: Instruction) -> bool:
    """Whether an instruction waits for a collective that was begun before."""
    if each.opcode.endswith("-done"):
        return True
    inner = each.called("calls") if each.opcode == "fusion" else None
    return inner is not None and "AsyncCollectiveDone" in _roles(module, inner)


def _roles(module: Module, computation: str) -> set[str]:
    calls = (each.rest for each in module.computations[computation] if each.opcode == "custom-call")
    return {found[1] for rest in calls if (found := re.search(r'custom_call_target="(\w+)"', rest))}


def main_memory_bytes(each: Instruction) -> int:
    """Bytes that an instruction takes in main memory: not what its layout, with S(1) and so on, puts into fast memory.

    What starts a copy or the copy of a slice hands on its operand beside what is new, which comes first or second.
    """
    found = re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?", each.shape)
    match each.opcode:
        case "copy-start":
            found = found[:1]
        case "slice-start":
            found = found[1:2]
    return sum(array_bytes(*array) for d, n, layout in found if "S(" not in layout for array in shapes(f"{d}[{n}]"))


def held_for_backward(module: Module) -> float:
    """Share of the memory at its fullest moment that the forward pass left there for the backward pass.

    Every result in main memory lives from its instruction to its last reader; what is differentiated and not transposed
    (as the instructions' names tell) belongs to the forward pass. Sizes are without padding: hence a share.
    """
    most, forward = _fullest(module, module.entry)
    return forward / most if most else 0.0


def _fullest(module: Module, computation: str) -> tuple[int, int]:
    """(bytes, of them the forward pass's) at the fullest moment of a computation, its parameters apart."""
    body = module.computations.get(computation, ())
    source: dict[str, tuple[str, ...]] = {}  # name -> whose memory it shows
    last: dict[str, int] = {}
    forward: set[str] = set()
    for place, each in enumerate(body):
        name = re.search(r'op_name="([^"]*)"', each.rest)
        named = "jvp(" in name[1] and "transpose(" not in name[1] if name else any(n in forward for n in each.operands[:1])
        forward |= {each.name} if named else set()
        read = tuple(owner for name in each.operands for owner in source.get(name, ()))
        source[each.name] = read if each.opcode in ALIASES else (each.name,)
        if each.opcode in ("copy-start", "slice-start"):
            source[each.name] += read
        for owner in read:
            last[owner] = place
    ending: dict[int, list[str]] = {}
    for name, place in last.items():
        ending.setdefault(place, []).append(name)
    live: dict[str, tuple[int, int]] = {}
    now, fullest = (0, 0), (0, 0)
    for place, each in enumerate(body):
        if each.name in source[each.name] and each.opcode not in ("parameter", "constant") and each.name in last:
            size = main_memory_bytes(each)
            live[each.name] = (size, size * (each.name in forward))
            now = (now[0] + size, now[1] + size * (each.name in forward))
        inside = _fullest(module, each.called("body") or "") if each.opcode == "while" else (0, 0)
        fullest = max(fullest, (now[0] + inside[0], now[1] + inside[1]))
        for name in ending.get(place, ()):
            gone = live.pop(name, (0, 0))
            now = (now[0] - gone[0], now[1] - gone[1])
    return fullest
