#!/usr/bin/env python3
"""ptxas_report.py MEASURES ARCHITECTURES SOURCE... -- LOG...: fails when a kernel spills registers or has a stack frame (local memory) on one of
the architectures ("80,90,100"), is missing there, or has blocks of unknown size; prints what each kernel takes, and its theoretical occupancy by registers,
shared memory and the largest block: those that __launch_bounds__ allows, or what the program MEASURES (attention_measures) says, which knows dynamic
shared memory too. The logs are ptxas -v's. With "self-check" in place of all that: that the check can fail."""
import re
import subprocess
import sys

WARPS, BLOCKS, REGISTERS, PARTITIONS = 64, 32, 65536, 4  # of a multiprocessor of sm_80, sm_90 and sm_100
SHARED = {"80": 164 << 10, "90": 228 << 10, "100": 228 << 10}
RESERVED = 1 << 10  # shared memory of every block


def kernels(log):
    """(name, architecture) -> dict of what ptxas says."""
    found, current = {}, None
    for line in log.splitlines():
        entry = re.search(r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'", line)
        if entry:
            current = found.setdefault(entry.groups(), {})
        if current is None:
            continue
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line)
        if frame:
            current["frame"], current["stores"], current["loads"] = map(int, frame.groups())
        used = re.search(r"Used (\d+) registers", line)
        if used:
            current["registers"] = int(used.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            current["shared"] = int(shared.group(1)) if shared else 0
            current = None
    return found


def constants(source):
    values = dict(re.findall(r"(\w+) = ([^,{};]+?)\s*(?=[,}])", " ".join(re.findall(r"enum \{[^}]*\}", source))))
    known = {}
    while True:
        before = len(known)
        for name, text in values.items():
            try:
                known[name] = int(eval(text, {"__builtins__": {}}, dict(known)))
            except (NameError, SyntaxError, TypeError):
                pass
        if len(known) == before:
            return known


def name_of(readable):
    """a kernel's name and template arguments, without its namespaces and parameters"""
    return re.sub(r"^void ", "", readable.replace("(anonymous namespace)::", "")).split("(")[0].split("::")[-1]


def block_sizes(sources):
    """kernel name -> threads of its largest block; names are unique enough within one source."""
    sizes, shared = {}, {}
    for text in sources:
        shared.update(constants(text))
    for text in sources:
        known = dict(shared, **constants(text))
        for bound, name in re.findall(r"__launch_bounds__\(([^)]*)\)\s*(\w+)\s*\(", text):
            try:
                sizes[name] = int(eval(bound.split(",")[0], {"__builtins__": {}}, known))
            except (NameError, SyntaxError):
                pass
    return sizes


def occupancy(architecture, registers, shared, threads):
    warps = -(-threads // 32)
    of_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS // PARTITIONS // of_warp * PARTITIONS // warps if of_warp else BLOCKS
    by_shared = SHARED[architecture] // (-(-shared // 128) * 128 + RESERVED)
    return min(BLOCKS, WARPS // warps, by_registers, by_shared) * warps / WARPS


def instances(text):
    """(kernel, type, width) -> threads and dynamic shared memory, from attention_measures' lines"""
    return {(k, t, w): (int(threads), int(shared)) for k, t, w, threads, shared in (line.split() for line in text.splitlines())}


def report(architectures, sources, logs, measures=""):
    found = {}
    for log in logs:
        found.update(kernels(log))
    names = sorted({name for name, _ in found})
    problems = [] if names else ["no kernel in the logs"]
    plain = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    sizes, of_instance = block_sizes(sources), instances(measures)
    print(f"{'kernel':<48} {'sm':>4} {'registers':>9} {'shared':>7} {'block':>5} {'occupancy':>9}")
    for name, readable in zip(names, plain):
        short = name_of(readable)
        words = re.match(r"(\w+)<(\w+), (\d+)", short)
        threads, dynamic = (of_instance.get(words.groups()) if words else None) or (sizes.get(short.split("<")[0]), 0)
        if not threads:
            problems.append(f"{short}: the size of its blocks is not known")
        for architecture in architectures:
            k = found.get((name, architecture))
            if not k or "registers" not in k or "frame" not in k:
                problems.append(f"{short}: nothing said for sm_{architecture}")
                continue
            if k["frame"] or k["stores"] or k["loads"]:
                problems.append(f"{short}, sm_{architecture}: a stack frame of {k['frame']} bytes, {k['stores']} bytes of spill stores, "
                                f"{k['loads']} of spill loads")
            shared = k["shared"] + dynamic
            share = f"{100 * occupancy(architecture, k['registers'], shared, threads):.0f} %" if threads else "?"
            print(f"{short:<48} {architecture:>4} {k['registers']:>9} {shared:>7} {threads or '?':>5} {share:>9}")
    return problems


def self_check():
    text = ("ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'\nptxas info    : Function properties for _Z1kv\n"
            "    %d bytes stack frame, %d bytes spill stores, 0 bytes spill loads\nptxas info    : Used 40 registers, 64 bytes smem, 400 bytes cmem[0]\n")
    source = "enum { THREADS = 32 * ROWS, ROWS = 4 };\n__global__ void __launch_bounds__(THREADS) k() {}"
    assert block_sizes([source]) == {"k": 128}
    assert occupancy("80", 40, 64, 128) == 0.75 and occupancy("80", 32, 0, 1024) == 1 and occupancy("90", 66, 0, 256) == 0.375
    assert report(["80"], [source], [text % (0, 0)]) == []
    assert len(report(["80"], [source], [text % (8, 0)])) == 1
    assert len(report(["80"], [source], [text % (0, 4)])) == 1
    assert len(report(["80", "90"], [source], [text % (0, 0)])) == 1
    assert len(report(["80"], [source], [""])) == 1
    assert len(report(["80"], ["no bounds"], [text % (0, 0)])) == 1
    assert name_of("void (anonymous namespace)::k<float, 64>((anonymous namespace)::shape)") == "k<float, 64>"
    wide = (text % (0, 0)).replace("_Z1kv", "_Z1kIfLi64EEvv")
    assert report(["80"], ["no bounds"], [wide], "k float 64 128 50000") == [] and len(report(["80"], ["no bounds"], [wide], "k float 32 128 0")) == 1


def main():
    if sys.argv[1:] == ["self-check"]:
        return self_check()
    measures = subprocess.run([sys.argv[1]], capture_output=True, text=True, check=True).stdout
    split = sys.argv.index("--")
    texts = [[open(path, encoding="utf-8").read() for path in paths] for paths in (sys.argv[3:split], sys.argv[split + 1:])]
    problems = report(sys.argv[2].split(","), *texts, measures)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
