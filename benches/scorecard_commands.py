"""What the scorecard measures: models, texts, sizes and seeds, one command for each answer, and the groups they are run in.

Owns: target/scorecard, where each answer is kept until the binary changes, so that an interrupted run goes on where it was.
Refuses: to choose among results. llama.cpp (`llama-cpp-python`, tests/golden/requirements.txt) is asked only in its environment.
"""

import hashlib
import json
import pathlib
import subprocess
import sys

import texts

ROOT = pathlib.Path(__file__).resolve().parents[1]
KINDS = ("prose", "technical", "dialogue")
KEEP = (50, 25, 10, 5)
WINDOWS_TOKENS = 8192  # of each text, whatever the window
DEFAULT, OTHERS = "l2-attn", ("window", "random", "keydiff")
FEW_BITS, F16 = ("--k-type", "q5_h", "--v-type", "q4_h"), ("--kv-type", "f16")
# What is chosen for a model whose keys have long biases, where some must be evicted.
FOR_BIASES = ("--k-type", "q8_0", "--v-type", "q4_h")
# The models by the names of their rows. Rows of a file that is not there are not measured.
SMOLLM, GEMMA, QWEN = "SmolLM2 135M", "Gemma 3 270M", "Qwen2.5-Coder 0.5B"
FILES = {SMOLLM: "smollm2-135m-instruct-q4_1.gguf", GEMMA: "gemma3-270m-q4_k_m.gguf", QWEN: "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"}

# With the past: the file lies in target/, and holds every token of these prompts and streams.
PAST = ("--past", "target", "--past-space", "512MiB")
PAST_KEEP, PAST_FOUND_KEEP = (10, 5, 2.5), (10, 5)
PAST_TOKENS = {2048: 8192, 4096: 4096}  # window: tokens of each text
PAST_SAMPLES = 2  # prompts at each of ten depths
LONG, LONG_KEEP = 5500, (5,)
# Other models: what `--evict auto` is with them, and the recent tokens that it protects.
MODEL_DEFAULT, MODEL_RECENT = {GEMMA: "attn", QWEN: DEFAULT}, {GEMMA: "60%", QWEN: "30%"}
MODEL_KEEP = {FEW_BITS: (25, 10), FOR_BIASES: (25, 10), F16: (25,)}
MODEL_WINDOWS = {GEMMA: 2, QWEN: 1}  # of 2,048 tokens
# RULER's tasks.
TASKS = ("single", "multi-key", "multi-value", "tracking")
WAYS = ("full", "alone", "past")
RULER_LENGTH, RULER_DEPTHS, RULER_SAMPLES = 4096, 5, 1
# Streams: tokens of a stream, distances, how many streams. Each asks once for each distance: a small model confuses facts of one kind.
STREAMS = {"short": (6600, (500, 1000, 5000), 8), "long": (21_000, (500, 1000, 5000, 20_000), 8), "longest": (61_200, (500, 1000, 20_000, 60_000), 2)}
STREAM_PAST = ("--past", "target", "--past-space", "640MiB")


class Card:
    def __init__(self, args):
        self.args = args
        binary = hashlib.sha256(pathlib.Path(args.lowkey).read_bytes()).hexdigest()[:16]
        self.folder = ROOT / "target" / "scorecard" / binary
        self.folder.mkdir(parents=True, exist_ok=True)
        self.may_run = True
        self.n_there = self.n_absent = 0  # answers that were asked for, of a table

    def kept(self, key, measure):
        """The answer kept under `key`, or measured now; None where it is neither there nor wanted."""
        path = self.folder / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".json")
        if path.is_file():
            self.n_there += 1
            return json.loads(path.read_text())
        if not self.may_run:
            self.n_absent += 1
            return None
        print("scorecard:", key, file=sys.stderr, flush=True)
        answer = measure()
        if answer is None:
            return None
        path.write_text(json.dumps(answer))
        return answer

    def lowkey(self, *command, model=SMOLLM):
        """Rows of `lowkey eval`, with -m, -t and -o json added."""
        words = [str(word) for word in (*command, "-m", f"models/{FILES[model]}")]

        def measure():
            if not (ROOT / "models" / FILES[model]).is_file():
                print(f"scorecard: models/{FILES[model]} is not there, its row stays as it is", file=sys.stderr)
                return None
            full = [self.args.lowkey, *words, "-t", str(self.args.threads), "-o", "json"]
            return json.loads(subprocess.run(full, check=True, capture_output=True, text=True, cwd=ROOT).stdout)

        return self.kept("lowkey " + " ".join(words), measure)


def percents(keep):
    return ",".join(f"{k}%" for k in keep)


def perplexity_command(kind, ctx, n_windows, *more):
    return "eval", "ppl", "-f", text_of(kind), "--ctx", ctx, "--windows", n_windows, *more


def text_of(kind):
    return texts.path(kind).relative_to(ROOT)


