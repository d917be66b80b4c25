//! GGUF files (stub).
#[derive(Debug)]
pub struct GgufError;
impl std::fmt::Display for GgufError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("")
    }
}
