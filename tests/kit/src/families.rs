//! The small random models that tests/golden/families.json describes, written as GGUF files: the same bytes of tensors as
//! tests/golden/families.py gives to llama.cpp, whose hash is compared. And the vocabularies of tests/golden/spm.json.
//!
//! Every number is an int8 of a fixed stream times a power of two, so that F32, F16 and Q8_0 hold it exactly.

use serde_json::Value;

use crate::gguf_writer::{self as w, GgufWriter};

/// The file of one row of the golden's `models`.
pub fn family_model(name: &str, row: &Value) -> GgufWriter {
    let text = |v: &Value| v.as_str().expect("a string").to_owned();
    let list = |v: &Value| v.as_array().expect("a list").clone();
    let float = |v: &Value| v.as_f64().expect("a number") as f32;
    let mut file = GgufWriter::new();
    file.str("general.architecture", &text(&row["arch"]));
    for key in row["keys"].as_array().expect("keys") {
        match key[1].as_str().expect("a kind") {
            "u32" => file.u32(&text(&key[0]), key[2].as_u64().expect("a number") as u32),
            "f32" => file.f32(&text(&key[0]), float(&key[2])),
            "bool" => file.bool(&text(&key[0]), key[2].as_bool().expect("a flag")),
            "f32s" => file.f32s(&text(&key[0]), &list(&key[2]).iter().map(float).collect::<Vec<_>>()),
            "i32s" => {
                let values: Vec<i32> = list(&key[2]).iter().map(|v| v.as_i64().expect("a number") as i32).collect();
                file.i32s(&text(&key[0]), &values)
            }
            "bools" => {
                let values: Vec<u8> = list(&key[2]).iter().map(|v| v.as_bool().expect("a flag").into()).collect();
                file.raw(&text(&key[0]), w::ARRAY, w::array(w::BOOL, values.len() as u64, &values))
            }
            _ => file.str(&text(&key[0]), &text(&key[2])),
        };
    }
    let n_vocab = row["n_vocab"].as_u64().expect("a number");
    let tokens: Vec<String> = (0..n_vocab).map(|i| format!("t{i}")).collect();
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    file.str("tokenizer.ggml.model", "gpt2").str("tokenizer.ggml.pre", "gpt-2").strs("tokenizer.ggml.tokens", &tokens);
    file.strs("tokenizer.ggml.merges", &[]);
    let mut hash = FNV_START;
    for tensor in row["tensors"].as_array().expect("tensors") {
        let label = text(&tensor[0]);
        let dims: Vec<u64> = tensor[1].as_array().expect("a shape").iter().rev().map(|d| d.as_u64().expect("a number")).collect();
        let (kind, gain, offset) = (text(&tensor[2]), float(&tensor[3]), float(&tensor[4]));
        let n = dims.iter().product::<u64>() as usize;
        let seed = fnv1a(format!("{name}/{label}").as_bytes(), FNV_START);
        let block = BLOCKS.iter().find(|block| block.0 == kind);
        let (type_id, data) = block.map_or_else(|| encoded(&kind, int8s(seed, n), gain, offset), |b| blocks(b, seed, n, gain));
        hash = fnv1a(&data, hash);
        file.tensor(&label, &dims, type_id, data);
    }
    assert_eq!(format!("{hash:016x}"), text(&row["tensors_fnv1a"]), "{name}: other tensors than the golden was made with");
    file
}

/// The file of one row of the `models` of tests/golden/spm.json: a SentencePiece vocabulary, no tensors.
pub fn spm_vocabulary(model: &Value) -> GgufWriter {
    let rows: Vec<(String, f32, i32)> = serde_json::from_value(model["tokens"].clone()).expect("tokens");
    let bytes = (0..256).map(|b| (format!("<0x{b:02X}>"), 0.0, 6));
    let rows: Vec<_> = rows[..3].iter().cloned().chain(bytes).chain(rows[3..].iter().cloned()).collect();
    let texts: Vec<&str> = rows.iter().map(|row| row.0.as_str()).collect();
    let mut file = GgufWriter::new();
    file.str("general.name", model["name"].as_str().expect("a name"))
        .str("tokenizer.ggml.model", "llama")
        .strs("tokenizer.ggml.tokens", &texts)
        .f32s("tokenizer.ggml.scores", &rows.iter().map(|row| row.1).collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &rows.iter().map(|row| row.2).collect::<Vec<_>>())
        .bool("tokenizer.ggml.add_space_prefix", model["space_prefix"].as_bool().expect("a bool"));
    file
}

