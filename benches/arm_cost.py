"""Executed guest instructions per decoded and per prefilled token, on emulated Raspberry Pi processors.

Owns: `make arm-cost`. Runs the static ARM binary in qemu-user with the counting plugin beside this file, twice with
different token counts; the difference, divided, is the cost of a token without start-up. One thread, depth about 0.
With --packed each model is also counted with its pack, which `lowkey pack` writes to a folder that is removed afterwards.
Refuses: to speak of time. Counts rank kernels of one kind on one processor; a cycle model decides between kinds.
Needs: Debian's qemu-user (its static build loads no plugins), gcc, and the binary that `make size` builds.
"""

import argparse
import pathlib
import shutil
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
CPUS = ("cortex-a53", "cortex-a72", "cortex-a76")
# By name: with `auto` kernel sets are measured at start, by a clock that is not the processor's.
SETS = {"cortex-a53": "neon", "cortex-a72": "neon", "cortex-a76": "dotprod", "max": "i8mm"}

# llama.cpp, commit 0c1e57098 (llama-cpp-python 0.3.36), SmolLM2-135M-Instruct, built for ARM, counted in the same way on
# qemu-user 7.2: (decode, prefill in batches of 64), million instructions a token. Measured once; not repeated by this script.
PEER = {
    ("cortex-a76", "q4_1"): (101.6, 94.3),
    ("cortex-a76", "q4_0"): (39.8, 19.8),
    ("cortex-a76", "q8_0"): (33.1, 20.4),
    ("cortex-a72", "q4_1"): (148.3, 120.2),
    ("cortex-a72", "q4_0"): (136.3, 108.5),
    ("cortex-a72", "q8_0"): (126.3, 98.7),
}


def plugin(folder):
    library = pathlib.Path(folder) / "libcount_insns.so"
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", str(HERE / "count_insns.c"), "-o", str(library)], check=True)
    return library


def count(args, library, cpu, model, prompt, n, folder):
    out = pathlib.Path(folder) / "count"
    command = [args.qemu, "-cpu", cpu, "-plugin", f"{library},out={out}", args.lowkey, "bench", "-m", model, "-t", "1"]
    command += ["-p", str(prompt), "-n", str(n), "-r", "1", "--kv-budget", "8MiB", "--kernels", args.kernels or SETS[cpu], "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return int(out.read_text())


def packed(args, model, folder):
    """The model with its pack, by links in a folder of their own."""
    link = pathlib.Path(folder) / pathlib.Path(model).name
    link.symlink_to(pathlib.Path(model).resolve())
    subprocess.run([args.qemu, "-cpu", "max", args.lowkey, "pack", str(link)], check=True, stdout=subprocess.DEVNULL)
    return link


def quant(model):
    return next((q for q in ("q4_0", "q4_1", "q8_0", "q4_k_m") if q in pathlib.Path(model).name), "?")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default="target-arm/aarch64-unknown-linux-gnu/release/lowkey")
    parser.add_argument("--qemu", default="qemu-aarch64")
    parser.add_argument("--kernels", help="a kernel set (default: the processor's own)")
    parser.add_argument("--cpus", default=",".join(CPUS))
    parser.add_argument("--packed", action="store_true", help="count each model with its pack, too")
    parser.add_argument("--model", action="append", required=True)
    args = parser.parse_args()
    if not pathlib.Path(args.lowkey).is_file():
        sys.exit(f"arm_cost.py: {args.lowkey} is not there: run `make size`")
    for model in args.model:
        if not pathlib.Path(model).is_file():
            sys.exit(f"arm_cost.py: {model} is not there: `models/fetch --list` says what can be fetched")
    for program, package in ((args.qemu, "qemu-user"), ("gcc", "gcc")):
        if not shutil.which(program):
            sys.exit(f"arm_cost.py: {program} is not installed (Debian: sudo apt-get install {package})" + ("; qemu-user-static loads no plugins" if package == "qemu-user" else ""))
    print("| model | processor | decode, M/token | of llama.cpp's | prefill, M/token | of llama.cpp's |\n|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        library = plugin(folder)
        for model in [m for model in args.model for m in ([model, packed(args, model, folder)] if args.packed else [model])]:
            for cpu in args.cpus.split(","):
                at = lambda prompt, n: count(args, library, cpu, model, prompt, n, folder)
                decode = (at(0, 12) - at(0, 4)) / 8 / 1e6
                prefill = (at(192, 0) - at(64, 0)) / 128 / 1e6
                peer = PEER.get((cpu, quant(model)))
                ratios = [f"{decode / peer[0]:.2f}", f"{prefill / peer[1]:.2f}"] if peer else ["", ""]
                name = pathlib.Path(model).name + (" packed" if pathlib.Path(model).parent == pathlib.Path(folder) else "")
                print(f"| {name} | {cpu} | {decode:.1f} | {ratios[0]} | {prefill:.1f} | {ratios[1]} |", flush=True)


if __name__ == "__main__":
    main()
