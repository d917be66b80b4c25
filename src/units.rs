//! Sizes as people write them: `4MiB`, `512KiB`, `2GiB` or plain bytes. Nothing else is guessed: `4MB` is refused
//! with the spelling that would do, since a budget that is signed off must not depend on which mega was meant.

use std::fmt;
use std::str::FromStr;

/// A count of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let help = || format!("'{text}' is not a size; write bytes, or a number with KiB, MiB or GiB, such as 4MiB");
        let (digits, unit) = match UNITS.iter().find(|(name, _)| text.ends_with(name)) {
            Some((name, unit)) => (text[..text.len() - name.len()].trim_end(), *unit),
            None => (text, 1),
        };
        if let Ok(whole) = digits.parse::<u64>() {
            return whole.checked_mul(unit).map(Bytes).ok_or_else(help);
        }
        // Fractions such as 1.5MiB: only of a unit, and only in plain decimal.
        let plain = digits.bytes().all(|b| b.is_ascii_digit() || b == b'.') && digits.starts_with(|c: char| c.is_ascii_digit());
        match digits.parse::<f64>() {
            Ok(value) if unit > 1 && plain && value * unit as f64 <= u64::MAX as f64 => Ok(Bytes((value * unit as f64) as u64)),
            _ => Err(help()),
        }
    }
}

/// The number in front of a `%`, if it is one from 0 to 100.
pub fn percent(text: &str) -> Option<f64> {
    text.strip_suffix('%')?.parse().ok().filter(|p| (0.0..=100.0).contains(p))
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = match UNITS.iter().find(|(_, unit)| self.0 >= *unit) {
            Some((name, unit)) if self.0 % unit == 0 => format!("{} {name}", self.0 / unit),
            Some((name, unit)) => format!("{:.1} {name}", self.0 as f64 / *unit as f64),
            None => format!("{} B", self.0),
        };
        f.pad(&shown)
    }
}

#[cfg(test)]
#[path = "../tests/unit/units.rs"]
mod tests;