/// As `BLOCKS` in families.py: name, ggml's type, elements, bytes, where the gain stands, where a multiple of it does.
type Block = (&'static str, u32, usize, usize, usize, Option<(usize, f32)>);

const BLOCKS: [Block; 21] = [
    ("Q4_0", 2, 32, 18, 0, None),
    ("Q4_1", 3, 32, 20, 0, Some((2, -7.5))),
    ("Q5_0", 6, 32, 22, 0, None),
    ("Q5_1", 7, 32, 24, 0, Some((2, -15.5))),
    ("Q2_K", 10, 256, 84, 80, Some((82, 1.5))),
    ("Q3_K", 11, 256, 110, 108, None),
    ("Q4_K", 12, 256, 144, 0, Some((2, 7.5))),
    ("Q5_K", 13, 256, 176, 0, Some((2, 15.5))),
    ("Q6_K", 14, 256, 210, 208, None),
    ("IQ4_NL", 20, 32, 18, 0, None),
    ("IQ4_XS", 23, 256, 136, 0, None),
    ("MXFP4", 39, 32, 17, 0, None),
    ("Q1_0", 41, 128, 18, 0, None),
    ("Q2_0", 42, 64, 18, 0, None),
    ("TQ1_0", 34, 256, 54, 52, None),
    ("TQ2_0", 35, 256, 66, 64, None),
    ("IQ2_XXS", 16, 256, 66, 0, None),
    ("IQ2_XS", 17, 256, 74, 0, None),
    ("IQ2_S", 22, 256, 82, 0, None),
    ("IQ3_XXS", 18, 256, 98, 0, None),
    ("IQ3_S", 21, 256, 110, 0, None),
];

/// Blocks of the stream's bytes, with the scales of this gain.
fn blocks(&(name, type_id, n_elems, n_bytes, at_gain, centre): &Block, seed: u64, n: usize, gain: f32) -> (u32, Vec<u8>) {
    let mut data: Vec<u8> = int8s(seed, n / n_elems * n_bytes).map(|q| q as u8).collect();
    for block in data.chunks_exact_mut(n_bytes) {
        if name == "MXFP4" {
            block[at_gain] = (gain.to_bits() >> 23) as u8;
            continue;
        }
        for (at, value) in [(at_gain, gain)].into_iter().chain(centre.map(|(at, times)| (at, times * gain))) {
            block[at..at + 2].copy_from_slice(&half_bits(value).to_le_bytes());
        }
    }
    (type_id, data)
}

/// ggml's type and the bytes of `int8 * gain + offset`.
fn encoded(kind: &str, q: impl Iterator<Item = i8>, gain: f32, offset: f32) -> (u32, Vec<u8>) {
    match kind {
        "Q8_0" => {
            let q: Vec<u8> = q.map(|q| q as u8).collect();
            (8, q.chunks(32).flat_map(|block| [&half_bits(gain).to_le_bytes()[..], block].concat()).collect())
        }
        // Factors of RoPE that leave all but a share of the pairs unturned.
        "PARTIAL" => {
            let n = q.count();
            let factor = |i: usize| if (i as f32) < n as f32 * gain { 1.0 } else { 1e30f32 };
            (0, (0..n).flat_map(|i| factor(i).to_le_bytes()).collect())
        }
        "F16" => (1, q.flat_map(|q| half_bits(f32::from(q) * gain + offset).to_le_bytes()).collect()),
        "BF16" => (30, q.flat_map(|q| ((f32::from(q) * gain).to_bits().to_le_bytes()[2..]).to_vec()).collect()),
        _ => (0, q.flat_map(|q| (f32::from(q) * gain + offset).to_le_bytes()).collect()),
    }
}

/// A number that f16 holds exactly, at full precision or below it, as its bits.
fn half_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let (sign, exponent) = ((bits >> 16) as u16 & 0x8000, (bits >> 23 & 0xff) as i32 - 127);
    let mantissa = bits & 0x7f_ffff | 0x80_0000;
    let half = match exponent {
        -127 => 0,
        -14..=15 => ((exponent + 15) as u32) << 10 | (mantissa & 0x7f_ffff) >> 13,
        _ => mantissa >> (-1 - exponent).clamp(0, 31),
    };
    sign | half as u16
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

fn fnv1a(bytes: &[u8], start: u64) -> u64 {
    bytes.iter().fold(start, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Knuth's 64-bit linear congruential generator, its top byte.
fn int8s(mut seed: u64, n: usize) -> impl Iterator<Item = i8> {
    (0..n).map(move |_| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 56) as i8
    })
}
