//! Mutations of model files: values at the edges, keys that change what is computed, and files with a few things wrong at
//! random, the same ones for the same seed.

use crate::gguf_writer::{ARRAY, BOOL, F32, GgufWriter, I32, STRING, U32, U64, array, string};

/// Values to put in place of any other.
pub fn values() -> Vec<(String, u32, Vec<u8>)> {
    let mut out = Vec::new();
    for v in [0u32, 1, 2, 3, 7, 8, 32, 64, 96, 128, 255, 1 << 16, 1 << 24, (1 << 24) + 1, 0x7fff_ffff, u32::MAX - 31, u32::MAX] {
        out.push((format!("u32 {v}"), U32, v.to_le_bytes().to_vec()));
    }
    for v in [-1i32, i32::MIN] {
        out.push((format!("i32 {v}"), I32, v.to_le_bytes().to_vec()));
    }
    for v in [1u64 << 32, u64::MAX, u64::MAX - 63] {
        out.push((format!("u64 {v}"), U64, v.to_le_bytes().to_vec()));
    }
    for v in [0f32, -0.0, 1.0, -1.0, 1e-45, 1e-38, 0.5, 1e30, f32::MAX, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        out.push((format!("f32 {v}"), F32, v.to_le_bytes().to_vec()));
    }
    for v in ["", "llama", "none", "yarn", "a\nb\u{1b}[31m", &"x".repeat(5000), "{% for i in range(9) %}", "default", "llama-bpe"]
    {
        out.push((format!("string {:.20}", v.escape_debug().to_string()), STRING, string(v.as_bytes())));
    }
    out.push(("bool".into(), BOOL, vec![1]));
    out.push(("no i32s".into(), ARRAY, array(I32, 0, &[])));
    out.push(("no strings".into(), ARRAY, array(STRING, 0, &[])));
    out.push(("one string".into(), ARRAY, array(STRING, 1, &string(b"a"))));
    out.push(("an empty string".into(), ARRAY, array(STRING, 1, &string(b""))));
    out.push(("300 of i32 -1".into(), ARRAY, array(I32, 300, &[0xff; 1200])));
    out.push(("300 of NaN".into(), ARRAY, array(F32, 300, &f32::NAN.to_le_bytes().repeat(300))));
    out.push(("300 empty strings".into(), ARRAY, array(STRING, 300, &[0; 2400])));
    out.push(("300 equal strings".into(), ARRAY, array(STRING, 300, &string(b"Aa").repeat(300))));
    out
}

/// Keys that no tiny file has and that change what is computed.
pub const MORE_KEYS: [&str; 16] = [
    "ARCH.shortconv.l_cache",
    "ARCH.expert_count",
    "ARCH.rope.scaling.type",
    "ARCH.rope.scaling.factor",
    "ARCH.rope.scaling.attn_factor",
    "ARCH.rope.scaling.yarn_ext_factor",
    "ARCH.rope.scale_linear",
    "ARCH.attention.sliding_window",
    "ARCH.attention.causal",
    "ARCH.logit_scale",
    "ARCH.final_logit_softcapping",
    "general.alignment",
    "split.count",
    "tokenizer.chat_template",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.add_eos_token",
];

/// The bytes of `file` with one or two things changed, in its metadata, its directory, its weights or anywhere.
pub fn mutated(file: &GgufWriter, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut file = file.clone();
    let mut bytes = None;
    for _ in 0..rng.usize(1..=2) {
        match rng.u8(..10) {
            0..=3 => change_key(&mut file, rng),
            4 => change_tensor(&mut file, rng),
            5..=7 => change_weights(&mut file, rng),
            8 => change_head(&mut file, rng),
            _ => {
                let mut built = file.build();
                let reach = if rng.bool() { file.head().len() } else { built.len() };
                for _ in 0..1 << rng.u32(..7) {
                    built[rng.usize(..reach)] = [0, 0xff, rng.u8(..)][rng.usize(..3)];
                }
                let cut = if rng.u8(..4) == 0 { rng.usize(..built.len()) } else { built.len() };
                built.truncate(cut);
                bytes = Some(built);
            }
        }
    }
    bytes.unwrap_or_else(|| file.build())
}

