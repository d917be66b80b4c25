"""The plain f32 engine that lowkey is measured against: GGUF's `llama` architecture in numpy.

Owns: reading a GGUF, dequantising its weights to f32, the forward pass over a full cache (`logits`), and the
naive model of streaming eviction (`stream`): one list of live entries per layer and KV head, victims found by sorting.
Refuses: other architectures, mixtures of experts, speed. Nothing here is shared with the Rust code, on purpose.
The forward pass goes layer by layer over all tokens, since a layer needs only the layer below: that holds for
eviction too, as each head chooses its victims from its own keys. Only the slots of a head change token by token.
"""

import sys

try:
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

import few

few.know()
F16_MAX = np.float32(65504.0)
POLICIES = ("off", "l2", "l2-paper", "window")


def rms_norm(x, weight, eps):
    """Root mean square norm over the last axis (Zhang & Sennrich 2019), weight [n_embd]."""
    mean_sq = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return x * (1.0 / np.sqrt(mean_sq + eps)).astype(np.float32) * weight


def softmax(scores):
    """Softmax over the last axis; -inf entries get weight zero."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def log_softmax(logits):
    """Log-probabilities over the last axis, in f64, for arrays small enough to hold twice."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def nll_of_next(logits, ids):
    """nll[i] = -log p(ids[i+1] | ids[..=i]) for logits [n, n_vocab], ids [n]: n-1 values in f64."""
    out = np.empty(len(ids) - 1)
    for i in range(len(ids) - 1):
        row = logits[i].astype(np.float64)
        top = row.max()
        out[i] = np.log(np.exp(row - top).sum()) + top - row[ids[i + 1]]
    return out


def round_f16(x):
    return np.clip(x, -F16_MAX, F16_MAX).astype(np.float16).astype(np.float32)


