//! What other people's files are like: keys under second names, lists where one number would do, sentinels, files that are no
//! model at all, weights that are not numbers. Each is honoured, or refused by one line that names it and the way out.

use std::path::PathBuf;

use lowkey::gguf::GgufFile;
use lowkey::kernels::Kernels;
use lowkey::kv::PastParams;
use lowkey::kv::types::KvType;
use lowkey::model::forward::Model;
use lowkey::session::SessionParams;
use lowkey_test_kit::families::family_model;
use lowkey_test_kit::gguf_writer::{self as w, GgufWriter, array, take_apart};
use lowkey_test_kit::{golden, params};

struct TempPath(PathBuf);

impl TempPath {
    fn new(name: &str) -> Self {
        TempPath(std::env::temp_dir().join(format!("lowkey-strangers-{}-{name}.gguf", std::process::id())))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn family(name: &str) -> GgufWriter {
    family_model(name, &golden("families.json")["models"][name])
}

fn load(path: &TempPath, file: &GgufWriter) -> Result<Model, String> {
    std::fs::write(&path.0, file.build()).expect("a temporary file");
    GgufFile::open(&path.0).and_then(Model::load).map_err(|e| e.to_string())
}

fn logits(path: &TempPath, file: &GgufWriter) -> Vec<u32> {
    load(path, file).expect("a model");
    let mut session = lowkey_test_kit::session(&path.0, &params(1 << 20));
    let tokens: Vec<u32> = (1..20).collect();
    let logits = session.prefill(&tokens, |_| true).expect("logits").expect("not stopped");
    logits.iter().map(|l| l.to_bits()).collect()
}

/// The refusal, checked to be one line that says each of `says`.
fn refused(path: &TempPath, file: &GgufWriter, says: &[&str]) {
    let line = load(path, file).err().unwrap_or_else(|| panic!("this must be refused: {says:?}"));
    assert!(!line.contains('\n') && line.len() < 600, "{line}");
    says.iter().for_each(|part| assert!(line.contains(part), "'{part}' is not in: {line}"));
}

fn at(file: &GgufWriter, key: &str) -> usize {
    file.keys.iter().position(|k| k.0 == key).unwrap_or_else(|| panic!("no key {key}"))
}

fn set(file: &mut GgufWriter, key: &str, ty: u32, value: Vec<u8>) {
    file.keys.retain(|k| k.0 != key);
    file.raw(key, ty, value);
}

fn u32_list(values: &[u32]) -> Vec<u8> {
    array(w::U32, values.len() as u64, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>())
}

fn bools(values: &[bool]) -> Vec<u8> {
    array(w::BOOL, values.len() as u64, &values.iter().map(|&v| v.into()).collect::<Vec<u8>>())
}

#[test]
fn a_list_of_equal_numbers_is_the_number_and_another_is_refused() {
    let path = TempPath::new("lists");
    for name in ["qwen2-q8", "gemma3-q8", "lfm2-q8"] {
        let plain = family(name);
        let arch = name.split('-').next().expect("a name");
        let want = logits(&path, &plain);
        let n_layer = plain.keys[at(&plain, &format!("{arch}.block_count"))].2[0] as usize;
        for key in plain.keys.iter().filter(|k| k.0.starts_with(arch) && [w::U32, w::F32].contains(&k.1)) {
            let mut file = plain.clone();
            let list = |elems: Vec<u8>| array(key.1, (elems.len() / 4) as u64, &elems);
            set(&mut file, &key.0, w::ARRAY, list(key.2.repeat(n_layer)));
            if key.0.ends_with(".block_count") {
                refused(&path, &file, &[&key.0]);
                continue;
            }
            assert!(logits(&path, &file) == want, "{}", key.0);
            let mut uneven = key.2.repeat(n_layer);
            let last = uneven.len() - 2;
            uneven[last] ^= 1;
            set(&mut file, &key.0, w::ARRAY, list(uneven));
            if key.0.ends_with(".feed_forward_length") {
                // Layers may differ in it, but not from their matrices.
                refused(&path, &file, &["ffn_"]);
                continue;
            }
            let layer = format!("in layer {} (1 of {n_layer} layers differ", n_layer - 1);
            refused(&path, &file, &[&key.0, "in layer 0", &layer]);
            set(&mut file, &key.0, w::ARRAY, list(key.2.repeat(n_layer + 1)));
            refused(&path, &file, &[&key.0, "layers"]);
        }
    }
}

/// An FFN of which two thirds are nought gives what one a third as wide gives, in a file that says so of this layer alone.
#[test]
fn layers_may_have_ffns_of_different_widths() {
    let path = TempPath::new("widths");
    let (mut wide, key) = (family("qwen2-q8"), "qwen2.feed_forward_length");
    let (n_ff, narrow, block) = (96, 32, 34);
    let mut file = wide.clone();
    for (full, cut) in wide.tensors.iter_mut().zip(&mut file.tensors).filter(|(t, _)| t.name.starts_with("blk.1.ffn_")) {
        match full.name.as_str() {
            "blk.1.ffn_gate.weight" | "blk.1.ffn_up.weight" => {
                let kept = full.data.len() / n_ff * narrow;
                full.data[kept..].fill(0);
                cut.data.truncate(kept);
                cut.dims[1] = narrow as u64;
            }
            "blk.1.ffn_down.weight" => {
                cut.data = full.data.chunks_exact(n_ff / 32 * block).flat_map(|row| row[..block].to_vec()).collect();
                cut.dims[0] = narrow as u64;
            }
            _ => {}
        }
    }
    set(&mut file, key, w::ARRAY, u32_list(&[n_ff as u32, narrow as u32]));
    assert!(logits(&path, &file) == logits(&path, &wide));
}

#[test]
fn a_pattern_of_windows_may_be_a_list() {
    let path = TempPath::new("pattern");
    let key = "gemma3.attention.sliding_window_pattern";
    let mut file = family("gemma3-q8");
    let want = logits(&path, &file);
    let n_layer = file.keys[at(&file, "gemma3.block_count")].2[0] as usize;
    let right: Vec<bool> = (0..n_layer).map(|i| (i + 1) % 6 != 0).collect();
    let as_ints: Vec<u32> = right.iter().map(|&on| on.into()).collect();
    for value in [bools(&right), u32_list(&as_ints), u32_list(&vec![6; n_layer])] {
        set(&mut file, key, w::ARRAY, value);
        assert!(logits(&path, &file) == want);
    }
    let mut wrong = right.clone();
    wrong[2] = false;
    for (value, says) in [
        (bools(&wrong), "layer 2"),
        (bools(&right[1..]), "layer"),
        (bools(&[]), "has 0 values"),
        (u32_list(&vec![5; n_layer]), "is 5"),
    ] {
        set(&mut file, key, w::ARRAY, value);
        refused(&path, &file, &[key, says]);
    }
}

/// What gpt-oss has beside other mixtures must be in the file, as long as it has to be; and no other family has it.
#[test]
fn sinks_and_biases_of_gpt_oss_are_there_or_the_file_is_refused() {
    let path = TempPath::new("gpt-oss");
    let file = family("gpt-oss-q8");
    let without = |what: &str| {
        let mut other = file.clone();
        other.keys.retain(|k| k.0 != what);
        other.tensors.retain(|t| t.name != what);
        other
    };
    let needed = "gpt-oss.attention.sliding_window gpt-oss.expert_count blk.1.attn_sinks.weight blk.2.attn_q.bias \
        blk.0.attn_output.bias blk.0.ffn_gate_inp.bias blk.3.ffn_gate_exps.bias blk.3.ffn_up_exps.bias blk.3.ffn_down_exps.bias \
        blk.0.post_attention_norm.weight output.weight";
    needed.split_whitespace().for_each(|what| refused(&path, &without(what), &[what]));
    for name in ["blk.1.attn_sinks.weight", "blk.0.attn_output.bias", "blk.0.ffn_gate_inp.bias", "blk.0.ffn_up_exps.bias"] {
        let mut short = file.clone();
        let tensor = short.tensors.iter_mut().find(|t| t.name == name).expect("a tensor");
        *tensor.dims.last_mut().expect("a dimension") -= 1;
        tensor.data.truncate(tensor.dims.iter().product::<u64>() as usize * 4);
        refused(&path, &short, &[name]);
    }
    let mut broken = file.clone();
    let sinks = broken.tensors.iter_mut().find(|t| t.name == "blk.0.attn_sinks.weight").expect("sinks");
    sinks.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&path, &broken, &["blk.0.attn_sinks.weight holds values that are no finite numbers"]);
    let mut rounded = file.clone();
    let bias = rounded.tensors.iter_mut().find(|t| t.name == "blk.0.ffn_up_exps.bias").expect("biases");
    (bias.type_id, bias.data) = (8, vec![0; bias.data.len() / 128 * 34]);
    refused(&path, &rounded, &["blk.0.ffn_up_exps.bias has type Q8_0"]);
    for (key, value, says) in [("expert_gating_func", 2, "is 2"), ("attention.sliding_window_pattern", 3, "is 3")] {
        let mut other = file.clone();
        other.u32(&format!("gpt-oss.{key}"), value);
        refused(&path, &other, &[key, says]);
    }
    // Sinks however high take all, and however low nothing: logits are numbers.
    for sink in [f32::MAX, -f32::MAX, 0.0] {
        let mut far = file.clone();
        far.tensors
            .iter_mut()
            .filter(|t| t.name.ends_with("attn_sinks.weight"))
            .for_each(|t| t.data = sink.to_le_bytes().repeat(8));
        assert!(logits(&path, &far).iter().all(|&bits| f32::from_bits(bits).is_finite()), "sinks of {sink}");
    }
    let mut stranger = family("qwen3-q8");
    stranger.tensor_f32("blk.0.attn_sinks.weight", &[2], &[0.0; 2]);
    refused(&path, &stranger, &["blk.0.attn_sinks.weight", "is not one that architecture 'qwen3' reads"]);
}

/// Layers that differ in more than a window are run as the file says of them, or refused by the key that says it.
#[test]
fn what_differs_by_layer_is_told_by_its_key() {
    let path = TempPath::new("layers");
    let (file, key) = (family("gemma4-q8"), |name: &str| format!("gemma4.{name}"));
    let n_layer = 7;
    let every_other: Vec<bool> = (0..n_layer).map(|i| i % 2 == 0).collect();
    let mut irregular = every_other.clone();
    irregular[4] = false;
    let want = logits(&path, &file);
    for (name, ty, value, says) in [
        ("attention.sliding_window_pattern", w::ARRAY, bools(&irregular), "layer 4"),
        ("attention.sliding_window_pattern", w::ARRAY, bools(&[true; 7]), "a window to all layers"),
        ("attention.sliding_window_pattern", w::ARRAY, bools(&every_other[1..]), "has 6 values for 7 layers"),
        ("attention.shared_kv_layers", w::U32, vec![2, 0, 0, 0], "share keys and values"),
        ("attention.shared_kv_layers", w::U32, vec![6, 0, 0, 0], "share keys and values"),
        ("embedding_length_per_layer_input", w::U32, vec![33, 0, 0, 0], "33 elements of a second embedding"),
        ("attention.key_length_swa", w::U32, vec![36, 0, 0, 0], "a head of 36 elements (attention.key_length_swa)"),
        (
            "attention.value_length_swa",
            w::U32,
            vec![64, 0, 0, 0],
            "values of 64 elements (attention.value_length_swa) beside keys of 32",
        ),
        ("rope.dimension_count_swa", w::U32, vec![40, 0, 0, 0], "RoPE over 40 elements (rope.dimension_count_swa)"),
        ("attention.head_count_kv", w::ARRAY, u32_list(&[2, 2, 1, 2, 2, 2, 2]), "differs among layers of one kind"),
        ("attn_logit_softcapping", w::F32, 50f32.to_le_bytes().to_vec(), "gemma4.attn_logit_softcapping is not known"),
        ("expert_count", w::U32, vec![8, 0, 0, 0], "gemma4.expert_used_count"),
    ] {
        let mut other = file.clone();
        set(&mut other, &key(name), ty, value);
        refused(&path, &other, &[says]);
    }
    for name in ["attention.sliding_window_pattern", "attention.sliding_window", "attention.key_length_swa"] {
        let mut other = file.clone();
        other.keys.retain(|k| k.0 != key(name));
        refused(&path, &other, &[&key(name)]);
    }
    // One number for each layer says what one for all says.
    let mut listed = file.clone();
    set(&mut listed, &key("attention.head_count_kv"), w::ARRAY, u32_list(&[2; 7]));
    assert!(logits(&path, &listed) == want);
    // A key of another family that none of its layers reads.
    let mut stranger = family("gemma3-q8");
    stranger.u32("gemma3.attention.shared_kv_layers", 2);
    refused(&path, &stranger, &["gemma3.attention.shared_kv_layers is not known"]);
    let model = load(&path, &file).expect("a model");
    let p = params(1 << 20);
    for (p, says) in [
        (SessionParams { n_draft: 4, ..p.clone() }, "share keys and values"),
        (
            SessionParams { past: Some(PastParams { folder: ".".into(), name: None, space_bytes: 1 << 20, n_recall: 4 }), ..p },
            "share keys",
        ),
    ] {
        let refusal = p.layout(&model).err().expect("refused").to_string();
        assert!(refusal.contains(says), "{refusal}");
    }
}

#[test]
fn second_names_are_honoured_and_no_default_stands_in() {
    let path = TempPath::new("names");
    let (plain, arch) = (family("gemma3-gqa"), "gemma3");
    let rename = |old: &str, new: &str| {
        let mut file = plain.clone();
        let i = at(&file, &format!("{arch}.{old}"));
        file.keys[i].0 = new.to_owned();
        file
    };
    let mut local = plain.clone();
    local.f32("gemma3.rope.freq_base_swa", 20_000.0);
    let (want, want_local) = (logits(&path, &plain), logits(&path, &local));
    assert!(want != want_local, "the base of layers with a window matters");
    let i = at(&local, "gemma3.rope.freq_base_swa");
    local.keys[i].0 = "gemma3.rope.local.freq_base".into();
    assert!(logits(&path, &local) == want_local);
    local.f32("gemma3.rope.freq_base_swa", 30_000.0);
    refused(&path, &local, &["gemma3.rope.local.freq_base is 20000", "gemma3.rope.freq_base_swa is 30000"]);

    assert!(logits(&path, &rename("rope.freq_base", "gemma3.rope.global.freq_base")) == want);
    assert!(logits(&path, &rename("attention.key_length", "gemma3.attention.head_dim")) == want);
    for (new, says) in [
        ("gemma3.rope.base", "gemma3.rope.base is not known here"),
        ("gemma3.rope.global_freq_base", "gemma3.rope.global_freq_base is not known"),
        ("rope.freq_base", "rope.freq_base is there in place of gemma3.rope.freq_base"),
        ("gemma.rope.freq_base", "gemma.rope.freq_base is there in place of gemma3.rope.freq_base"),
    ] {
        refused(&path, &rename("rope.freq_base", new), &[says]);
    }
}

/// llama.cpp's writers of whole files put in every key there is, most of them at what means none.
#[test]
fn keys_that_change_nothing_are_ignored_and_others_refused() {
    let path = TempPath::new("inert");
    let mut file = take_apart("tiny-gqa.gguf");
    let want = logits(&path, &file);
    let original = file.clone();
    for key in ["leading_dense_block_count", "expert_feed_forward_length", "expert_count", "rescale_every_n_layers"] {
        file.u32(&format!("llama.{key}"), 0);
    }
    for key in ["attention.q_lora_rank", "ssm.inner_size", "attention.sliding_window", "nextn_predict_layers"] {
        file.u32(&format!("llama.{key}"), if key.len() % 2 == 0 { 0 } else { u32::MAX });
    }
    for key in ["logit_scale", "attention.scale", "attention.clamp_kqv", "rope.scaling.factor", "expert_weights_scale"] {
        file.f32(&format!("llama.{key}"), 0.0);
    }
    file.f32("llama.residual_scale", 1.0).f32("llama.rope.scaling.yarn_ext_factor", -1.0);
    file.f32("llama.attn_logit_softcapping", 50.0).f32("llama.final_logit_softcapping", 30.0);
    file.bool("llama.use_parallel_residual", false).bool("llama.attention.causal", true).bool("llama.swin_norm", false);
    file.str("llama.rope.scaling.type", "linear").str("llama.tensor_data_layout", "Meta AI original pth");
    file.u32("llama.rope.scaling.original_context_length", 8192).u32("llama.expert_used_count", 2);
    file.raw("llama.decoder_start_token_id", w::I32, vec![0xff; 4]).str("mradermacher.quantized_by", "someone");
    assert!(logits(&path, &file) == want);

    let with = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = original.clone();
        change(&mut file);
        file
    };
    for key in ["ssm.inner_size", "nextn_predict_layers", "expert_count", "a_key_of_tomorrow", "attention.q_lora_rank"] {
        let key = format!("llama.{key}");
        refused(
            &path,
            &with(&|f| {
                f.u32(&key, 7);
            }),
            &[&key, "use a"],
        );
    }
    for (key, value) in [("logit_scale", 0.5), ("attention.scale", 1.0), ("attention.clamp_kqv", 8.0), ("embedding_scale", 12.0)]
    {
        let key = format!("llama.{key}");
        refused(
            &path,
            &with(&|f| {
                f.f32(&key, value);
            }),
            &[&key, "not known here"],
        );
    }
    refused(
        &path,
        &with(&|f| {
            f.bool("llama.attention.causal", false);
        }),
        &["llama.attention.causal", "later tokens"],
    );
    refused(
        &path,
        &with(&|f| {
            f.bool("llama.use_parallel_residual", true);
        }),
        &["use_parallel_residual"],
    );
    refused(
        &path,
        &with(&|f| {
            f.str("llama.rope.scaling.type", "longrope");
        }),
        &["llama.rope.scaling.type is 'longrope'"],
    );
    let mut gemma3 = family("gemma3-q8");
    refused(&path, gemma3.f32("gemma3.final_logit_softcapping", 30.0), &["gemma3.final_logit_softcapping"]);
}

