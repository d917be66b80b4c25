//! Writes the manual pages and the completions of bash, zsh and fish, as the command line describes itself:
//! `cargo run --example man_and_completions -- FOLDER YYYY-MM-DD`, the date being that of the pages. `make man` calls it.

use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};

const MANUAL: &str = "lowkey";

/// A section of one or more paragraphs, each with the term that it explains, if any.
fn section(page: &mut dyn Write, title: &str, paragraphs: &[(&str, &str)]) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", [title]);
    for (term, text) in paragraphs {
        if !term.is_empty() {
            roff.control("TP", []).text([bold(*term)]);
        }
        roff.text([roman(*text)]);
    }
    roff.to_writer(page)
}

/// What holds for the service alone.
fn of_serve(page: &mut dyn Write) -> io::Result<()> {
    let signals = "No more connections are taken, answers under way have --stop-wait seconds, then the server ends with 0. A second one ends it at once.";
    section(page, "SIGNALS", &[("SIGTERM, SIGINT", signals)])?;
    let notify = "As systemd sets them (sd_notify(3)): the server says when it is ready, when it stops, and between passes that it is alive.";
    section(page, "SERVICE MANAGER", &[("NOTIFY_SOCKET, WATCHDOG_USEC", notify)])?;
    let files = [
        ("/etc/default/lowkey", "Settings of lowkey.service, as variables."),
        ("/srv/lowkey", "A good place for models: the service sees nothing below /home, /root and /tmp."),
    ];
    section(page, "FILES", &files)
}

/// Stands for a line break while a page is made; no help text has it.
const BREAK: char = '\u{2028}';

/// The same command; what its help texts break into lines, such as tables, stays so.
fn with_breaks(command: Command) -> Command {
    let help = |arg: clap::Arg| match arg.get_help().map(ToString::to_string) {
        Some(text) if text.contains('\n') => arg.help(text.replace('\n', &BREAK.to_string())),
        _ => arg,
    };
    command.mut_args(help).mut_subcommands(with_breaks)
}

/// What the pages must not have: a break around an empty line, which is one already, and characters that not every roff reads.
fn tidied(page: &[u8]) -> String {
    let text = String::from_utf8_lossy(page).replace(".br\n\n.br\n", ".sp\n").replace(BREAK, "\n.br\n\\&");
    text.chars().map(|c| if c.is_ascii() { c.to_string() } else { format!("\\[u{:04X}]", c as u32) }).collect()
}

/// One page, in the order that man-pages(7) gives the sections.
fn page(command: &Command, root: &Command, date: &str) -> io::Result<String> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let source = format!("{} {}", root.get_name(), root.get_version().unwrap_or_default());
    let man = Man::new(command.clone()).title(name.to_uppercase()).date(date).source(source).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    if name == "lowkey-serve" {
        of_serve(&mut page)?;
    }
    let codes = [
        ("0", "Done."),
        ("1", "Something failed, or does not fit into memory."),
        ("2", "A flag or a variable cannot be used as it is."),
        ("130, 143", "Interrupted by SIGINT or SIGTERM."),
    ];
    section(&mut page, "EXIT STATUS", &codes)?;
    let variables = [
        (
            "LOWKEY_<FLAG>",
            "Each flag, with _ for -, where the command line does not say otherwise: LOWKEY_KV_BUDGET for --kv-budget. Empty is none; a switch is on unless its variable is 0, no, false or off.",
        ),
        ("LOWKEY_MODELS", "A folder in which models are looked for by their names."),
        ("RUST_LOG", "What is logged to standard error; has the last word over --log-level."),
    ];
    section(&mut page, "ENVIRONMENT", &variables)?;
    see_also(&mut page, command, root)?;
    Ok(tidied(&page))
}

/// The pages beside this one: the root's from all others, and those of the service from each other.
fn see_also(page: &mut dyn Write, command: &Command, root: &Command) -> io::Result<()> {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let mut others: Vec<(&str, &str)> = Vec::new();
    if command.get_name() != root.get_name() {
        others.push(("lowkey", "(1)"));
    }
    if command.get_name() == "serve" {
        others.extend([("lowkey-plan-serve", "(1)"), ("lowkey-limit", "(8)"), ("systemd.exec", "(5)")]);
    }
    let mut line = Vec::new();
    for (i, (name, in_section)) in others.into_iter().enumerate() {
        line.extend((i > 0).then(|| roman(", ")));
        line.extend([bold(name), roman(in_section)]);
    }
    let guide = [italic("/usr/share/doc/lowkey/docs/guide.md"), roman(" explains budgets, policies and models.")];
    line.extend((!line.is_empty()).then(|| roman("; ")));
    line.extend(guide);
    roff.text(line);
    roff.to_writer(page)
}

/// Its page, and those of what is below it.
fn pages(command: &Command, root: &Command, folder: &Path, date: &str) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        pages(below, root, folder, date)?;
    }
    let name = command.get_display_name().unwrap_or(command.get_name());
    std::fs::write(folder.join(format!("{name}.1")), page(command, root, date)?)
}

fn write(folder: &Path, date: &str) -> io::Result<()> {
    let (manual, completions) = (folder.join("man"), folder.join("completions"));
    // A page of a command that is no more must not stay.
    for folder in [&manual, &completions] {
        if folder.exists() {
            std::fs::remove_dir_all(folder)?;
        }
        std::fs::create_dir_all(folder)?;
    }
    let mut root = lowkey::cli::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut root, "lowkey", &completions)?;
    }
    let mut root = with_breaks(lowkey::cli::command().disable_help_subcommand(true));
    root.build();
    pages(&root, &root, &manual, date)
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, folder, date] = &args[..] else { panic!("usage: man_and_completions FOLDER YYYY-MM-DD") };
    write(Path::new(folder), date)
}
