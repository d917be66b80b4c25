"""Perplexity in llama.cpp with a bounded number of cells and its context shift: what it can do with a given number of bytes.

Owns: the shift as llama.cpp's own programs do it: when cells are full, the first N_KEEP tokens stay, half of the others go, and
positions of the rest move down. Refuses: to be quick.
"""

import ctypes
import math

try:
    import llama_cpp
    import numpy as np
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__file__}: the package {missing.name} is missing: run `make .venv/peer`, and this by .venv/bin/python") from None

N_KEEP, N_BATCH = 4, 16


@llama_cpp.llama_log_callback
def _quiet(_level, _text, _user_data):
    pass


class Shifting:
    def __init__(self, path, n_ctx, kv_type, threads):
        llama_cpp.llama_log_set(_quiet, None)
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx, settings.n_batch = n_ctx, N_BATCH
        settings.n_threads = settings.n_threads_batch = threads
        if kv_type == "q8_0":
            settings.type_k = settings.type_v = llama_cpp.GGML_TYPE_Q8_0
            settings.flash_attn_type = 1  # a quantised V needs it
        self.context = llama_cpp.llama_init_from_model(self.model, settings)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp makes no context of {n_ctx} cells of {kv_type}")
        self.vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.n_vocab = llama_cpp.llama_vocab_n_tokens(self.vocab)
        self.batch = llama_cpp.llama_batch_init(N_BATCH, 0, 1)

    def close(self):
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)

    def tokens(self, text):
        data = text.encode()
        ids = (llama_cpp.llama_token * len(data))()
        return list(ids[: llama_cpp.llama_tokenize(self.vocab, data, len(data), ids, len(data), False, False)])

    def nll(self, window, n_cells):
        """Of tokens 1… of a window, with n_cells cells at most."""
        memory = llama_cpp.llama_get_memory(self.context)
        llama_cpp.llama_memory_clear(memory, True)
        scores, n_past = [], 0
        for start in range(0, len(window), N_BATCH):
            part = window[start : start + N_BATCH]
            if n_past + len(part) > n_cells:
                drop = (n_past - N_KEEP) // 2
                llama_cpp.llama_memory_seq_rm(memory, 0, N_KEEP, N_KEEP + drop)
                llama_cpp.llama_memory_seq_add(memory, 0, N_KEEP + drop, n_past, -drop)
                n_past -= drop
            self.batch.n_tokens = len(part)
            for i, token in enumerate(part):
                self.batch.token[i], self.batch.pos[i] = token, n_past + i
                self.batch.n_seq_id[i], self.batch.seq_id[i][0], self.batch.logits[i] = 1, 0, True
            if llama_cpp.llama_decode(self.context, self.batch) != 0:
                raise SystemExit("llama_decode failed")
            n_past += len(part)
            rows = ctypes.cast(llama_cpp.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
            logits = np.ctypeslib.as_array(rows, (len(part), self.n_vocab)).astype(np.float64)
            for row, following in zip(logits, window[start + 1 : start + 1 + len(part)]):
                top = row.max()
                scores.append(top + math.log(np.exp(row - top).sum()) - row[following])
        return scores


def rows(path, text_path, ctx, n_windows, keeps, threads):
    """A row for each type and share of a full f16 cache of ctx tokens."""
    out, text = [], text_path.read_text(encoding="utf-8")
    full = Shifting(path, ctx, "f16", threads)
    tokens = full.tokens(text)
    windows = [tokens[i * ctx : (i + 1) * ctx] for i in range(n_windows)]
    exact = [full.nll(window, ctx) for window in windows]
    full.close()
    for kv_type, bits in (("f16", 16.0), ("q8_0", 8.5)):
        engine = Shifting(path, ctx, kv_type, threads)
        for keep in keeps:
            n_cells = int(ctx * keep / 100 * 16.0 / bits)
            # Entry i scores token i + 1 from i + 1 tokens.
            late = slice(n_cells - 1 if n_cells < ctx else 0, None)
            ours = [score for window in windows for score in engine.nll(window, n_cells)[late]]
            theirs = [score for scores in exact for score in scores[late]]
            ratio = math.exp(sum(ours) / len(ours) - sum(theirs) / len(theirs))
            out.append({"type": kv_type, "keep": keep / 100, "n_cells": n_cells, "ppl_ratio_to_full": ratio})
        engine.close()
    return out