#[test]
fn a_number_that_stands_for_none_is_said_to_be_there() {
    let (path, plain) = (TempPath::new("none"), family("llama-yarn"));
    for key in ["llama.block_count", "llama.embedding_length", "llama.attention.head_count"] {
        for (ty, value) in [(w::I32, (-1i32).to_le_bytes()), (w::U32, u32::MAX.to_le_bytes())] {
            let mut file = plain.clone();
            set(&mut file, key, ty, value.to_vec());
            refused(&path, &file, &[key, "stands for none"]);
        }
    }
}

#[test]
fn metadata_that_is_not_a_number_is_refused_by_name() {
    let path = TempPath::new("nan");
    let plain = family("llama-yarn");
    let floats = plain.keys.iter().filter(|k| k.1 == w::F32).map(|k| k.0.clone());
    for key in floats.chain(["llama.rope.freq_base".into(), "llama.anything".into()]) {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut file = plain.clone();
            set(&mut file, &key, w::F32, value.to_le_bytes().to_vec());
            refused(&path, &file, &[&key, "not a finite number"]);
            set(&mut file, &key, w::ARRAY, array(w::F32, 1, &value.to_le_bytes()));
            refused(&path, &file, &[&key, "not a finite number"]);
        }
    }
}

#[test]
fn gguf_files_that_are_no_model_say_what_they_are() {
    let path = TempPath::new("kinds");
    let model = family("qwen2-q8");
    let of = |change: &dyn Fn(&mut GgufWriter)| {
        let mut file = model.clone();
        change(&mut file);
        file
    };
    let typed = |ty: &'static str| {
        of(&|f| {
            f.str("general.type", ty);
        })
    };
    let arch = |name: &'static str| of(&|f| f.keys[0].2 = w::string(name.as_bytes()));
    let lora = of(&|f| f.tensors.iter_mut().for_each(|t| t.name.push_str(".lora_a")));
    for (file, says) in [
        (typed("adapter"), "LoRA adapter"),
        (lora, "LoRA adapter"),
        (typed("imatrix"), "importance matrix"),
        (of(&|f| f.tensors[0].name = "blk.0.attn_q.weight.in_sum2".into()), "importance matrix"),
        (typed("mmproj"), "sees or hears"),
        (arch("clip"), "sees or hears"),
        (arch("controlvector"), "control vector"),
        (of(&|f| f.tensors.clear()), "vocabulary without weights"),
        (typed("vocab"), "vocabulary without weights"),
    ] {
        refused(&path, &file, &["this is ", says, "give"]);
    }
    let mut imatrix = GgufWriter::new();
    refused(&path, imatrix.str("general.type", "imatrix").u32("imatrix.chunk_count", 3), &["importance matrix"]);
}

