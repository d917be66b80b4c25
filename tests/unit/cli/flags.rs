//! Tests of `cli::flags`.

use super::*;

#[test]
fn every_setting_is_a_flag_of_some_command() {
    fn longs(command: &Command, into: &mut Vec<String>) {
        into.extend(command.get_arguments().filter_map(|arg| arg.get_long()).map(|long| format!("--{long}")));
        command.get_subcommands().for_each(|below| longs(below, into));
    }
    let mut all = Vec::new();
    longs(&<crate::cli::Cli as clap::CommandFactory>::command(), &mut all);
    // Those of the server are flags where it is built.
    let is_there = |setting: &&Setting| cfg!(feature = "serve") || !matches!(setting, Setting::Streams | Setting::Ctx);
    for &setting in Setting::ALL.iter().filter(is_there) {
        let flag = flag(setting);
        let flag = flag.trim_matches('`').trim_start_matches("lowkey pack").trim().split('=').next().unwrap_or_default();
        assert!(flag.is_empty() || all.iter().any(|long| long == flag), "{setting:?}: {flag}");
    }
}
