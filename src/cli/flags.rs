//! Flags and their variables: every flag also reads `LOWKEY_<FLAG>`, and what the library calls a setting is a flag here, or
//! the variable that gave it.
//!
//! A variable stands in where the command line does not say otherwise: it is put among the arguments, before they are parsed,
//! unless it is empty, or its flag or one that excludes it was given, or it needs a flag that was not.

use std::ffi::{OsStr, OsString};
use std::sync::OnceLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::error::{Message, Setting};

/// The flag of a setting, as a remedy where it is always one.
fn flag(setting: Setting) -> String {
    let mut flag = String::from("-");
    match setting {
        Setting::Own(name) => return name.to_owned(),
        Setting::PinSystem => return "--pin-system=false".to_owned(),
        Setting::Pack => return "`lowkey pack`".to_owned(),
        Setting::PackAnew => return "`lowkey pack --force`".to_owned(),
        Setting::PackCheck => return "`lowkey pack --verify`".to_owned(),
        _ => format!("{setting:?}").chars().for_each(|c| {
            flag.extend(c.is_uppercase().then_some('-'));
            flag.push(c.to_ascii_lowercase());
        }),
    }
    flag
}

/// Flags that variables gave, and the variables.
static FROM_VARIABLES: OnceLock<Vec<Variable>> = OnceLock::new();

/// A message of the library as a user of the command line reads it.
pub fn spelled(message: &Message) -> String {
    message.spelled(&|setting| {
        let flag = flag(setting);
        let is = |v: &&Variable| v.flag.trim_start_matches('-') == flag.trim_start_matches('-');
        FROM_VARIABLES.get().and_then(|all| all.iter().find(is)).map_or(flag.clone(), |v| v.name.clone())
    })
}

/// One that is set and counts.
struct Variable {
    /// With its dashes.
    flag: String,
    name: String,
    argument: OsString,
}

/// Parses the arguments and the variables.
pub fn parse(command: fn() -> Command, args: &[OsString]) -> Result<ArgMatches, clap::Error> {
    let command = || bear_minus(command());
    let is_ours = |(name, _): (OsString, OsString)| name.as_encoded_bytes().starts_with(PREFIX.as_bytes());
    if !std::env::vars_os().any(is_ours) {
        return command().try_get_matches_from(args).map_err(|error| named(explained(&command(), args, error), &[], args));
    }
    // One tree of commands at a time: each takes more than a megabyte.
    let (mut variables, at) = {
        let mut relaxed = command().ignore_errors(true);
        let given = relaxed.try_get_matches_from_mut(args)?;
        let (leaf, matches, at) = leaf(&relaxed, &given, args);
        (variables(leaf, matches), at)
    };
    let with = |variables: &[Variable]| {
        let inserted = variables.iter().map(|v| &v.argument);
        command().try_get_matches_from(args[..at].iter().chain(inserted).chain(&args[at..]))
    };
    let mut parsed = with(&variables);
    if let Err(error) = &parsed {
        // A variable that needs a flag which nobody gave says nothing.
        let (missing, anyway) = (lacking(error), with(&[]).err().map_or(Vec::new(), |e| lacking(&e)));
        if missing.iter().any(|flag| !anyway.contains(flag)) {
            variables.retain(|v| match with(std::slice::from_ref(v)) {
                Err(alone) => !lacking(&alone).iter().any(|flag| missing.contains(flag) && !anyway.contains(flag)),
                Ok(_) => true,
            });
            parsed = with(&variables);
        }
    }
    let variables = FROM_VARIABLES.get_or_init(|| variables);
    parsed.map_err(|error| named(explained(&command(), args, error), variables, args))
}

/// Where a flag that was given lacks another one: which it is, for the parser names the other alone.
fn explained(command: &Command, args: &[OsString], error: clap::Error) -> clap::Error {
    let mut relaxed = command.clone().ignore_errors(true);
    let Ok(given) = relaxed.try_get_matches_from_mut(args) else { return error };
    let (leaf, matches, at) = leaf(&relaxed, &given, args);
    let lacking_with = |more: &[OsString]| {
        let parsed = command.clone().try_get_matches_from(args[..at].iter().chain(more));
        parsed.err().map_or(Vec::new(), |error| lacking(&error))
    };
    let (missing, anyway) = (lacking(&error), lacking_with(&[]));
    if missing.is_empty() || missing.iter().any(|flag| anyway.contains(flag)) {
        return error;
    }
    let needs = |arg: &&Arg| {
        let id = arg.get_id().as_str();
        let is_given = matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine);
        let flag = format!("--{}", arg.get_long().filter(|_| is_given).unwrap_or_default());
        let alone: Vec<OsString> = match arg.get_action() {
            _ if flag.len() == 2 => return false,
            ArgAction::Set | ArgAction::Append => {
                let values = matches.get_raw(id).into_iter().flatten();
                values.map(|value| [OsStr::new(&flag), OsStr::new("="), value].into_iter().collect()).collect()
            }
            _ => vec![OsString::from(&flag)],
        };
        lacking_with(&alone).iter().any(|flag| missing.contains(flag))
    };
    let flags: Vec<String> =
        leaf.get_arguments().filter(needs).filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect();
    if flags.is_empty() {
        return error;
    }
    clap::Error::raw(error.kind(), format!("{} cannot be without {}", flags.join(" and "), missing.join(" and ")))
}

