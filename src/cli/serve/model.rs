//! What the server tells of its model.

use xxhash_rust::xxh3::Xxh3Default;

use crate::gguf::GgufFile;
use crate::model::forward::Model;
use crate::server::http::ModelInfo;

/// Names of `general.file_type`, as files are called by them (GGUF specification).
const FILE_TYPES: [(u32, &str); 31] = [
    (0, "F32"),
    (1, "F16"),
    (2, "Q4_0"),
    (3, "Q4_1"),
    (7, "Q8_0"),
    (8, "Q5_0"),
    (9, "Q5_1"),
    (10, "Q2_K"),
    (11, "Q3_K_S"),
    (12, "Q3_K_M"),
    (13, "Q3_K_L"),
    (14, "Q4_K_S"),
    (15, "Q4_K_M"),
    (16, "Q5_K_S"),
    (17, "Q5_K_M"),
    (18, "Q6_K"),
    (19, "IQ2_XXS"),
    (20, "IQ2_XS"),
    (21, "Q2_K_S"),
    (22, "IQ3_XS"),
    (23, "IQ3_XXS"),
    (25, "IQ4_NL"),
    (26, "IQ3_S"),
    (27, "IQ3_M"),
    (28, "IQ2_S"),
    (29, "IQ2_M"),
    (30, "IQ4_XS"),
    (32, "BF16"),
    (36, "TQ1_0"),
    (37, "TQ2_0"),
    (38, "MXFP4"),
];

pub fn info(model: &Model, aliases: &[String], tags: &[String]) -> ModelInfo {
    let (file, c) = (&model.file, &model.config);
    let words = |list: &[String]| -> Vec<String> {
        list.iter().map(|word| word.trim().to_owned()).filter(|word| !word.is_empty()).collect()
    };
    let mut aliases = words(aliases);
    if aliases.is_empty() {
        aliases.push(file.path().file_stem().map_or("model".into(), |stem| stem.to_string_lossy().into_owned()));
    }
    ModelInfo {
        aliases,
        tags: words(tags),
        path: file.path().to_string_lossy().into_owned(),
        n_vocab: c.n_vocab,
        n_ctx_train: c.n_ctx,
        n_embd: c.n_embd,
        n_params: file.tensors().iter().map(|t| t.n_elems() as u64).sum(),
        file_bytes: file.file_bytes(),
        quantisation: quantisation(file),
        family: c.arch.name.to_owned(),
        modified: std::fs::metadata(file.path()).and_then(|meta| meta.modified()).ok(),
        digest: digest(file),
    }
}

/// The file's own word for it, or the type of most of its bytes.
fn quantisation(file: &GgufFile) -> String {
    let named = file.opt_u32("general.file_type").ok().flatten();
    if let Some((_, name)) = FILE_TYPES.iter().find(|(number, _)| Some(*number) == named) {
        return (*name).to_owned();
    }
    let mut sums: Vec<(&str, u64)> = Vec::new();
    for t in file.tensors() {
        match sums.iter_mut().find(|(name, _)| *name == t.ty.name()) {
            Some((_, sum)) => *sum += t.n_bytes,
            None => sums.push((t.ty.name(), t.n_bytes)),
        }
    }
    sums.iter().max_by_key(|(_, sum)| *sum).map_or("unknown".into(), |(name, _)| (*name).to_owned())
}

/// Of the file's length and its directory of tensors: other files have others.
fn digest(file: &GgufFile) -> String {
    let mut hash = Xxh3Default::new();
    hash.update(&file.file_bytes().to_le_bytes());
    for t in file.tensors() {
        hash.update(t.name.as_bytes());
        hash.update(t.ty.name().as_bytes());
        t.shape().iter().for_each(|n| hash.update(&n.to_le_bytes()));
    }
    // A few of the weights, so that two trainings of one shape are told apart.
    for t in file.tensors().iter().step_by(file.tensors().len().div_ceil(16).max(1)) {
        let data = file.data(t);
        hash.update(&data[..data.len().min(4096)]);
    }
    format!("{:032x}", hash.digest128())
}
