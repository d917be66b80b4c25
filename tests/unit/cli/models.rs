//! Tests of `cli::models`.

#[test]
fn the_manifest_is_readable_and_unknown_names_are_refused() {
    assert!(super::manifest().iter().any(|e| e.name == "smollm2-135m-instruct"));
    for e in super::manifest() {
        assert!(crate::model::arch::Arch::known().split(", ").any(|arch| arch == e.arch), "{}: a family that runs", e.name);
        assert!(e.sha256.is_some() || e.sources.iter().all(|s| s.kind == "page" && s.url.is_some()), "{}: a page", e.name);
        assert!(e.sha256.as_ref().is_none_or(|sum| sum.len() == 64) && !e.boards().is_empty());
    }
    let error = super::resolve("smollm3-3b".as_ref()).unwrap_err().to_string();
    let way = if cfg!(feature = "pull") { "run `lowkey pull smollm3-3b`" } else { "download SmolLM3-Q4_K_M.gguf from https://" };
    assert!(error.contains(way), "{error}");
    let error = super::resolve("no-such-model".as_ref()).unwrap_err().to_string();
    assert!(error.contains("smollm2-135m-instruct") && error.starts_with("--model"), "{error}");
}
