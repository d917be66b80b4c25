//! Tests of `cli::pull::source`: which files of a repository are meant.

use super::{Listed, by_address, choose, escaped, file_name, is_quant, part_of};

fn listed(paths: &[&str]) -> Vec<Listed> {
    paths.iter().map(|path| Listed { path: path.to_string(), size: 1, lfs: None }).collect()
}

fn chosen(paths: &[&str], file: Option<&str>) -> Result<Vec<String>, String> {
    let listed = listed(paths);
    let found = choose(&listed, "owner/repo", file).map_err(|e| e.to_string())?;
    Ok(found.into_iter().map(|f| f.path.clone()).collect())
}

#[test]
fn a_file_a_quantisation_or_the_usual_one_is_chosen() {
    let repo = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "m-IQ4_K_M.gguf", "mmproj-m-Q8_0.gguf", "m.imatrix.gguf"];
    assert_eq!(chosen(&repo, None), Ok(vec!["m-Q4_K_M.gguf".into()]));
    assert_eq!(chosen(&repo, Some("q8_0")), Ok(vec!["m-Q8_0.gguf".into()]));
    assert_eq!(chosen(&repo, Some("m-IQ4_K_M.gguf")), Ok(vec!["m-IQ4_K_M.gguf".into()]));
    let error = chosen(&repo, Some("Q2_K")).unwrap_err();
    assert!(error.contains("which file?") && error.contains("m-Q8_0.gguf") && !error.contains("mmproj"), "{error}");
    assert_eq!(chosen(&["only.gguf"], None), Ok(vec!["only.gguf".into()]));
    assert!(chosen(&["model.safetensors"], None).unwrap_err().contains("no GGUF file"));
    assert!(chosen(&["a-Q4_K_M.gguf", "b-Q4_K_M.gguf"], None).unwrap_err().contains("several files"));
}

#[test]
fn a_model_in_parts_is_all_its_parts() {
    let parts = ["Q4_K_M/m-Q4_K_M-00001-of-00002.gguf", "Q4_K_M/m-Q4_K_M-00002-of-00002.gguf", "m-Q8_0.gguf"];
    assert_eq!(chosen(&parts, Some("Q4_K_M")).unwrap(), parts[..2]);
    assert_eq!(chosen(&parts, Some("m-Q4_K_M-00001-of-00002.gguf")).unwrap(), parts[..2]);
    assert!(chosen(&parts[..1], None).unwrap_err().contains("lacks Q4_K_M/m-Q4_K_M-00002-of-00002.gguf"));
    assert_eq!(part_of("m-00002-of-00003.gguf"), Some(("m", 2, 3)));
    for name in ["m-2-of-3.gguf", "m-00001-of-00000.gguf", "m-00000-of-00002.gguf", "m-00003-of-00002.gguf"] {
        assert_eq!(part_of(name), None, "{name}");
    }
    let parts = by_address("https://example.org/m-00002-of-00003.gguf?x").expect("parts");
    assert_eq!(
        parts.iter().map(|part| part.url.as_str()).collect::<Vec<_>>(),
        [
            "https://example.org/m-00001-of-00003.gguf?x",
            "https://example.org/m-00002-of-00003.gguf?x",
            "https://example.org/m-00003-of-00003.gguf?x"
        ]
    );
}

#[test]
fn a_quantisation_is_a_word_of_its_own() {
    assert!(
        is_quant("m-Q4_K_M.gguf", "Q4_K_M") && is_quant("m.q4_k_m.gguf", "Q4_K_M") && is_quant("Q4_K_M/model.gguf", "Q4_K_M")
    );
    assert!(!is_quant("m-IQ4_K_M.gguf", "Q4_K_M") && !is_quant("m-Q4_K_M-draft.gguf", "Q4_K_M"));
}

#[test]
fn names_of_strangers_stay_in_the_folder() {
    for name in ["../m.gguf", "a/b.gguf", ".m.gguf", "m.txt", "", "m\n.gguf", "m\u{202e}.gguf", ".gguf"] {
        assert!(file_name(name).is_err(), "{name:?}");
    }
    let wanted = by_address("https://example.org/a/b/m.gguf?x=/y.gguf#z").expect("a file");
    assert_eq!((wanted.len(), wanted[0].file.as_str(), wanted[0].is_hub), (1, "m.gguf", false));
    assert!(by_address("https://example.org/").is_err());
    assert_eq!(escaped("a b/ü.gguf"), "a%20b/%C3%BC.gguf");
}