/// Under the number of Q2_0 there are files with other blocks, of before llama.cpp had the type, and a fork has numbers of its own.
#[test]
fn blocks_that_are_not_those_of_q2_0_are_refused_with_the_reason() {
    let path = TempPath::new("older");
    let plain = family("qwen3-q2");
    logits(&path, &plain);
    let mut older = plain.clone();
    for tensor in older.tensors.iter_mut().filter(|t| t.type_id == 42) {
        tensor.data.truncate(tensor.dims.iter().product::<u64>() as usize / 128 * 34);
    }
    refused(&path, &older, &["blocks of 128", "g64"]);
    let mut forked = plain;
    forked.tensors[0].type_id = 142;
    refused(&path, &forked, &["142", "fork", "g64"]);
}

#[test]
fn families_near_to_one_that_runs_are_refused_by_name_with_the_reason() {
    let path = TempPath::new("near");
    for (name, why) in
        [("qwen3next", "other tensors"), ("granite_swa", "sinks"), ("gemma3n", "embeddings"), ("qwen4exp", "sparse")]
    {
        let mut file = family("qwen3-q8");
        file.keys[0].2 = w::string(name.as_bytes());
        refused(&path, &file, &[name, why, "this engine runs: llama"]);
    }
}

#[test]
fn mamba_that_does_not_fit_is_refused_by_its_key_or_tensor() {
    let path = TempPath::new("mamba");
    for arch in ["granitehybrid", "falcon-h1"] {
        let plain = family(&format!("{arch}-q8"));
        let want = logits(&path, &plain);
        for (key, n, why) in [
            ("group_count", 5, "do not divide"),
            ("time_step_rank", 7, "do not divide"),
            ("time_step_rank", if arch == "falcon-h1" { 96 } else { 128 }, "a multiple of 4"),
            ("inner_size", 100, "multiple of 32"),
            ("inner_size", 1 << 30, "262144 at most"),
            ("state_size", 12, "multiple of 8"),
            ("state_size", 1 << 20, "1024 at most"),
            ("state_size", 0, "is 0"),
        ] {
            let (mut file, key) = (plain.clone(), format!("{arch}.ssm.{key}"));
            set(&mut file, &key, w::U32, u32::to_le_bytes(n).to_vec());
            refused(&path, &file, &[&key, why]);
            file.keys.retain(|k| k.0 != key);
            refused(&path, &file, &[&key]);
        }
        for tensor in ["in.weight", "conv1d.weight", "conv1d.bias", "dt.bias", "a", "d", "norm.weight", "out.weight"] {
            let (mut file, name) = (plain.clone(), format!("blk.0.ssm_{tensor}"));
            file.tensors.retain(|t| t.name != name);
            refused(&path, &file, &[&name]);
        }
        for n_tap in [1u32, 65] {
            let mut file = plain.clone();
            set(&mut file, &format!("{arch}.ssm.conv_kernel"), w::U32, n_tap.to_le_bytes().to_vec());
            refused(&path, &file, &["a convolution over"]);
        }
        // The converter of one names the norm before the FFN without an end; the other spelling is the same, and one of both too many.
        let mut other = plain;
        let norm = other.tensors.iter().position(|t| t.name.starts_with("blk.1.ffn_norm")).expect("a norm");
        let full = arch == "granitehybrid";
        other.tensors[norm].name = if full { "blk.1.ffn_norm" } else { "blk.1.ffn_norm.weight" }.into();
        assert!(logits(&path, &other) == want, "{arch}");
        let mut twice = other.tensors[norm].clone();
        twice.name = if full { "blk.1.ffn_norm.weight" } else { "blk.1.ffn_norm" }.into();
        other.tensors.push(twice);
        refused(&path, &other, &["tensor blk.1.ffn_norm is not one"]);
    }
}