class Reference:
    """One GGUF model. `rope` is "norm" (pairs 2i, 2i+1; what arch llama stores) or "neox" (pairs i, i + d/2)."""

    def __init__(self, path, rope="norm"):
        self.path = str(path)
        self.reader = GGUFReader(self.path)
        self.tensors = {t.name: t for t in self.reader.tensors}
        arch = self.meta("general.architecture")
        if arch != "llama":
            raise ValueError(f"{path}: architecture {arch}: only llama is modelled here")
        if rope not in ("norm", "neox"):
            raise ValueError(f"rope {rope}: norm or neox")
        self.rope_order = rope
        self.n_layer = self.meta("llama.block_count")
        self.n_embd = self.meta("llama.embedding_length")
        self.n_head = self.meta("llama.attention.head_count")
        self.n_head_kv = self.meta("llama.attention.head_count_kv", self.n_head)
        self.head_dim = self.meta("llama.attention.key_length", self.n_embd // self.n_head)
        self.n_rot = self.meta("llama.rope.dimension_count", self.head_dim)
        self.rope_base = self.meta("llama.rope.freq_base", 10000.0)
        self.eps = np.float32(self.meta("llama.attention.layer_norm_rms_epsilon"))
        self.rope_scale = self._linear_rope_scale()
        self._weights = {}
        self.n_vocab = int(self.tensors["token_embd.weight"].shape[1])

    def meta(self, key, default=None):
        field = self.reader.fields.get(key)
        if field is None:
            if default is None:
                raise ValueError(f"{self.path}: metadata {key} is missing")
            return default
        return field.contents()

    def _linear_rope_scale(self):
        kind = self.meta("llama.rope.scaling.type", "none")
        if kind not in ("none", "linear"):
            raise ValueError(f"{self.path}: rope scaling {kind}: only none and linear are modelled here")
        return 1.0 / self.meta("llama.rope.scaling.factor", 1.0) if kind == "linear" else 1.0

    def weight(self, name):
        """Dequantised f32 tensor, numpy order: [n_out, n_in] for matrices."""
        if name not in self._weights:
            t = self.tensors[name]
            shape = [int(d) for d in reversed(t.shape)]
            is_few = t.tensor_type.name in few.SIZES
            values = few.expand(t.data, t.tensor_type.name) if is_few else dequantize(t.data, t.tensor_type)
            self._weights[name] = np.ascontiguousarray(values.reshape(shape), np.float32)
        return self._weights[name]

    def rope_table(self, positions):
        """cos and sin [n, n_rot/2] in f32, angles computed in f64."""
        j = np.arange(self.n_rot // 2, dtype=np.float64)
        freq = self.rope_base ** (-2.0 * j / self.n_rot) * self.rope_scale
        if "rope_freqs.weight" in self.tensors:
            freq = freq / self.weight("rope_freqs.weight").astype(np.float64)
        angle = np.asarray(positions, np.float64)[:, None] * freq[None, :]
        return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)

    def rotate(self, x, table):
        """RoPE (Su et al. 2021) on x [n, heads, head_dim]; dimensions from n_rot on pass through."""
        cos, sin = table[0][:, None, :], table[1][:, None, :]
        half = self.n_rot // 2
        if self.rope_order == "norm":
            a, b = slice(0, self.n_rot, 2), slice(1, self.n_rot, 2)
        else:
            a, b = slice(0, half), slice(half, self.n_rot)
        out = x.copy()
        out[..., a] = x[..., a] * cos - x[..., b] * sin
        out[..., b] = x[..., a] * sin + x[..., b] * cos
        return out

    # ---- the forward pass, layer by layer over all tokens --------------------------------------------------------

    def forward(self, ids, attend):
        """Final hidden states [n, n_embd], normed. attend(layer, q, k, v) -> [n, n_head, head_dim]."""
        ids = np.asarray(ids, np.int64)
        table = self.rope_table(np.arange(len(ids)))
        x = self.weight("token_embd.weight")[ids].copy()
        for layer in range(self.n_layer):
            x = x + self.attention(layer, x, table, attend)
            x = x + self.feed_forward(layer, x)
        return rms_norm(x, self.weight("output_norm.weight"), self.eps)

    def attention(self, layer, x, table, attend):
        blk = f"blk.{layer}."
        n = len(x)
        x_norm = rms_norm(x, self.weight(blk + "attn_norm.weight"), self.eps)
        q = (x_norm @ self.weight(blk + "attn_q.weight").T).reshape(n, self.n_head, self.head_dim)
        k = (x_norm @ self.weight(blk + "attn_k.weight").T).reshape(n, self.n_head_kv, self.head_dim)
        v = (x_norm @ self.weight(blk + "attn_v.weight").T).reshape(n, self.n_head_kv, self.head_dim)
        out = attend(layer, self.rotate(q, table), self.rotate(k, table), v)
        return out.reshape(n, -1) @ self.weight(blk + "attn_output.weight").T

    def feed_forward(self, layer, x):
        """SwiGLU (Shazeer 2020): down(silu(gate x) * up x)."""
        blk = f"blk.{layer}."
        x_norm = rms_norm(x, self.weight(blk + "ffn_norm.weight"), self.eps)
        gate = x_norm @ self.weight(blk + "ffn_gate.weight").T
        up = x_norm @ self.weight(blk + "ffn_up.weight").T
        with np.errstate(over="ignore"):
            silu = gate / (1.0 + np.exp(-gate))
        return (silu * up) @ self.weight(blk + "ffn_down.weight").T

    def output(self, hidden):
        name = "output.weight" if "output.weight" in self.tensors else "token_embd.weight"
        return hidden @ self.weight(name).T

    def logits(self, ids, kv_f16=False, last_only=False):
        """Logits [n, n_vocab] with a full cache ([1, n_vocab] with last_only), positions 0..n."""

        def attend(_layer, q, k, v):
            if kv_f16:
                k, v = round_f16(k), round_f16(v)
            return self._full_attention(q, k, v)

        hidden = self.forward(ids, attend)
        return self.output(hidden[-1:] if last_only else hidden)

    def _full_attention(self, q, k, v):
        n = len(q)
        group = self.n_head // self.n_head_kv
        future = np.triu(np.ones((n, n), bool), 1)
        scale = np.float32(1.0 / np.sqrt(self.head_dim))
        out = np.empty_like(q)
        for head in range(self.n_head):
            scores = (q[:, head] @ k[:, head // group].T) * scale
            scores[future] = -np.inf
            out[:, head] = softmax(scores) @ v[:, head // group]
        return out

    def greedy(self, ids, n):
        """n greedy tokens and the margin (top-1 minus top-2 logit) of each; ties to the lower id."""
        ids, tokens, margins = list(ids), [], []
        caches = [([], []) for _ in range(self.n_layer)]
        for step in range(n):
            fresh = ids if step == 0 else ids[-1:]
            row = self.output(self._extend(fresh, len(ids) - len(fresh), caches)[-1:])[0]
            best = int(np.argmax(row))
            second = np.partition(row, -2)[-2]
            tokens.append(best)
            margins.append(float(row[best] - second))
            ids.append(best)
        return tokens, margins

    def _extend(self, fresh, start, caches):
        """Hidden states of `fresh` tokens at positions start.., with and into growing full caches."""
        table = self.rope_table(np.arange(start, start + len(fresh)))
        group = self.n_head // self.n_head_kv
        scale = np.float32(1.0 / np.sqrt(self.head_dim))

        def attend(layer, q, k, v):
            keys, values = caches[layer]
            keys.extend(k)
            values.extend(v)
            all_k, all_v = np.stack(keys), np.stack(values)
            future = np.arange(len(keys))[None, :] > np.arange(start, len(keys))[:, None]
            out = np.empty_like(q)
            for head in range(self.n_head):
                scores = (q[:, head] @ all_k[:, head // group].T) * scale
                scores[future] = -np.inf
                out[:, head] = softmax(scores) @ all_v[:, head // group]
            return out

        x = self.weight("token_embd.weight")[np.asarray(fresh)].copy()
        for layer in range(self.n_layer):
            x = x + self.attention(layer, x, table, attend)
            x = x + self.feed_forward(layer, x)
        return rms_norm(x, self.weight("output_norm.weight"), self.eps)

    # ---- streaming eviction --------------------------------------------------------------------------------------

    def stream(self, ids, n_slot, policy, sinks=4, recent=32, kv_f16=True):
        """Logits [n, n_vocab] with at most n_slot live entries per head at every step, and the kept positions
        kept[layer][kv_head] (ascending) after the last token. At step t a full head first drops its victim, then takes
        the entry of t, and the query of t sees what is there."""
        if policy not in POLICIES:
            raise ValueError(f"policy {policy}: one of {', '.join(POLICIES)}")
        kept = []

        def attend(_layer, q, k, v):
            norms = np.sqrt(np.sum(np.square(k), axis=-1, dtype=np.float32))
            if kv_f16:
                k, v = round_f16(k), round_f16(v)
            out = np.empty_like(q)
            group = self.n_head // self.n_head_kv
            kept_here = []
            for head in range(self.n_head_kv):
                queries = q[:, head * group : (head + 1) * group]
                rule = (policy, sinks, recent)
                out[:, head * group : (head + 1) * group], live = self._stream_head(
                    queries, k[:, head], v[:, head], norms[:, head], n_slot, rule
                )
                kept_here.append(sorted(live))
            kept.append(kept_here)
            return out

        hidden = self.forward(ids, attend)
        return self.output(hidden), kept

    def _stream_head(self, q, k, v, norms, n_slot, rule):
        """One KV head over all tokens: q [n, group, d], k and v [n, d], norms [n]."""
        scale = np.float32(1.0 / np.sqrt(self.head_dim))
        live = []  # positions, oldest first; an entry's data is found by its position
        out = np.empty_like(q)
        for t in range(len(q)):
            if n_slot is not None and len(live) == n_slot:
                live.remove(victim(live, norms, t, *rule))
            live.append(t)
            weights = softmax((q[t] @ k[live].T) * scale)
            out[t] = weights @ v[live]
        return out, live


def victim(live, norms, t, policy, sinks, recent):
    """The position to drop at step t from the full list of old positions `live`."""
    if policy == "l2":
        candidates = [p for p in live if p >= sinks and p <= t - recent]
    elif policy == "l2-paper":
        candidates = list(live)
    elif policy == "window":
        candidates = [p for p in live if p >= sinks]
    else:
        candidates = []
    if not candidates:
        raise ValueError(f"step {t}: {len(live)} entries, none may go (policy {policy}, sinks {sinks}, recent {recent})")
    if policy == "window":
        return min(candidates)
    return sorted(candidates, key=lambda p: (-norms[p], p))[0]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: reference.py MODEL ID... (top ten after the ids)")
    last = Reference(sys.argv[1]).logits([int(a) for a in sys.argv[2:]], last_only=True)[0]
    for i in np.argsort(-last)[:10]:
        print(int(i), float(last[i]))
