//! What the board says of itself: how warm it is, whether it is throttled, what has gone to swap. Linux's files; a machine that has
//! none of them says nothing.

use std::path::Path;

/// What there is to say; `None` where the machine does not tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sensors {
    /// The warmest zone, in degrees Celsius.
    pub temperature_c: Option<f64>,
    /// What the firmware of a Raspberry Pi says, as `vcgencmd get_throttled` prints it: bits 0 to 3 are now (too low a voltage, a
    /// capped frequency, throttled, the soft limit of temperature), bits 16 to 19 the same since it was started.
    pub throttled: Option<u32>,
    /// Bytes of this process that have gone to swap, which may be compressed memory (zram).
    pub swapped_bytes: Option<u64>,
}

/// The bits of `throttled`, now and 16 higher for "since the start".
const THROTTLED: [(u32, &str); 4] =
    [(1, "the voltage is too low"), (2, "the frequency is capped"), (4, "throttled"), (8, "at the soft limit of temperature")];

/// Where a Raspberry Pi's kernel tells it, with a driver's older name.
const THROTTLED_FILES: [&str; 2] = [
    "sys/devices/platform/soc/soc:firmware/get_throttled",
    "sys/devices/platform/soc/soc:firmware/raspberrypi-hwmon/get_throttled",
];

/// A field of /proc/self/status, such as `VmRSS`, out of its text.
pub fn status_bytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

impl Sensors {
    pub fn read() -> Sensors {
        Sensors::below(Path::new("/"))
    }

    /// The same with the files of another root.
    fn below(root: &Path) -> Sensors {
        let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
        let zones = std::fs::read_dir(root.join("sys/class/thermal")).into_iter().flatten().flatten();
        let of_zone = |entry: std::fs::DirEntry| {
            entry.file_name().to_str().filter(|name| name.starts_with("thermal_zone"))?;
            std::fs::read_to_string(entry.path().join("temp")).ok()?.trim().parse::<f64>().ok()
        };
        // Thousandths of a degree; a sensor that is off says 0 or less.
        let temperatures = zones.filter_map(of_zone).map(|thousandths| thousandths / 1000.0).filter(|degrees| *degrees > 0.0);
        let throttled =
            THROTTLED_FILES.iter().find_map(|path| u32::from_str_radix(text(path)?.trim().trim_start_matches("0x"), 16).ok());
        let status = text("proc/self/status").unwrap_or_default();
        Sensors { temperature_c: temperatures.max_by(f64::total_cmp), throttled, swapped_bytes: status_bytes(&status, "VmSwap") }
    }

    /// Whether the board runs slower than it could, or has begun to swap.
    pub fn is_held_back(&self) -> bool {
        self.throttled.is_some_and(|bits| bits & 0xf != 0) || self.swapped_bytes.is_some_and(|bytes| bytes > 0)
    }

    /// A line for people; empty where nothing is told, and where nothing was amiss but the temperature is unknown.
    pub fn line(&self) -> String {
        let mut parts: Vec<String> = self.temperature_c.iter().map(|degrees| format!("{degrees:.0} °C")).collect();
        if let Some(bits) = self.throttled {
            let said = |shift: u32| THROTTLED.iter().filter(move |(bit, _)| bits >> shift & bit != 0).map(|(_, what)| *what);
            let (now, ever): (Vec<_>, Vec<_>) = (said(0).collect(), said(16).collect());
            parts.push(match (now.is_empty(), ever.is_empty()) {
                (true, true) => "not throttled".into(),
                (true, false) => format!("not throttled now; since it was started: {}", ever.join(", ")),
                (false, _) => now.join(", "),
            });
        }
        if let Some(bytes) = self.swapped_bytes.filter(|bytes| *bytes > 0) {
            parts.push(format!("{} of this program are in swap", crate::units::Bytes(bytes)));
        }
        parts.join("; ")
    }
}

#[cfg(test)]
#[path = "../tests/unit/sensors.rs"]
mod tests;