/// Bytes of the scale of a block, f16 unless `None`, and of the block; of floats an element.
fn scale_of(ty: u32) -> (usize, usize, &'static [u8]) {
    match ty {
        0 => (0, 4, &[0, 0, 0xc0, 0x7f]),
        1 => (0, 2, &[0, 0x7e]),
        30 => (0, 2, &[0xc0, 0x7f]),
        2 => (0, 18, &[0, 0x7e]),
        3 => (0, 20, &[0, 0x7c]),
        6 => (0, 22, &[0, 0x7e]),
        7 => (0, 24, &[0, 0x7e]),
        8 => (0, 34, &[0, 0x7e]),
        10 => (80, 84, &[0, 0xfc]),
        11 => (108, 110, &[0, 0x7e]),
        12 => (2, 144, &[0, 0x7e]),
        13 => (0, 176, &[0, 0x7c]),
        14 => (208, 210, &[0, 0x7e]),
        20 => (0, 18, &[0, 0x7c]),
        23 => (0, 136, &[0, 0x7e]),
        16 => (0, 66, &[0, 0x7e]),
        17 => (0, 74, &[0, 0x7c]),
        18 => (0, 98, &[0, 0x7e]),
        21 => (0, 110, &[0, 0x7e]),
        22 => (0, 82, &[0, 0xfc]),
        34 => (52, 54, &[0, 0x7e]),
        35 => (64, 66, &[0, 0x7c]),
        39 => (0, 17, &[0xff]),
        41 | 42 => (0, 18, &[0, 0x7e]),
        ty => panic!("type {ty}"),
    }
}