/// What the names of variables begin with.
const PREFIX: &str = "LOWKEY_";

/// Values may begin with a minus, so that what is wrong with one is said by who knows.
fn bear_minus(command: Command) -> Command {
    let bear = |arg: Arg| match arg.get_action() {
        ArgAction::Set | ArgAction::Append => arg.allow_negative_numbers(true),
        _ => arg,
    };
    command.mut_args(bear).mut_subcommands(bear_minus)
}

/// The subcommand that was named, what was given to it, and where in `args` its own arguments begin.
fn leaf<'a>(command: &'a Command, matches: &'a ArgMatches, args: &[OsString]) -> (&'a Command, &'a ArgMatches, usize) {
    let (mut command, mut matches, mut at) = (command, matches, 1.min(args.len()));
    while let Some((name, below)) = matches.subcommand() {
        let Some(found) = command.find_subcommand(name) else { break };
        at += args[at..].iter().position(|arg| arg == name).map_or(0, |i| i + 1);
        (command, matches) = (found, below);
    }
    (command, matches, at)
}

/// Variables of flags that were not given, and that nothing given excludes.
fn variables(command: &Command, matches: &ArgMatches) -> Vec<Variable> {
    let ids = matches.ids().map(clap::Id::as_str);
    let given: Vec<&str> = ids.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine)).collect();
    let excludes = |one: &Arg, id: &str| command.get_arg_conflicts_with(one).iter().any(|other| other.get_id() == id);
    let of = |arg: &Arg| {
        let (id, long) = (arg.get_id().as_str(), arg.get_long()?);
        let name = format!("{PREFIX}{}", id.to_uppercase());
        let value = std::env::var_os(&name).filter(|value| !value.is_empty())?;
        let excluded = |other: &Arg| excludes(arg, other.get_id().as_str()) || excludes(other, id);
        if given.contains(&id) || command.get_arguments().any(|o| given.contains(&o.get_id().as_str()) && excluded(o)) {
            return None;
        }
        let flag = format!("--{long}");
        let argument = match arg.get_action() {
            ArgAction::Set | ArgAction::Append => [OsStr::new(&flag), OsStr::new("="), &value].into_iter().collect(),
            ArgAction::SetTrue if is_on(&value) => OsString::from(&flag),
            _ => return None,
        };
        Some(Variable { flag, name, argument })
    };
    command.get_arguments().filter_map(of).collect()
}

/// A switch is on unless its variable says no.
fn is_on(value: &OsStr) -> bool {
    let value = value.to_string_lossy().to_lowercase();
    !["0", "n", "no", "f", "false", "off"].contains(&value.as_str())
}

/// Flags without which the others cannot be.
fn lacking(error: &clap::Error) -> Vec<String> {
    match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::MissingRequiredArgument, Some(ContextValue::Strings(flags))) => flags.clone(),
        _ => Vec::new(),
    }
}

/// The error with the names of variables for the flags that came from them.
fn named(mut error: clap::Error, variables: &[Variable], args: &[OsString]) -> clap::Error {
    if error.kind() == ErrorKind::InvalidUtf8 {
        let of_variable = variables.iter().find(|v| v.argument.to_str().is_none()).map(|v| v.name.clone());
        let argument = args.iter().find(|arg| arg.to_str().is_none()).map(|arg| arg.to_string_lossy().into_owned());
        return clap::Error::raw(error.kind(), format!("{}: not UTF-8 text", of_variable.or(argument).unwrap_or_default()));
    }
    let rename = |text: &str| {
        let flag = text.split([' ', '=']).next().unwrap_or(text);
        variables.iter().find(|v| v.flag == flag).map_or(text.to_owned(), |v| v.name.clone())
    };
    for kind in [ContextKind::InvalidArg, ContextKind::PriorArg] {
        let renamed = match error.get(kind) {
            Some(ContextValue::String(text)) => ContextValue::String(rename(text)),
            Some(ContextValue::Strings(texts)) => ContextValue::Strings(texts.iter().map(|text| rename(text)).collect()),
            _ => continue,
        };
        error.insert(kind, renamed);
    }
    error
}

/// What is wrong with a number, as a sentence.
pub fn why_no_number(error: &clap::Error) -> Option<&'static str> {
    use std::num::{IntErrorKind, ParseFloatError, ParseIntError};
    let source = std::error::Error::source(error)?;
    if source.is::<ParseFloatError>() {
        return Some("not a number; write one such as 0.8");
    }
    let negative = matches!(error.get(ContextKind::InvalidValue), Some(ContextValue::String(text)) if text.starts_with('-') && text[1..].bytes().all(|b| b.is_ascii_digit()));
    Some(match source.downcast_ref::<ParseIntError>()?.kind() {
        IntErrorKind::PosOverflow => "more than this can be",
        _ if negative => "less than 0, which this cannot be",
        _ => "not a whole number; write one in digits",
    })
}

#[cfg(test)]
#[path = "../../tests/unit/cli/flags.rs"]
mod tests;