def default_rows(card, kind, ctx):
    return card.lowkey(*perplexity_command(kind, ctx, WINDOWS_TOKENS // ctx, "--keep", percents((100, *KEEP))))


def other_rows(card, kind, ctx):
    more = ("--keep", percents(KEEP[1:]), "--policies", ",".join(OTHERS), "--recent", "30%", *FEW_BITS)
    return card.lowkey(*perplexity_command(kind, ctx, WINDOWS_TOKENS // ctx, *more))


def f16_window_rows(card, kind, ctx):
    more = ("--keep", percents(KEEP), "--policies", "window", *F16)
    return card.lowkey(*perplexity_command(kind, ctx, WINDOWS_TOKENS // ctx, *more))


def past_rows(card, kind, ctx):
    return card.lowkey(*perplexity_command(kind, ctx, PAST_TOKENS[ctx] // ctx, "--keep", percents(PAST_KEEP), *PAST))


def model_rows(card, model, types, kind):
    """Another model's default rule beside the others; all protect as many recent tokens as the default does by itself."""
    more = ("--policies", ",".join((MODEL_DEFAULT[model], *OTHERS)), "--recent", MODEL_RECENT[model], *types)
    keep = percents(MODEL_KEEP[types])
    return card.lowkey(*perplexity_command(kind, 2048, MODEL_WINDOWS[model], "--keep", keep, *more), model=model)


def hidden(test, length, n_samples):
    """The beginning of a command that hides things at ten depths."""
    text = ("-f", text_of("prose")) if test == "needle" else ()
    return "eval", test, *text, "--lengths", length, "--depths", 10, "--samples", n_samples


def retrieval_rows(card, test, length, policy, keep):
    more = FEW_BITS if policy != DEFAULT else ()
    more = (*more, "--recent", "30%") if policy in ("random", "keydiff") else more
    return card.lowkey(*hidden(test, length, 5), "--keep", percents(keep), "--policies", policy, *more)


def full_rows(card, test, length, n_samples=5):
    """The same prompts with nothing evicted and nothing rounded: what the model finds at all."""
    return card.lowkey(*hidden(test, length, n_samples), "--keep", "100%")


def past_found_rows(card, test, length, keep):
    return card.lowkey(*hidden(test, length, PAST_SAMPLES), "--keep", f"{keep}%", *PAST)


def past_full_rows(card, test, length):
    return full_rows(card, test, length, PAST_SAMPLES)


def ruler_rows(card, task, way):
    """`way`: full, alone or past."""
    more = {"full": ("--keep", "100%"), "alone": ("--keep", "10%"), "past": ("--keep", "10%", *PAST)}[way]
    size = ("--lengths", RULER_LENGTH, "--depths", RULER_DEPTHS, "--samples", RULER_SAMPLES)
    return card.lowkey("eval", "ruler", "--tasks", task, *size, *more)


def stream_rows(card, ctx, policy):
    command = perplexity_command("verse", ctx, 1, "--parts", 10, "--kv-budget", "1MiB", "--policies", policy)
    return card.lowkey(*command)


def asked_rows(card, stream, way):
    """Facts said in streams of prose; `way`: past, or full where a stream stays within the trained context."""
    tokens, backs, n_streams = STREAMS[stream]
    more = ("--kv-budget", "1MiB", *STREAM_PAST) if way == "past" else ("--kv-budget", "160MiB", *F16)
    size = ("--tokens", tokens, "--back", ",".join(map(str, backs)), "--samples", 1, "--streams", n_streams)
    return card.lowkey("eval", "stream", "-f", text_of("prose"), *size, *more)


def llama_rows(card, kind, ctx):
    """llama.cpp with the same bytes: cells of f16 or q8_0, and when they are full its context shift, which keeps four tokens and
    drops half of the rest. The ratio is to its own full f16 cache, over the tokens after its cells were full."""

    def measure():
        import llama_shift

        model = str(ROOT / "models" / FILES[SMOLLM])
        return llama_shift.rows(model, texts.path(kind), ctx, WINDOWS_TOKENS // ctx, KEEP, card.args.threads)

    return card.kept(f"llama.cpp {kind} {ctx} {WINDOWS_TOKENS} {KEEP}", measure)


def each(function, *ranges):
    """A group: the function for every combination."""

    def run(card):
        combinations = [()]
        for values in ranges:
            combinations = [(*before, value) for before in combinations for value in values]
        return [function(card, *combination) for combination in combinations]

    return run


TESTS = ("passkey", "needle")
GROUPS = {
    "default": each(default_rows, KINDS, (2048,)),
    "default-4096": each(default_rows, KINDS, (4096,)),
    "past": each(past_rows, KINDS, (2048,)),
    "past-found": each(past_found_rows, TESTS, (2048,), PAST_FOUND_KEEP),
    "past-full": each(past_full_rows, TESTS, (2048,)),
    "past-4096": each(past_rows, KINDS, (4096,)),
    "gemma": each(model_rows, (GEMMA,), (FEW_BITS,), KINDS),
    "qwen": each(model_rows, (QWEN,), (FEW_BITS,), KINDS),
    "qwen-chosen": each(model_rows, (QWEN,), (FOR_BIASES,), KINDS),
    "qwen-f16": each(model_rows, (QWEN,), (F16,), KINDS),
    "ruler": each(ruler_rows, TASKS, WAYS),
    "asked-long": each(asked_rows, ("long",), ("past",)),
    "asked": each(asked_rows, ("short",), ("full", "past")),
    "asked-longest": each(asked_rows, ("longest",), ("past",)),
    "past-found-long": each(past_found_rows, TESTS[::-1], (LONG,), LONG_KEEP),
    "past-full-long": each(past_full_rows, TESTS[::-1], (LONG,)),
    "found-full": each(full_rows, TESTS, (2048,)),
    "found": each(retrieval_rows, TESTS, (2048,), (DEFAULT,), (KEEP[:3],)),
    "stream": each(stream_rows, (100_000, 32_768), (DEFAULT, "window")),
    "window": each(retrieval_rows, TESTS, (2048,), ("window",), (KEEP[1:3],)),
    "others": each(other_rows, KINDS, (2048,)),
    "others-4096": each(other_rows, KINDS, (4096,)),
    "f16": each(f16_window_rows, KINDS, (2048, 4096)),
    "llama": each(llama_rows, KINDS, (2048,)),
    "found-others": each(retrieval_rows, TESTS, (2048,), OTHERS[1:], (KEEP[1:3],)),
    "found-4096": each(retrieval_rows, TESTS, (4096,), (DEFAULT,), (KEEP[:3],)),
}