/// In each tensor of several models one number is damaged, in a row in the middle; every kernel set finds it, in a batch and
/// token by token, whatever the cache makes of it.
#[test]
fn a_weight_that_is_not_a_number_is_found_and_named() {
    let path = TempPath::new("weights");
    let few = lowkey_test_kit::emulated().is_some();
    let names: &[&str] = if few {
        &["llama-mix", "llama-grids-mix"]
    } else {
        &[
            "llama-mix",
            "llama-grids-mix",
            "phi3-mix",
            "qwen2-q8",
            "gemma2-q8",
            "gemma3-q8",
            "lfm2-q8",
            "qwen35-q8",
            "qwen35moe-q8",
            "granitehybrid-q8",
            "falcon-h1-q8",
        ]
    };
    let mut plain: Vec<(&str, GgufWriter)> = names.iter().map(|&name| (name, family(name))).collect();
    plain.push(("tiny-gqa", take_apart("tiny-gqa.gguf")));
    for (name, plain) in plain {
        for (i, tensor) in plain.tensors.iter().enumerate() {
            let (offset, n_block, bad) = scale_of(tensor.type_id);
            let n_rows: u64 = tensor.dims[1..].iter().product();
            // The first row is that of a token which the text does not have: it counts where the table is the output too.
            let tied = plain.tensors.iter().all(|t| t.name != "output.weight");
            let row = if tensor.name == "token_embd.weight" { usize::from(!tied) } else { n_rows as usize / 2 };
            let mut file = plain.clone();
            let data = &mut file.tensors[i].data;
            // Of a mixture's experts each, for who knows which are chosen.
            let n_expert = if tensor.name.contains("_exps") { tensor.dims[2] as usize } else { 1 };
            let row = if n_expert > 1 { row % tensor.dims[1] as usize } else { row };
            let n_bytes = data.len() / n_expert;
            for expert in data.chunks_mut(n_bytes) {
                let start = expert.len() / (n_rows as usize / n_expert) * row + offset;
                assert!(start + bad.len() <= expert.len() && n_block > 0);
                expert[start..start + bad.len()].copy_from_slice(bad);
            }
            let says = format!("tensor {}", tensor.name);
            let model = match load(&path, &file) {
                Ok(_) => found_by_all(&path, &format!("{name}: {says}")),
                // Norms and biases are read when the model is loaded.
                Err(line) => line,
            };
            let is_vector = |part: &str| tensor.name.trim_end_matches(".weight").ends_with(part);
            let is_row = n_rows > 1 && !["conv.conv", "conv1d", "ssm_a", "ssm_d", "ssm_norm"].into_iter().any(is_vector);
            let place = if is_row { format!("{says}, row {row}: ") } else { says };
            assert!(model.contains(&place) && model.contains("the file is damaged; fetch it again"), "{name}: {place}: {model}");
        }
    }
}

