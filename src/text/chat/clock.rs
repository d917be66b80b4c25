//! `strftime_now` of templates: local time, written as Python's `datetime.now().strftime` writes it on Linux in the C locale.

use jiff::fmt::strtime::{BrokenDownTime, Config, PosixCustom};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// What `strftime` writes, but for fractions and zones.
const CODES: &str = "aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyY%";

/// What time it is.
pub enum Clock {
    /// The system's, in the zone of `TZ` or of `/etc/localtime`.
    System,
    /// Always `seconds` since 1970, in a zone as `TZ` names it.
    Fixed { seconds: i64, zone: String },
}

impl Clock {
    fn now(&self) -> Zoned {
        match self {
            Clock::System => Timestamp::now()
                .to_zoned(TimeZone::try_system().unwrap_or_else(|_| zone(&std::env::var("TZ").unwrap_or_default()))),
            Clock::Fixed { seconds, zone: name } => Timestamp::from_second(*seconds).unwrap_or_default().to_zoned(zone(name)),
        }
    }

    pub fn strftime(&self, format: &str) -> String {
        let (now, mut spelt) = (self.now(), String::with_capacity(format.len() + 8));
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            spelt.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            // Flags, a width, and what asks for another calendar's names, of which C knows none.
            let shape = rest.len() - rest.trim_start_matches(|c| "-_0^#123456789".contains(c)).len();
            let tail = &rest[shape..];
            let code = tail.strip_prefix(['E', 'O']).unwrap_or(tail);
            match code.chars().next() {
                Some('f') => spelt.push_str("%6f"),
                // A time of `datetime.now()` knows no zone.
                Some('Z' | 'z') => {}
                Some(c) if CODES.contains(c) && shape < 4 => spelt.extend(["%", &rest[..shape], &code[..1]]),
                // As it is written.
                _ => {
                    spelt.push_str("%%");
                    continue;
                }
            }
            rest = &code[1..];
        }
        spelt.push_str(rest);
        let config = Config::new().custom(PosixCustom::new()).lenient(true);
        BrokenDownTime::from(&now).to_string_with_config(&config, &spelt).unwrap_or_default()
    }
}

/// A zone by its name, or by a rule such as `JST-9`; one that says nothing of when summer time is has it as in the United States.
/// What is neither counts as UTC, as it does to C libraries.
fn zone(name: &str) -> TimeZone {
    let name = name.strip_prefix(':').unwrap_or(name);
    TimeZone::get(name)
        .or_else(|_| TimeZone::posix(name))
        .or_else(|_| TimeZone::posix(&format!("{name},M3.2.0,M11.1.0")))
        .unwrap_or(TimeZone::UTC)
}
