//! What the system says about this process: resident memory, by kind. Linux's /proc; zeros elsewhere.

use crate::sensors::status_bytes;
use crate::session::DraftCounts;

/// Bytes of a field of /proc/self/status, read without allocating.
pub fn field(name: &str) -> u64 {
    use std::io::Read;
    let mut buf = [0u8; 4096];
    let Ok(mut file) = std::fs::File::open("/proc/self/status") else { return 0 };
    let mut len = 0;
    while let Ok(n) = file.read(&mut buf[len..]) {
        len += n;
        if n == 0 || len == buf.len() {
            break;
        }
    }
    let text = std::str::from_utf8(&buf[..len]).unwrap_or("");
    status_bytes(text, name).unwrap_or(0)
}

/// Anonymous memory that is resident: what the system cannot take back without swapping.
pub fn rss_anon_bytes() -> u64 {
    field("RssAnon")
}

/// Resident pages of files: the weights, the binary itself, and what was looked at of a past.
pub fn rss_file_bytes() -> u64 {
    field("RssFile")
}

/// `, 40 of 52 guessed tokens right`, of a session that guesses any.
pub fn guessed(guesses: bool, counts: DraftCounts) -> String {
    if guesses { format!(", {} of {} guessed tokens right", counts.n_right, counts.n_guessed) } else { String::new() }
}