/// Each expert alone: it is found in the pass in which a token first chooses it, which may come long after a sound one.
#[test]
fn a_damaged_expert_is_found_when_a_token_first_chooses_it() {
    let path = TempPath::new("experts");
    let plain = family("qwen3moe-q8");
    let at = plain.tensors.iter().position(|t| t.name == "blk.0.ffn_gate_exps.weight").expect("experts");
    let (n_rows, n_expert) = (plain.tensors[at].dims[1] as usize, plain.tensors[at].dims[2] as usize);
    let (mut n_found, mut n_late) = (0, 0);
    for expert in 0..n_expert {
        let mut file = plain.clone();
        let data = &mut file.tensors[at].data;
        let row_bytes = data.len() / (n_rows * n_expert);
        data[(expert * n_rows + 1) * row_bytes..][..2].copy_from_slice(&[0, 0x7e]);
        std::fs::write(&path.0, file.build()).expect("a temporary file");
        let mut session = lowkey_test_kit::session(&path.0, &params(1 << 20));
        if let Some((nth, error)) = (1..40u32).find_map(|token| session.step(token).err().map(|error| (token, error))) {
            let place = format!("tensor blk.0.ffn_gate_exps.weight, row {}: a scale", expert * n_rows + 1);
            assert!(error.to_string().contains(&place), "{error}");
            (n_found, n_late) = (n_found + 1, n_late + usize::from(nth > 1));
        }
    }
    assert_eq!(n_found, n_expert, "some of forty tokens choose each of {n_expert}");
    assert!(n_late > 0, "the first token chooses all of them: this tries nothing");
}

