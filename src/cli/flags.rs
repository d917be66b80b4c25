//! What the command line calls the settings of the library.

use crate::error::{Message, Setting};

/// The flag of a setting, and what stands behind it where it is a remedy.
fn flag(setting: Setting) -> &'static str {
    match setting {
        Setting::KvBudget => "--kv-budget",
        Setting::Evict => "--evict",
        Setting::Sinks => "--sinks",
        Setting::Recent => "--recent",
        Setting::Batch => "--batch",
        Setting::Threads => "--threads",
        Setting::Kernels => "--kernels",
        Setting::Memory => "--memory",
        Setting::Mlock => "--mlock",
        Setting::System => "--system",
        Setting::PinSystem => "--pin-system=false",
        Setting::Template => "--template",
        Setting::Temp => "--temp",
        Setting::TopP => "--top-p",
        Setting::MinP => "--min-p",
        Setting::RepeatPenalty => "--repeat-penalty",
        Setting::RepeatLastN => "--repeat-last-n",
        Setting::File => "--file",
        Setting::Lengths => "--lengths",
        Setting::Plot => "--plot",
        Setting::Pack => "`lowkey pack`",
        Setting::PackAnew => "`lowkey pack --force`",
        Setting::PackCheck => "`lowkey pack --verify`",
        Setting::Own(name) => name,
    }
}

/// A message of the library as a user of the command line reads it.
pub fn spelled(message: &Message) -> String {
    message.spelled(&|setting| flag(setting).to_owned())
}
