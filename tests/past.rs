//! The past as a file, against a naive model that keeps everything: what is fetched is what was
//! lost, whatever the sizes, the ring and the batches; a disk that is full or fails costs just what
//! was on it; and on the real model threads and kernel sets change no bit, and a number that the
//! arena has lost is found.

#[path = "past/chosen.rs"]
mod chosen;

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use lowkey::kernels::{Asked, Kernels, SCAN_CHUNK, SCAN_CHUNKS, SCAN_TILE, scan_tile_bytes};
use lowkey::kv::past::disk::{Disk, PastFile};
use lowkey::kv::past::shape::{MAX_TILES, TILE};
use lowkey::kv::past::{PastShape, index};
use lowkey::kv::{AttnLayer, Head, KvCache, KvShape, KvType, Past, PastParams, Policy, Recent, Rotary};
use lowkey::session::{Session, SessionParams};
use lowkey_test_kit::tiny::{Tiny, Unturned};

/// A disk in memory; writes that begin from `full_from` on and reads that `is_broken` fail.
#[derive(Default)]
struct Memory {
    bytes: Mutex<Vec<u8>>,
    full_from: AtomicU64,
    is_broken: Mutex<Option<fn(u64) -> bool>>,
}

struct Played(Arc<Memory>);

impl Disk for Played {
    fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        if at >= self.0.full_from.load(Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let (mut all, at) = (self.0.bytes.lock().expect("one at a time"), at as usize);
        let len = all.len().max(at + bytes.len());
        all.resize(len, 0);
        all[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, into: &mut [u8], at: u64) -> io::Result<()> {
        if self.0.is_broken.lock().expect("one at a time").is_some_and(|is_broken| is_broken(at)) {
            return Err(io::Error::other("the card is gone"));
        }
        let all = self.0.bytes.lock().expect("one at a time");
        let from = all.get(at as usize..at as usize + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(from);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A tiny cache with a past on such a disk.
fn with_past(
    n_slot: usize,
    n_tile: usize,
    n_recall: usize,
    n_q: usize,
    change: impl FnOnce(&mut KvShape),
) -> (Tiny, Arc<Memory>) {
    let memory = Arc::new(Memory { full_from: u64::MAX.into(), ..Memory::default() });
    (with_past_on(Box::new(Played(memory.clone())), &Unturned, (n_slot, n_tile, n_recall, n_q), change), memory)
}

fn with_past_on(
    disk: Box<dyn Disk>,
    rotary: &impl Rotary,
    (n_slot, n_tile, n_recall, n_q): (usize, usize, usize, usize),
    change: impl FnOnce(&mut KvShape),
) -> Tiny {
    let mut tiny = Tiny::with_queries(n_slot, n_q, |shape, params| {
        (shape.keeps.token, shape.n_ctx) = (true, 4096);
        change(shape);
        (params.policy, params.recent) = (Policy::L2, Some(Recent::Tokens(shape.n_batch as u32)));
    });
    let shape = PastShape { kv: *tiny.cache.shape(), n_q, soft_cap: 0.0, n_threads: 1, n_recall, n_tile };
    tiny.cache.attach(Past::on(shape, disk, rotary).expect("memory"));
    tiny
}

/// Everything that went through, by layer: queries, keys and values, `[n_tok][...]`.
struct Naive {
    rows: Vec<[Vec<f32>; 3]>,
    n_tok: usize,
}

impl Naive {
    /// What a query of token `t` makes of the tokens that it may see, in f64, beside a logit without a value if its head has one.
    fn attend(
        &self,
        shape: &KvShape,
        (layer, head): (usize, usize),
        q: &[f32],
        sink: Option<f32>,
        sees: impl Fn(usize) -> bool,
    ) -> Vec<f64> {
        let (dim, row) = (shape.each.head_dim, shape.each.n_head_kv * shape.each.head_dim);
        let [_, k, v] = &self.rows[layer];
        let of = |x: &[f32], t: usize| x[t * row + head * dim..][..dim].to_vec();
        let score = |t: usize| of(k, t).iter().zip(q).map(|(k, q)| f64::from(k * q)).sum::<f64>();
        let seen: Vec<usize> = (0..self.n_tok).filter(|&t| sees(t)).collect();
        let highest = seen.iter().map(|&t| score(t)).fold(f64::MIN, f64::max);
        let (mut out, mut sum) = (vec![0.0; dim], sink.map_or(0.0, |sink| (f64::from(sink) - highest).exp()));
        for t in seen {
            let weight = (score(t) - highest).exp();
            sum += weight;
            out.iter_mut().zip(of(v, t)).for_each(|(out, v)| *out += weight * f64::from(v));
        }
        out.iter().map(|x| x / sum).collect()
    }
}

/// Feeds random tokens in random batches and compares what attention gives with the naive model,
/// which sees what the arena holds and, of the tokens before the batch, those `is_past` says the
/// file has.
fn compare(tiny: &mut Tiny, n_q: usize, n_total: usize, rng: &mut Rng, is_past: impl Fn(&Naive, usize, usize) -> bool) -> f64 {
    let shape = *tiny.cache.shape();
    let (dim, row) = (shape.each.head_dim, shape.each.n_head_kv * shape.each.head_dim);
    let mut naive = Naive { rows: vec![[vec![], vec![], vec![]]; shape.n_layer], n_tok: 0 };
    let mut worst: f64 = 0.0;
    while naive.n_tok < n_total {
        let (n_past, n_tok) = (naive.n_tok, tiny.cache.together(rng.usize(1..=shape.n_batch)));
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.f32() * 2.0 - 1.0).collect() };
        let mut new: Vec<[Vec<f32>; 3]> =
            (0..shape.n_layer).map(|_| [random(n_tok * row * n_q), random(n_tok * row), random(n_tok * row)]).collect();
        // Keys have much in common, as real ones do.
        let keys = new.iter_mut().flat_map(|[_, k, _]| k.iter_mut().enumerate());
        keys.for_each(|(i, k)| *k += (i % dim * 7 % 5) as f32 / 2.0 - 1.0);
        for (all, new) in naive.rows.iter_mut().zip(&new) {
            all.iter_mut().zip(new).for_each(|(all, new)| all.extend(new));
        }
        naive.n_tok += n_tok;
        // What the arena shows each token, by the number in the stream: positions are that here.
        let before: Vec<Vec<Vec<u32>>> =
            shape.layers().map(|l| shape.each.heads().map(|h| tiny.cache.kept(l, h).to_vec()).collect()).collect();
        let mut seen: Vec<Vec<Vec<Vec<usize>>>> = vec![Vec::new(); shape.n_layer];
        let see = |layer: AttnLayer, cache: &KvCache| {
            seen[layer.0] = shape
                .each
                .heads()
                .map(|head| (0..n_tok).map(|t| shown(cache, layer, head, t, &before, n_past)).collect())
                .collect();
        };
        let mut given = vec![Vec::new(); shape.n_layer];
        assert!(tiny.attend(n_tok, |layer| new[layer.0].clone(), see, |layer, out| given[layer.0] = out.to_vec()));
        for (layer, head, t) in
            (0..shape.n_layer).flat_map(|l| (0..shape.each.n_head_kv).flat_map(move |h| (0..n_tok).map(move |t| (l, h, t))))
        {
            let arena = &seen[layer][head][t];
            let held: Vec<usize> = before[layer][head].iter().map(|&pos| pos as usize).collect();
            let sees = |token: usize| {
                arena.contains(&token) || token < n_past && !held.contains(&token) && is_past(&naive, n_past, token)
            };
            for n in 0..n_q {
                let at = t * row * n_q + (head * n_q + n) * dim;
                let sink = tiny.head_sinks.get(head * n_q + n).copied();
                let want = naive.attend(&shape, (layer, head), &new[layer][0][at..at + dim], sink, sees);
                let got = &given[layer][at..at + dim];
                worst = got.iter().zip(&want).map(|(got, want)| (f64::from(*got) - want).abs()).fold(worst, f64::max);
            }
        }
    }
    worst
}

/// The tokens that token `t` of a batch sees in the arena: those before the batch, less those whose
/// slot a token up to `t` took.
fn shown(cache: &KvCache, layer: AttnLayer, head: Head, t: usize, before: &[Vec<Vec<u32>>], n_past: usize) -> Vec<usize> {
    let mut table = vec![u32::MAX; cache.n_slot()];
    let n = cache.rows_at(layer, head, t, &mut table);
    let first = cache.first_row(layer, head);
    let slots = &before[layer.0][head.0];
    // Rows of the batch wait behind all slots.
    let shape = cache.shape();
    let waiting = shape.n_layer * shape.each.n_head_kv * cache.n_slot() + head.0 * shape.n_batch;
    let token = |(slot, &row): (usize, &u32)| match row as usize == first + slot {
        true => slots[slot] as usize,
        false => n_past + row as usize - waiting,
    };
    table[..n].iter().enumerate().map(token).collect()
}

#[test]
fn with_room_for_all_pieces_attention_sees_everything_that_the_ring_holds() {
    let mut rng = Rng::with_seed(7);
    for case in 0..if lowkey_test_kit::emulated().is_some() { 3 } else { 12 } {
        let (n_tile, n_q, n_slot) = (rng.usize(3..9), rng.usize(1..4), rng.usize(24..60));
        let (mut tiny, _) = with_past(n_slot, n_tile, 64, n_q, |shape| {
            (shape.n_layer, shape.each.n_head_kv, shape.each.head_dim) = (rng.usize(1..3), rng.usize(1..4), [8, 32][case % 2]);
            shape.n_batch = [1, 8, 20][case % 3];
        });
        // What a batch overwrites is gone for it too, and what it brings is not there yet.
        let n_batch = tiny.cache.shape().n_batch;
        let n_head = tiny.cache.shape().each.n_head_kv * n_q;
        tiny.head_sinks = (0..if case % 4 < 2 { n_head } else { 0 }).map(|n| 4.0 + n as f32).collect();
        let worst = compare(&mut tiny, n_q, 400, &mut rng, |naive, n_past, token| {
            let last = naive.n_tok / TILE;
            token / TILE < n_past / TILE && token / TILE + n_tile >= last
        });
        assert!(worst < 3e-3, "case {case}: off by {worst}, {n_tile} tiles, batches of {n_batch}");
        let counts = tiny.cache.past().expect("a past").counts();
        assert!(counts.n_pieces > 100 && counts.written_bytes > 0 && (counts.n_lost, counts.n_unread) == (0, 0), "{counts:?}");
    }
}

#[test]
fn keys_of_few_bits_come_back_with_the_bits_of_their_first_rounding() {
    let run = |n_total: usize| {
        let (mut tiny, memory) = with_past(40, 16, 64, 2, |shape| {
            (shape.each.head_dim, shape.n_batch) = (32, 8);
            (shape.k_type, shape.v_type) = (KvType::Q6H, KvType::Q6H);
        });
        tiny.head_sinks = vec![7.0, 9.0];
        let is_past = |_: &Naive, n_past, token| token / TILE < n_past / TILE;
        let worst = compare(&mut tiny, 2, n_total, &mut Rng::with_seed(8), is_past);
        let bytes = memory.bytes.lock().expect("one at a time").clone();
        (worst, bytes)
    };
    let ((_, early), (worst, late)) = (run(TILE + 8), run(300));
    assert!(worst < 0.15, "off by {worst}");
    // What was written of the first tile is what is there, however often it was read.
    let written: Vec<usize> = (0..early.len()).filter(|&i| early[i] != 0).collect();
    assert!(written.len() > 1000 && written.iter().all(|&i| early[i] == late[i]));
}

/// What cannot be written or read is missing, and nothing else is.
#[test]
fn a_disk_that_is_full_or_fails_costs_what_would_have_been_on_it() {
    let mut rng = Rng::with_seed(10);
    let change = |shape: &mut KvShape| (shape.n_layer, shape.n_batch) = (2, 8);
    // Rows of the fourth tile on have no room.
    let (mut tiny, disk) = with_past(30, 16, 64, 1, change);
    let shape = *tiny.cache.past().expect("a past").shape();
    disk.full_from.store(shape.rows_at(0, 3), Relaxed);
    let worst = compare(&mut tiny, 1, 300, &mut rng, |_, n_past, token| token / TILE < (n_past / TILE).min(3));
    let counts = tiny.cache.past().expect("a past").counts();
    assert!(worst < 3e-3 && counts.n_lost == (300 / TILE - 3) as u64, "off by {worst}, {counts:?}");

    // Then nothing can be read any more, and the stream is as one without a past.
    *disk.is_broken.lock().expect("mine") = Some(|_| true);
    tiny.cache.clear();
    let worst = compare(&mut tiny, 1, 200, &mut rng, |_, _, _| false);
    let failed = tiny.cache.past().expect("a past").counts();
    assert!(worst < 3e-3 && failed.n_unread > 20, "off by {worst}, {failed:?}");

    // And one that comes back is read again.
    *disk.is_broken.lock().expect("mine") = None;
    disk.full_from.store(u64::MAX, Relaxed);
    tiny.cache.clear();
    let worst = compare(&mut tiny, 1, 200, &mut rng, |_, n_past, token| token / TILE < n_past / TILE);
    assert!(worst < 3e-3, "off by {worst}");
    assert_eq!(tiny.cache.past().expect("a past").counts().n_unread, failed.n_unread);
}

#[test]
fn sets_scan_an_index_alike_and_nearly_as_the_keys_themselves() {
    let mut rng = Rng::with_seed(11);
    for head_dim in [8, 32, 64, 80, 128, 256] {
        let mut random = |n: usize| -> Vec<f32> { (0..n).map(|_| rng.f32() + rng.f32() + rng.f32() - 1.5).collect() };
        let keys: Vec<Vec<f32>> = (0..SCAN_TILE).map(|_| random(head_dim)).collect();
        let mut tile = vec![0; scan_tile_bytes(head_dim)];
        keys.iter().enumerate().for_each(|(j, key)| index::put(&mut tile, j, key));
        // The same with scales that make zeros of either sign.
        let mut zeros = tile.clone();
        for (j, scale) in zeros[head_dim / 4 * SCAN_TILE..].as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *scale = [0, if j % 3 == 0 { 0x80 } else { 0 }];
        }
        for n_query in [1, 2, 3, 4, 5, 9] {
            let queries: Vec<Vec<f32>> = (0..n_query).map(|_| random(head_dim)).collect();
            let mut q = vec![0; n_query * head_dim];
            let asked = queries.iter().zip(q.chunks_exact_mut(head_dim)).map(|(x, q)| index::ask(x, q));
            let (scale, sum): (Vec<f32>, Vec<i32>) = asked.unzip();
            let asked = Asked { q: &q, scale: &scale, sum: &sum, head_dim };
            let wanted = !0x0f00_0201u32;
            let run = |kernels: Kernels, tile: &[u8]| {
                let mut out = vec![f32::NAN; n_query * 16];
                kernels.scan(tile, wanted, &asked, 16, &mut out);
                let shares = |n: usize| {
                    let mut total = vec![0.5; SCAN_CHUNKS];
                    kernels.add_shares(&mut out[n * 16..][..SCAN_CHUNKS].to_vec(), &mut total);
                    total
                };
                let shares: Vec<f32> = (0..n_query).flat_map(shares).collect();
                (out.iter().chain(&shares).map(|x| x.to_bits()).collect::<Vec<u32>>(), out, shares)
            };
            let scalar = Kernels::choose("scalar").expect("it always runs");
            let want = run(scalar, &tile);
            for kernels in Kernels::available() {
                let name = kernels.name();
                assert_eq!(run(kernels, &tile).0, want.0, "{name}: {n_query} queries of {head_dim}");
                assert_eq!(run(kernels, &zeros).0, run(scalar, &zeros).0, "{name}: {n_query} queries of {head_dim}, zeros");
            }
            let (mut off, mut all) = (0.0, 0.0);
            for (n, query) in queries.iter().enumerate() {
                for (c, keys) in keys.chunks_exact(SCAN_CHUNK).enumerate() {
                    let is_wanted = |j: usize| wanted >> (c * SCAN_CHUNK + j) & 1 == 1;
                    let dot = |key: &Vec<f32>| key.iter().zip(query).map(|(k, q)| k * q).sum::<f32>();
                    let best = keys.iter().enumerate().filter(|(j, _)| is_wanted(*j)).map(|(_, key)| dot(key)).reduce(f32::max);
                    let got = want.1[n * 16 + c];
                    match best {
                        None => assert_eq!(got, f32::NEG_INFINITY),
                        Some(best) => (off, all) = (off + (got - best).powi(2), all + best.powi(2)),
                    }
                }
                let total: f32 = want.2[n * SCAN_CHUNKS..][..SCAN_CHUNKS].iter().map(|share| share - 0.5).sum();
                assert!((total - 1.0).abs() < 1e-5, "shares of {total}");
            }
            assert!(off < 0.4 * all || head_dim < 64, "{n_query} queries of {head_dim}: {off} of {all}");
        }
    }
}

/// What is seen in a file where it is mapped has the bits of what is read. And where a page cannot be had, since the file was cut
/// short, the process lives and the stream is as one whose disk fails.
#[test]
fn a_mapped_file_is_as_one_that_is_read_and_its_loss_as_that_of_a_disk() {
    let (folder, name) = (std::env::temp_dir(), format!("lowkey-cut-{}.past", std::process::id()));
    let file = PastFile::kept(&folder, &name, 0).expect("a folder for temporary files");
    let change = |shape: &mut KvShape| {
        (shape.n_layer, shape.each.n_head_kv, shape.each.head_dim, shape.n_batch) = (2, 2, 32, 8);
        (shape.k_type, shape.v_type) = (KvType::Q5H, KvType::Q4H);
    };
    let mut mapped = with_past_on(Box::new(file), &Unturned, (24, 40, 5, 2), change);
    let (mut read, disk) = with_past(24, 40, 5, 2, change);
    let mut rng = Rng::with_seed(12);
    let mut both_give = |n_tok: usize| {
        let n_tok = read.cache.together(n_tok);
        let mut random = |n: usize| -> Vec<f32> { (0..n_tok * n).map(|_| rng.f32() * 2.0 - 1.0).collect() };
        let new: Vec<[Vec<f32>; 3]> = (0..2).map(|_| [random(128), random(64), random(64)]).collect();
        let [of_mapped, of_read] = [&mut mapped, &mut read].map(|tiny| {
            let mut given = Vec::new();
            assert!(tiny.attend(
                n_tok,
                |layer| new[layer.0].clone(),
                |_, _| (),
                |_, out| given.extend(out.iter().map(|x| x.to_bits()))
            ));
            given
        });
        assert!(of_mapped == of_read);
        n_tok
    };
    // To the beginning of a tile: no other is written for a while.
    let mut n_tok = 0;
    while n_tok < 400 || n_tok % TILE != 0 {
        n_tok += both_give(if n_tok % 3 == 0 && n_tok < 400 { 8 } else { 1 });
    }
    std::fs::File::options().write(true).open(folder.join(&name)).and_then(|file| file.set_len(0)).expect("it is there");
    *disk.is_broken.lock().expect("mine") = Some(|_| true);
    (0..9).for_each(|_| assert_eq!(both_give(1), 1));
    std::fs::remove_file(folder.join(&name)).expect("it is there");
    let [of_mapped, of_read] = [&mapped, &read].map(|tiny| tiny.cache.past().expect("a past").counts());
    assert!(of_mapped == of_read && of_mapped.n_pieces > 1000 && of_mapped.n_unread > 9, "{of_mapped:?}, {of_read:?}");
}

/// Parameters of the demonstration model with a past in the folder for temporary files.
fn real(budget_bytes: u64) -> SessionParams {
    let mut params = lowkey_test_kit::params(budget_bytes);
    (params.kv.policy, params.k_type, params.v_type) = (Policy::L2Attn, Some(KvType::Q5H), Some(KvType::Q4H));
    (params.kv.recent, params.n_batch) = (None, 32);
    params.past = Some(PastParams { folder: std::env::temp_dir(), name: None, space_bytes: 32 << 20, n_recall: 32 });
    params
}

#[test]
fn threads_and_kernel_sets_change_no_bit() {
    let emulated = lowkey_test_kit::emulated().is_some();
    let (n_prompt, n_steps, budget) = if emulated { (110, 2, 600 << 10) } else { (330, 12, 1 << 20) };
    let tokens = lowkey_test_kit::prose(n_prompt + n_steps);
    let (prompt, rest) = tokens.split_at(n_prompt);
    let run = |kernels: &str, n_threads: usize| -> Vec<u32> {
        let params = SessionParams { kernels: kernels.into(), n_threads: Some(n_threads), ..real(budget) };
        let mut session = lowkey_test_kit::session(&lowkey_test_kit::demo_model(), &params);
        let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
        let mut all = bits(session.prefill(prompt, |_| true).expect("prefill").expect("logits"));
        rest.iter().for_each(|&token| all.extend(bits(session.step(token).expect("a step"))));
        let counts = session.cache().past().expect("a past").counts();
        assert!(counts.n_pieces > 500 && counts.n_again > 0 && counts.n_again < counts.n_single, "{counts:?}");
        all
    };
    let want = run("auto", 1);
    for n_threads in if emulated { 2..3 } else { 2..4 } {
        assert!(run("auto", n_threads) == want, "{n_threads} threads");
    }
    // Where that takes minutes, sets are held to each other by what they do with an index, above, and with rows, in the library's tests.
    for kernels in lowkey_test_kit::kernel_sets().into_iter().filter(|set| !emulated && set.name() != "scalar") {
        assert!(run(kernels.name(), 2) == want, "{}", kernels.name());
    }
}

/// Greedy, the answer to a prompt.
fn answer(session: &mut Session, prompt: &[u32], n: usize) -> Vec<u32> {
    let best = |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary") as u32;
    let mut tokens = vec![best(session.prefill(prompt, |_| true).expect("prefill").expect("logits"))];
    while tokens.len() < n {
        tokens.push(best(session.step(*tokens.last().expect("one")).expect("a step")));
    }
    tokens
}

#[test]
fn a_number_that_the_arena_has_lost_is_found() {
    if lowkey_test_kit::emulated().is_some() {
        return;
    }
    let text = std::fs::read_to_string(lowkey_test_kit::data("prose.txt")).expect("prose");
    let (before, after) = (&text[..3000], &text[text.len() - 3000..]);
    let prompt = format!(
        "{before}\nThe pass key is 48213. Remember it. 48213 is the pass key.\n{after}\nWhat is the pass key? The pass key is"
    );
    let file = lowkey::gguf::GgufFile::open(&lowkey_test_kit::demo_model()).expect("the demo model");
    let tokenizer = lowkey::text::Tokenizer::from_gguf(&file).expect("its tokenizer");
    let prompt = tokenizer.encode(&prompt, true, false).expect("ids");
    let ask = |params: &SessionParams| {
        let mut session = lowkey_test_kit::session(&lowkey_test_kit::demo_model(), params);
        let answer = answer(&mut session, &prompt, 6);
        (tokenizer.decode(&answer), session.cache().n_evicted())
    };
    let params = real(2 << 20);
    let (with, n_evicted) = ask(&params);
    let (without, _) = ask(&SessionParams { past: None, ..params });
    assert!(n_evicted > 500 && !without.contains("48213"), "without the past: {without}, {n_evicted} evicted");
    assert!(with.contains("48213"), "with the past: {with}");
}

/// With room for all pieces the real model's logits are nearly those of a cache that holds
/// everything: keys come back to their positions.
#[test]
fn what_is_fetched_stands_where_it_stood() {
    if lowkey_test_kit::emulated().is_some() {
        return;
    }
    let tokens = lowkey_test_kit::prose(420);
    let logits = |params: &SessionParams| {
        let mut session = lowkey_test_kit::session(&lowkey_test_kit::demo_model(), params);
        session.prefill(&tokens, |_| true).expect("prefill").expect("logits").to_vec()
    };
    let mut params = lowkey_test_kit::params(3 << 20);
    params.n_batch = 16;
    let without = logits(&params);
    params.past = Some(PastParams { folder: std::env::temp_dir(), name: None, space_bytes: 32 << 20, n_recall: 128 });
    let with = logits(&params);
    (params.past, params.kv.budget_bytes) = (None, 64 << 20);
    let full = logits(&params);
    let off = |some: &[f32]| some.iter().zip(&full).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / full.len() as f64;
    assert!(off(&with) < 0.3 * off(&without), "off by {} with the past, {} without", off(&with), off(&without));
}

/// Past the trained context positions are given anew, again and again, and the past with them.
#[test]
fn a_stream_past_the_trained_context_goes_on() {
    let path = lowkey_test_kit::data("tiny-gqa-f32.gguf");
    let mut params = lowkey_test_kit::params(0);
    params.kv.budget_bytes = lowkey_test_kit::budget_for(&path, 40, &params);
    params.past = Some(PastParams { folder: std::env::temp_dir(), name: None, space_bytes: 1 << 20, n_recall: 4 });
    let mut session = lowkey_test_kit::session(&path, &params);
    let (n_ctx, n_vocab) = (session.model().config.n_ctx as u32, session.model().config.n_vocab as u32);
    for i in 0..4 * n_ctx {
        let logits = session.step(i * 7 % n_vocab).expect("a step");
        assert!(logits.iter().all(|x| x.is_finite()));
    }
    assert!(session.cache().n_renumbered() > 2 && session.cache().past().expect("a past").counts().n_pieces > 0);
}

/// Files of more bytes than an address of 32 bits has are counted and found right on such a board too.
#[test]
fn a_file_of_more_than_four_gigabytes_is_counted_right() {
    let kv = KvShape { n_layer: 40, ..*Tiny::with(8, |_, _| ()).cache.shape() };
    let shape = PastShape { kv, n_q: 1, soft_cap: 0.0, n_threads: 1, n_recall: 8, n_tile: 0 };
    let (layer, index, heads) = (shape.layer_bytes() as u64, shape.index_tile_bytes() as u64, kv.each.n_head_kv as u64);
    let tile = shape.n_layer() as u64 * (layer + heads * index);
    assert_eq!(shape.tile_bytes() as u64, tile);
    // As many tiles as have numbers, whatever the space.
    assert_eq!(shape.tiles_within(u64::MAX), MAX_TILES);
    let shape = PastShape { n_tile: shape.tiles_within(20 << 30), ..shape };
    let (n, last) = (shape.n_tile as u64, shape.n_tile - 1);
    assert!((19 << 30..=20 << 30).contains(&shape.file_bytes()) && n == ((20u64 << 30) - 4096) / tile, "{n} tiles");
    assert_eq!(shape.index_bytes(), (shape.n_layer() as u64 * heads * n * index).next_multiple_of(4096));
    assert_eq!(shape.file_bytes(), shape.index_bytes() + n * shape.n_layer() as u64 * layer);
    assert_eq!(shape.rows_at(shape.n_layer() - 1, last) + layer, shape.file_bytes());
    assert_eq!(
        shape.index_at(shape.n_layer() - 1, kv.each.n_head_kv - 1, last) + index,
        shape.n_layer() as u64 * heads * n * index
    );
    assert_eq!(shape.place(shape.file_bytes() - 1), (last, 1));
    assert!(shape.bytes_for(shape.n_tok()) >= n * tile && shape.taken_bytes(shape.n_tile) >= shape.file_bytes());
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let model = lowkey_test_kit::model(&lowkey_test_kit::demo_model());
    let refused = |change: fn(&mut PastParams)| {
        let mut params = real(1 << 20);
        change(params.past.as_mut().expect("a past"));
        params.layout(&model).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(refused(|_| ()), "");
    assert!(refused(|past| past.n_recall = 0).contains("give 1 to"));
    assert!(refused(|past| past.space_bytes = 1 << 20).contains("give at least"));
    let mut params = real(1 << 20);
    params.past.as_mut().expect("a past").folder = "/nowhere/at/all".into();
    let layout = params.layout(&model).expect("a layout");
    let error = Session::new(model, &layout).err().expect("no folder").to_string();
    assert!(error.contains("/nowhere/at/all") && error.contains("name a folder"), "{error}");
}

/// The command line with these arguments: its exit code, what it answers and what it says.
fn told(args: &[&str]) -> (i32, String, String) {
    let output = lowkey_test_kit::lowkey!().args(args).output().expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[test]
fn the_command_line_refuses_what_has_no_past_in_a_file() {
    let (model, folder) = (lowkey_test_kit::demo_model(), std::env::temp_dir());
    let (model, folder) = (model.to_str().expect("UTF-8"), folder.to_str().expect("UTF-8"));
    let past = ["-m", model, "--past", folder, "--past-space", "64MiB"];
    let mut cases: Vec<(Vec<&str>, i32, &str)> = vec![
        ([&["run"], &past[..], &["-p", "x", "--recall", "0"]].concat(), 2, "--recall"),
        (vec!["run", "-m", model, "-p", "x", "--past", folder], 2, "--past-space"),
        (vec!["run", "-m", model, "-p", "x", "--past", folder, "--past-space", "1MiB"], 1, "give at least"),
        (vec!["run", "-m", model, "-p", "x", "--past", "/proc", "--past-space", "1GiB"], 2, "/proc"),
    ];
    if cfg!(feature = "serve") {
        cases.push(([&["serve"], &past[..], &["--sessions", folder, "--session-space", "16MiB"]].concat(), 1, "--session-space"));
    }
    for (args, code, part) in cases {
        let (got, answer, said) = told(&args);
        assert!(got == code && answer.is_empty() && said.contains(part), "{args:?}: {got}, {said}");
    }
}

#[test]
fn a_run_and_a_plan_tell_of_the_past() {
    let (model, folder) = (lowkey_test_kit::demo_model(), std::env::temp_dir());
    let prose = std::fs::read_to_string(lowkey_test_kit::data("prose.txt")).expect("prose");
    let (model, folder, prompt) = (model.to_str().expect("UTF-8"), folder.to_str().expect("UTF-8"), &prose[..600]);
    let args = ["run", "-m", model, "-p", prompt, "-n", "4", "--kv-budget", "600KiB", "--past", folder, "--past-space", "16MiB"];
    let (code, answer, said) = told(&[&args[..], &["--json", "--ignore-eos"]].concat());
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("past: ") && said.contains("pieces"), "{said}");
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    let number = |name: &str| answer["past"][name].as_u64().unwrap_or_else(|| panic!("{name} in {answer}"));
    assert!(number("written_bytes") > 500_000 && number("pieces") > 100 && number("read_bytes") > 10_000);
    assert!(number("file_bytes") <= 16 << 20 && number("n_tokens") > 1000 && number("recall") == 32);
    assert!((number("lost_tiles"), number("failed_reads")) == (0, 0) && answer["past"]["hit_rate"].as_f64().is_some());
    let memory = |name: &str| answer["memory"][name].as_u64().expect("a number");
    assert!(memory("rss_anon_peak_bytes") <= memory("plan_bytes"), "{answer}");

    let (code, table, said) = told(&[&["plan"], &args[1..]].concat());
    assert_eq!(code, 0, "{said}");
    for part in ["past, to be written", "past, found", "past, to look for it", "  disk", "a day at 10 tokens a second writes"] {
        assert!(table.contains(part), "'{part}' is missing in: {table}");
    }
}