/// The message that all sets agree on.
fn found_by_all(path: &TempPath, label: &str) -> String {
    let mut lines = Vec::new();
    for kernels in Kernels::available() {
        for (kv_type, together) in [(KvType::F16, 1), (KvType::F16, 8), (KvType::Q4H, 1), (KvType::Q8_0, 8)] {
            let (k_type, v_type) = (Some(kv_type), Some(kv_type));
            let params = SessionParams { kernels: kernels.name().into(), k_type, v_type, ..params(1 << 20) };
            let mut session = lowkey_test_kit::session(&path.0, &params);
            let tokens: Vec<u32> = (1..=together).collect();
            let outcome = session.prefill(&tokens, |_| true).map(|_| ());
            let line = outcome.expect_err(&format!("{label}: {} {kv_type:?} {together}", kernels.name())).to_string();
            assert!(!line.contains('\n'));
            lines.push(line);
        }
    }
    lines.dedup();
    assert_eq!(lines.len(), 1, "{label}: {lines:?}");
    lines.remove(0)
}

#[test]
fn every_command_that_computes_ends_with_the_name_of_a_damaged_tensor() {
    let path = TempPath::new("commands");
    let mut file = take_apart("tiny-gqa.gguf");
    let down = file.tensors.iter_mut().find(|t| t.name == "blk.1.ffn_down.weight").expect("a tensor");
    let row_bytes = down.data.len() / down.dims[1] as usize;
    down.data[3 * row_bytes..][..2].copy_from_slice(&[0, 0x7e]);
    std::fs::write(&path.0, file.build()).expect("a temporary file");
    let (model, text) = (path.0.to_str().expect("UTF-8"), lowkey_test_kit::data("prose.txt"));
    let text = text.to_str().expect("UTF-8");
    for args in [
        &["run", "-m", model, "-p", "Hello", "-n", "4"][..],
        &["run", "-m", model, "-f", text, "-n", "4", "--json"],
        &["eval", "ppl", "-m", model, "-f", text, "--ctx", "64", "--windows", "1"],
        &["bench", "-m", model, "-p", "16", "-n", "2", "-r", "1"],
    ] {
        let out = lowkey_test_kit::lowkey!().args(args).output().expect("the binary starts");
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}: {said}");
        let wanted = "tensor blk.1.ffn_down.weight, row 3: a scale is not a number: the file is damaged; fetch it again";
        assert!(said.trim_end().ends_with(wanted), "{args:?}: {said}");
    }
}