fn change_key(file: &mut GgufWriter, rng: &mut fastrand::Rng) {
    let arch =
        file.keys.first().map_or(String::new(), |key| String::from_utf8_lossy(key.2.get(8..).unwrap_or_default()).into_owned());
    let i = rng.usize(..file.keys.len());
    let (what, ty, value) = values().swap_remove(rng.usize(..values().len()));
    match rng.u8(..8) {
        0..=2 => (file.keys[i].1, file.keys[i].2) = (ty, value),
        3 => {
            file.raw(&MORE_KEYS[rng.usize(..MORE_KEYS.len())].replace("ARCH", &arch), ty, value);
        }
        4 => {
            file.raw(&format!("{arch}.{}", what.replace(' ', "_")), ty, value);
        }
        5 => drop(file.keys.remove(i)),
        6 => {
            let j = rng.usize(..file.keys.len());
            let name = file.keys[j].0.clone();
            file.keys[j].0 = std::mem::replace(&mut file.keys[i].0, name);
        }
        _ => {
            let value = &mut file.keys[i].2;
            let at = rng.usize(..value.len().min(64));
            value[at] ^= 1 << rng.u8(..8);
        }
    }
}

fn change_tensor(file: &mut GgufWriter, rng: &mut fastrand::Rng) {
    if file.tensors.is_empty() {
        return;
    }
    let n = file.tensors.len();
    let (i, j) = (rng.usize(..n), rng.usize(..n));
    let edge = [0, 1, 3, 32, 256, 1 << 20, 1 << 32, u64::MAX, u64::MAX - 31][rng.usize(..9)];
    match rng.u8(..9) {
        0 => {
            let name = file.tensors[j].name.clone();
            file.tensors[j].name = std::mem::replace(&mut file.tensors[i].name, name);
        }
        1 => file.tensors[i].name.push_str([".lora_a", ".bias", "\n", "9"][rng.usize(..4)]),
        2 => file.tensors[i].type_id = rng.u32(..45),
        3 => {
            let ty = file.tensors[j].type_id;
            file.tensors[j].type_id = std::mem::replace(&mut file.tensors[i].type_id, ty);
        }
        4 => {
            let at = rng.usize(..file.tensors[i].dims.len());
            file.tensors[i].dims[at] = edge;
        }
        5 => file.tensors[i].dims.reverse(),
        6 => file.tensors[i].offset = Some(edge / 32 * 32),
        7 => file.tensors.push(file.tensors[i].clone()),
        _ => drop(file.tensors.remove(i)),
    }
}

fn change_weights(file: &mut GgufWriter, rng: &mut fastrand::Rng) {
    let n = file.tensors.len();
    let Some(data) = (n > 0).then(|| &mut file.tensors[rng.usize(..n)].data).filter(|data| data.len() > 2) else { return };
    // Half of the files without what is infinite or not a number.
    let edges = [Some(0x7e00_u16), Some(0x7c00), Some(0xfc00), Some(0x7bff), Some(1), Some(0x8000), None];
    let edges = if rng.bool() { &edges[..] } else { &edges[4..] };
    for _ in 0..1 << rng.u32(..10) {
        let at = rng.usize(..data.len() - 1);
        let half = edges[rng.usize(..edges.len())].unwrap_or(rng.u16(..0x3c00));
        data[at..at + 2].copy_from_slice(&half.to_le_bytes());
    }
}

fn change_head(file: &mut GgufWriter, rng: &mut fastrand::Rng) {
    let edge = [0, 1, 2, 1000, 1 << 20, 1 << 40, u64::MAX][rng.usize(..7)];
    match rng.u8(..5) {
        0 => file.magic = [*b"FUGG", *b"lmgg", *b"PK\x03\x04", [0; 4]][rng.usize(..4)],
        1 => file.version = [0, 1, 2, 4, 3 << 24][rng.usize(..5)],
        2 => file.n_keys = Some(edge),
        3 => file.n_tensors = Some(edge),
        _ => {
            file.u32("general.alignment", [0, 8, 16, 64, 1 << 20, u32::MAX][rng.usize(..6)]);
        }
    }
}
