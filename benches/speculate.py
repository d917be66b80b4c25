"""What `--speculate` wins on five fixed texts: three that repeat what was said (a copy, changed code, JSON), prose and verse.

Owns: the texts, and the figures of docs/guide.md about guesses. Each text is generated in pairs, with guesses and without, which first
alternates; the tokens must be the same, or the script fails. A line tells the median of the pairs' ratios of decoding speed. With
--count CPU it counts executed instructions of the emulated processor instead, of two lengths, so that start and prompt cancel out.
Refuses: to speak of time where it counts. Needs: `make build`; to count, what arm_cost.py needs.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import arm_cost

HERE = pathlib.Path(__file__).resolve().parent

LETTER = """Dear Ms Okafor,

thank you for your letter of 14 March about the water meter in the cellar of Kestrel Street 27. Our engineer, Mr Lindqvist, will come
on Tuesday the 2nd of April between nine and eleven in the morning. Please keep the passage to the boiler free and have the number of
the old meter, 4471-B-0093, at hand. If the date does not suit you, write to meters@vale-water.example or call 0555 0134 before noon
on the day before. The exchange takes about forty minutes and costs you nothing. With kind regards, Tomasz Brand, Vale Water.
"""

CODE = """def total_price(orders, tax_rate):
    total = 0.0
    for order in orders:
        if order.cancelled:
            continue
        price = order.quantity * order.unit_price
        if order.discount is not None:
            price -= price * order.discount
        total += price
    return total * (1.0 + tax_rate)
"""

RECORDS = """[
  {"id": 101, "name": "pump house", "sensor": "flow", "unit": "l/min", "low": 12.5, "high": 80.0, "enabled": true},
  {"id": 102, "name": "boiler room", "sensor": "temperature", "unit": "celsius", "low": 35.0, "high": 85.0, "enabled": true},
  {"id": 103, "name": "greenhouse", "sensor": "humidity", "unit": "percent", "low": 40.0, "high": 75.0, "enabled": false},
  {"id": 104, "name": "north cellar", "sensor": "pressure", "unit": "bar", "low": 1.5, "high": 3.2, "enabled": true}
]"""

TEXTS = {
    # name: (prompt, temperature, whether it repeats what was said). Small models copy what they have begun to copy.
    "copy": (f"{LETTER}\nThe same letter once more:\n\n{LETTER[:LETTER.index('Please')]}", 0.0, True),
    "code": (f"{CODE}\n\n{CODE[:CODE.index('price = ')].replace('tax_rate', 'vat_rate')}", 0.0, True),
    "json": (f"{RECORDS}\n\nAll of them enabled:\n\n{RECORDS[:RECORDS.index('boiler')]}", 0.0, True),
    "prose": ("The ferry had not come for three days, and in the harbour people began to talk about", 0.8, False),
    "verse": ("Song of the Old Mill\n\nThe wheel goes round, the water sings,\nThe miller counts his", 0.8, False),
}


def command(args, prompt, temp, n, n_guess):
    line = [args.lowkey, "run", "-m", args.model, "-p", prompt, "-n", str(n), "--temp", str(temp), "--seed", "7", "--ignore-eos", "--json"]
    line += ["--kv-budget", args.kv_budget, "-t", str(args.threads), "--speculate", str(n_guess)]
    return line + (["--evict", args.evict] if args.evict else [])


def run(args, prompt, temp, n_guess):
    return json.loads(subprocess.run(command(args, prompt, temp, args.n, n_guess), check=True, capture_output=True).stdout)


def timed(args, name, prompt, temp):
    ratios, speeds = [], ([], [])
    for pair in range(args.runs):
        answers = {}
        for n_guess in (0, args.speculate) if pair % 2 else (args.speculate, 0):
            answers[n_guess] = run(args, prompt, temp, n_guess)
        plain, guessed = answers[0], answers[args.speculate]
        if plain["tokens"] != guessed["tokens"]:
            sys.exit(f"speculate.py: {name}: other tokens with guesses than without")
        both = [answer["timings"]["decode_tok_s"] for answer in (plain, guessed)]
        ratios.append(both[1] / both[0])
        for kept, speed in zip(speeds, both):
            kept.append(speed)
    timings = guessed["timings"]
    return {
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "plain_tok_s": statistics.median(speeds[0]),
        "guessed_tok_s": statistics.median(speeds[1]),
        "draft_n": timings["draft_n"],
        "draft_n_accepted": timings["draft_n_accepted"],
        "evicted": guessed["kv"]["evicted"],
    }


def counted(args, prompt, temp, folder, library):
    """Million instructions a token, without guesses and with."""
    out = pathlib.Path(folder) / "count"

    def executed(n, n_guess):
        emulator = [args.qemu, "-cpu", args.count, "-plugin", f"{library},out={out}"]
        line = emulator + command(args, prompt, temp, n, n_guess) + ["--kernels", arm_cost.SETS[args.count]]
        subprocess.run(line, check=True, capture_output=True)
        return int(out.read_text())

    return [(executed(args.n, guesses) - executed(args.n // 4, guesses)) / (args.n - args.n // 4) / 1e6 for guesses in (0, args.speculate)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lowkey", default="target/release/lowkey")
    parser.add_argument("--model", required=True)
    parser.add_argument("--speculate", type=int, default=8)
    parser.add_argument("--kv-budget", default="16MiB")
    parser.add_argument("--evict", help="a policy (default: lowkey's own)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-n", type=int, default=160)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--texts", default=",".join(TEXTS))
    parser.add_argument("--count", metavar="CPU", choices=arm_cost.SETS, help="count instructions on this processor")
    parser.add_argument("--qemu", default="qemu-aarch64")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        library = arm_cost.plugin(folder) if args.count else None
        for name in args.texts.split(","):
            prompt, temp, repeats = TEXTS[name]
            if args.count:
                plain, guessed = counted(args, prompt, temp, folder, library)
                rows[name] = {"plain_minsn": plain, "guessed_minsn": guessed}
                line = f"{name:<6} {plain:7.1f} million instructions a token, {guessed:7.1f} with guesses: {plain / guessed:.2f} x"
            else:
                row = rows[name] = timed(args, name, prompt, temp)
                wanted = 1.6 if repeats else 0.98
                line = (
                    f"{name:<6} {row['plain_tok_s']:6.1f} tok/s, {row['guessed_tok_s']:6.1f} with guesses: {row['ratio']:.2f} x "
                    f"({row['least']:.2f} to {row['most']:.2f}, wanted {wanted}); {row['draft_n_accepted']} of {row['draft_n']} right, "
                    f"{row['evicted']} evicted"
                )
            if not args.json:
                print(line, flush=True)
    if args.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
