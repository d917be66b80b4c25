//! What a file is that does not begin as GGUF does: the first bytes tell, and so the way out can be named.

use super::error::GgufError;

const CONVERT: &str = "convert the model to GGUF with llama.cpp's convert_hf_to_gguf.py, or fetch a GGUF of it";
const UNPACK: &str = "unpack it and give the .gguf file inside";
const LINK: &str = "fetch the file itself, with the link that the site's download button has";
const GIVE: &str = "give the path of a .gguf model";
const AGAIN: &str = "fetch it again";

/// How a file begins, what it is, what to do.
const KNOWN: [(&[u8], &str, &str); 23] = [
    (b"lmgg", "a model in ggml's format, which is older than GGUF", CONVERT),
    (b"fmgg", "a model in ggml's format ggmf, which is older than GGUF", CONVERT),
    (b"tjgg", "a model in ggml's format ggjt, which is older than GGUF", CONVERT),
    (b"algg", "a LoRA adapter in ggml's format, which is older than GGUF", "merge it into its model and convert that"),
    (b"nsgg", "a saved session of llama.cpp", GIVE),
    (b"qsgg", "a saved state of llama.cpp", GIVE),
    (b"\x1f\x8b", "a file compressed with gzip", UNPACK),
    (b"\xfd7zXZ\0", "a file compressed with xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "a file compressed with zstd", UNPACK),
    (b"\x04\x22\x4d\x18", "a file compressed with lz4", UNPACK),
    (b"BZh", "a file compressed with bzip2", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"PK", "a zip archive", UNPACK),
    (b"\x80", "a Python pickle, such as a PyTorch checkpoint", CONVERT),
    (b"\x89HDF", "an HDF5 file, such as Keras weights", CONVERT),
    (b"\x93NUMPY", "an array of NumPy", CONVERT),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, which stands for the model",
        "run `git lfs pull` in its folder, or fetch the file itself",
    ),
    (b"LOWKEYPK", "a pack, which lies beside a model", "give the .gguf file that it is named after"),
    (b"MZ", "a program, such as a llamafile", UNPACK),
    (b"\x7fELF", "a program", GIVE),
    (b"<?xml", "XML, such as a server's refusal", LINK),
    (b"<", "a web page", LINK),
];

/// The refusal of a file that begins with `bytes`, a few hundred of which are enough.
pub(super) fn refusal(bytes: &[u8]) -> GgufError {
    let (what, advice) = name(bytes);
    GgufError::Foreign { start: bytes[..bytes.len().min(4)].to_vec(), what, advice }
}

fn name(bytes: &[u8]) -> (&'static str, &'static str) {
    let start = &bytes[..bytes.len().min(512)];
    let has = |part: &[u8]| start.windows(part.len()).any(|at| at == part);
    // A byte order mark and blanks before a text.
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    match text {
        _ if start.iter().all(|&byte| byte == 0) => return ("zeros, such as a download that has not arrived", AGAIN),
        _ if start.get(8..10) == Some(b"{\"") => return ("safetensors", CONVERT),
        _ if start.starts_with(b"PK") && has(b".pkl") => return ("a PyTorch checkpoint (a zip archive)", CONVERT),
        _ if start.starts_with(b"PK") && has(b".npy") => return ("arrays of NumPy (a zip archive)", CONVERT),
        _ if start.get(257..262) == Some(b"ustar") => return ("a tar archive", UNPACK),
        _ if start.get(4..8) == Some(b"TFL3") => return ("a TensorFlow Lite model", CONVERT),
        // A count, the length of a name, and the name of a tensor.
        _ if start.get(8..12) == Some(b"blk.") => {
            return ("an importance matrix, which guides quantising", "give the file of the model");
        }
        [b'{' | b'[', ..] if has(b"\"error\"") => return ("a server's refusal (JSON)", LINK),
        [b'{' | b'[', ..] if has(b"weight_map") => return ("the index of safetensors files (JSON)", CONVERT),
        [b'{' | b'[', ..] => return ("JSON, such as a model's configuration", GIVE),
        _ => {}
    }
    let known = KNOWN.iter().find(|(begin, ..)| start.starts_with(begin) || text.starts_with(begin));
    match known {
        Some(&(_, what, advice)) => (what, advice),
        // A character may be cut at the end.
        None if std::str::from_utf8(start).map_or_else(|e| e.error_len().is_none(), |_| true) && !has(b"\0") => {
            ("a text file", GIVE)
        }
        None => ("a file of an unknown kind", GIVE),
    }
}
