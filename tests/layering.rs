//! The house keeps its order: which room of `src/` may name which, that no files name each other in a circle, where `unsafe` may
//! stand, how long a file may be.
//!
//! The source is read as text, so that code for other processors is checked too. Comments and strings are blanked out
//! first; what is left is searched for paths from the crate's root. docs/design.md explains the order.
//! Refuses cleverness: a path that climbs with `super::super::` is a violation, since nobody should have to count.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The rooms, lowest first: those of the engine, and those of the program around it. A room names itself and those before it,
/// and nothing else.
#[rustfmt::skip]
const ROOMS: [&str; 16] = [
    "error", "units", "mem", "gguf", "kernels", "kv", "model", "text", "session",
    "sensors", "constraint", "session_file", "eval", "server", "cli", "main",
];

/// The roots of the packages: they name rooms, and are none.
const ROOTS: [&str; 3] = ["engine.rs", "lib.rs", "program.rs"];

/// Pairs that the order alone would allow: text stands beside kernels, cache and model and knows none of them.
const STRANGERS: [(&str, &str); 3] = [("text", "kernels"), ("text", "kv"), ("text", "model")];

/// What is at the root beside rooms, and the room it comes from.
const RE_EXPORTS: [(&str, &str); 3] = [("Error", "error"), ("Result", "error"), ("message", "error")];

/// The files that lift the crate's `deny(unsafe_code)`, for themselves and the modules below them.
const ALLOW_UNSAFE: [&str; 3] = ["kernels/mod.rs", "mem/map.rs", "mem/mod.rs"];

/// Every file with the word `unsafe` in its code.
const UNSAFE: [&str; 54] = [
    "kernels/arm/attend.rs",
    "kernels/arm/blocks.rs",
    "kernels/arm/dense.rs",
    "kernels/arm/direct.rs",
    "kernels/arm/dotprod.rs",
    "kernels/arm/few/dot.rs",
    "kernels/arm/few/lone.rs",
    "kernels/arm/few/mod.rs",
    "kernels/arm/few/neon.rs",
    "kernels/arm/float.rs",
    "kernels/arm/formats.rs",
    "kernels/arm/grids/dot.rs",
    "kernels/arm/grids/lone.rs",
    "kernels/arm/grids/mod.rs",
    "kernels/arm/grids/neon.rs",
    "kernels/arm/i8mm.rs",
    "kernels/arm/levels.rs",
    "kernels/arm/mod.rs",
    "kernels/arm/neon.rs",
    "kernels/arm/packed.rs",
    "kernels/arm/placed.rs",
    "kernels/arm/quads.rs",
    "kernels/arm/scan.rs",
    "kernels/arm/superblocks.rs",
    "kernels/arm/wide.rs",
    "kernels/delta.rs",
    "kernels/dispatch.rs",
    "kernels/mamba.rs",
    "kernels/mod.rs",
    "kernels/operands.rs",
    "kernels/spec/arithmetic.rs",
    "kernels/spec/float.rs",
    "kernels/spec/weights.rs",
    "kernels/x86/attend.rs",
    "kernels/x86/attend512.rs",
    "kernels/x86/avx2.rs",
    "kernels/x86/avx512.rs",
    "kernels/x86/float.rs",
    "kernels/x86/formats.rs",
    "kernels/x86/grids.rs",
    "kernels/x86/levels.rs",
    "kernels/x86/mod.rs",
    "kernels/x86/placed.rs",
    "kernels/x86/product.rs",
    "kernels/x86/scan.rs",
    "kernels/x86/vnni.rs",
    "kernels/x86/vnni256.rs",
    "kernels/x86/words.rs",
    "mem/arena.rs",
    "mem/confined.rs",
    "mem/map.rs",
    "mem/pool.rs",
    "mem/view.rs",
    "mem/warm.rs",
];

/// Tests included; a longer file must be cut.
const MAX_LINES: usize = 600;

struct Source {
    /// Below `src/`, with `/` between its parts.
    name: String,
    text: String,
    /// `text` without comments and strings, every line still in its place.
    code: String,
}

impl Source {
    /// `kernels` of `kernels/mod.rs`, `session` of `session.rs`.
    fn room(&self) -> &str {
        self.name.split('/').next().unwrap_or(&self.name).trim_end_matches(".rs")
    }

    fn line_of(&self, at: usize) -> usize {
        self.code[..at].matches('\n').count() + 1
    }

    /// Where `word` stands as a word of its own.
    fn words<'a>(&'a self, word: &'a str) -> impl Iterator<Item = usize> + 'a {
        let part_of_word = |c: char| c.is_alphanumeric() || c == '_';
        self.code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
            !self.code[..at].ends_with(part_of_word) && !self.code[at + word.len()..].starts_with(part_of_word)
        })
    }
}

fn sources() -> Vec<Source> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry of a folder").path();
            match path.is_dir() {
                true => walk(&path, found),
                false => found.push(path),
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    // The page that the server gives out, and what makes packages of the engine and the program.
    paths.retain(|path| {
        !["server/page.html", "engine/Cargo.toml", "program/Cargo.toml"].iter().any(|other| path.ends_with(other))
    });
    paths.sort();
    let sources: Vec<Source> = paths
        .iter()
        .map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let name = path.strip_prefix(&root).expect("below src").to_str().expect("a name in UTF-8").replace('\\', "/");
            let code = without_comments_and_strings(&text);
            Source { name, text, code }
        })
        .collect();
    assert!(sources.len() > 40 && sources.iter().all(|s| s.name.ends_with(".rs")), "src/ holds Rust files and nothing else");
    sources
}

/// Blanks out what is not code; newlines stay, so that lines keep their numbers.
fn without_comments_and_strings(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let name_before = code.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let raw = rest.strip_prefix("br").or(rest.strip_prefix('r')).filter(|_| !name_before);
        let hashes = raw.map_or(0, |raw| raw.len() - raw.trim_start_matches('#').len());
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            end_of_comment(rest)
        } else if let Some(raw) = raw.filter(|raw| raw[hashes..].starts_with('"')) {
            let body = rest.len() - raw.len() + hashes + 1;
            let end = format!("\"{}", "#".repeat(hashes));
            rest[body..].find(&end).map_or(rest.len(), |at| body + at + end.len())
        } else if first == '"' {
            end_of_quoted(rest, '"')
        } else if first == '\'' && (rest[1..].starts_with('\\') || rest[1..].chars().nth(1) == Some('\'')) {
            end_of_quoted(rest, '\'') // a character; a lifetime has no second quote
        } else {
            0
        };
        if skipped == 0 {
            code.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        code.push(' ');
        code.extend(rest[..skipped].chars().filter(|&c| c == '\n'));
        rest = &rest[skipped..];
    }
    code
}

/// Bytes of the block comment that `text` begins with; they nest.
fn end_of_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match &text.as_bytes()[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Bytes of the literal that `text` begins with, both quotes included.
fn end_of_quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => (),
        }
    }
    text.len()
}

/// Every path that a tail spells: `kv::Pos` of `kv::Pos`; `mem::map::Map` and `Error` of `{mem::{map::Map}, Error}`.
fn paths(tail: &str) -> Vec<Vec<&str>> {
    let tail = tail.trim_start();
    if let Some(group) = tail.strip_prefix('{') {
        let (mut depth, mut start, mut found) = (0, 0, Vec::new());
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    found.extend(paths(&group[start..at]).into_iter().filter(|path| !path[0].is_empty()));
                    start = at + 1;
                }
                _ => (),
            }
            if c == '}' && depth == 0 && start == at + 1 {
                break;
            }
        }
        return found;
    }
    let word = &tail[..tail.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(tail.len())];
    match tail[word.len()..].trim_start().strip_prefix("::").map(paths) {
        Some(rest) if !rest.is_empty() => rest.into_iter().map(|rest| [&[word], &rest[..]].concat()).collect(),
        _ => vec![vec![word]],
    }
}

/// The first names of a path's tail: `kv` of `kv::Pos`; `mem` and `Error` of `{mem::map::Map, Error}`.
fn first_names(tail: &str) -> Vec<&str> {
    let mut names: Vec<&str> = paths(tail).into_iter().map(|path| path[0]).collect();
    names.dedup();
    names
}

fn rank(room: &str) -> Option<usize> {
    ROOMS.iter().position(|&r| r == room)
}

/// What is wrong with a file of `room` that names `name` at the root of the crate.
fn objection(room: &str, name: &str) -> Option<String> {
    let named = RE_EXPORTS.iter().find(|(item, _)| *item == name).map_or(name, |(_, room)| room);
    match (rank(room), rank(named)) {
        (_, None) => Some(format!("`{name}` is neither a room nor a re-export: give it its place in ROOMS or RE_EXPORTS")),
        (Some(own), Some(other)) if other > own => Some(format!("{room} names {named}, which stands above it")),
        _ if STRANGERS.contains(&(room, named)) => Some(format!("{room} names {named}, of which it must not know")),
        _ => None,
    }
}

/// Every path from the crate's root in a file: where it stands and the name that follows.
fn root_names(source: &Source) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    // `lowkey::` is the root as the binary sees it, as `lowkey_engine::` in another package; in a room's first file `super::` is the root.
    let is_top = !source.name.contains('/') || source.name.ends_with("/mod.rs");
    for root in ["crate", "lowkey", "lowkey_engine", "super"] {
        for at in source.words(root) {
            let Some(tail) = source.code[at + root.len()..].trim_start().strip_prefix("::") else { continue };
            let names = first_names(tail);
            match root {
                // Inside `mod tests` it is the file itself, whose items are no rooms.
                "super" => found.extend(names.into_iter().filter(|n| is_top && rank(n).is_some()).map(|n| (at, n))),
                _ => found.extend(names.into_iter().map(|n| (at, n))),
            }
        }
    }
    found
}

#[test]
fn a_room_names_only_rooms_below_it() {
    let mut violations = String::new();
    let mut checked = 0;
    let mut seen = BTreeSet::new();
    for source in sources() {
        let mut object =
            |at: usize, what: &str| writeln!(violations, "src/{}:{}: {what}", source.name, source.line_of(at)).unwrap();
        if ROOTS.contains(&source.name.as_str()) {
            for at in source.words("mod") {
                let name = first_names(&source.code[at + "mod".len()..])[0];
                if rank(name).is_none() {
                    object(at, &format!("`{name}` has no place in ROOMS"));
                }
            }
            continue;
        }
        seen.insert(source.room().to_owned());
        for (at, name) in root_names(&source) {
            checked += 1;
            if let Some(what) = objection(source.room(), name) {
                object(at, &what);
            }
        }
        for at in source.words("super") {
            let tail: String = source.code[at..].chars().filter(|c| !c.is_whitespace()).take("super::super::".len()).collect();
            if tail == "super::super::" {
                object(at, "climbs with `super::super::`: write the path from `crate::`");
            }
        }
    }
    assert!(violations.is_empty(), "\n{violations}");
    assert_eq!(seen, ROOMS.map(str::to_owned).into(), "every room of the order exists, and no other");
    assert!(checked > 100, "only {checked} paths were found: the search no longer sees them");
}

/// The module that a file is: `kernels::arm` of `kernels/arm/mod.rs`.
fn module(source: &Source) -> Vec<&str> {
    source.name.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect()
}

/// The files that each file names, by number, its tests left out. A module is one with its ancestors, whose items its files may
/// name: that is no edge.
fn named_files(sources: &[Source]) -> Vec<Vec<usize>> {
    let modules: Vec<Vec<&str>> = sources.iter().map(module).collect();
    let file_of = |path: &[&str]| (1..=path.len()).rev().find_map(|n| modules.iter().position(|m| m == &path[..n]));
    let mut named = Vec::new();
    for (source, own) in sources.iter().zip(&modules) {
        let code = source.code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let words = |word| source.words(word).take_while(|&at| at < code.len());
        let mut found = BTreeSet::new();
        let mut add = |base: &[&str], tail: &str| {
            for path in paths(tail) {
                found.extend(file_of(&[base, &path].concat()).filter(|&file| !own.starts_with(&modules[file])));
            }
        };
        for (root, base) in [("crate", &[][..]), ("lowkey", &[]), ("lowkey_engine", &[]), ("super", &own[..own.len() - 1])] {
            for at in words(root) {
                if let Some(tail) = code[at + root.len()..].trim_start().strip_prefix("::") {
                    add(base, tail);
                }
            }
        }
        // A parent names its children without a root.
        for child in modules.iter().filter(|m| m.len() == own.len() + 1 && m.starts_with(own)) {
            let name = child[own.len()];
            for at in words(name).filter(|&at| !code[..at].ends_with("::")) {
                if code[at + name.len()..].starts_with("::") {
                    add(own, &code[at..]);
                }
            }
        }
        named.push(found.into_iter().collect());
    }
    named
}

/// Files of a circle, each naming the next, if there is one that can be reached from `at`.
fn circle(at: usize, named: &[Vec<usize>], way: &mut Vec<usize>, done: &mut [bool]) -> Option<Vec<usize>> {
    if let Some(first) = way.iter().position(|&w| w == at) {
        return Some(way[first..].to_vec());
    }
    if done[at] {
        return None;
    }
    way.push(at);
    let found = named[at].iter().find_map(|&next| circle(next, named, way, done));
    way.pop();
    done[at] = true;
    found
}

#[test]
fn no_files_name_each_other_in_a_circle() {
    let mut sources = sources();
    // What tests name is their own affair.
    for source in &mut sources {
        source.code.truncate(source.code.find("#[cfg(test)]\nmod tests").unwrap_or(source.code.len()));
    }
    let named = named_files(&sources);
    let mut done = vec![false; sources.len()];
    for at in 0..sources.len() {
        if let Some(circle) = circle(at, &named, &mut Vec::new(), &mut done) {
            let names: Vec<&str> = circle.iter().map(|&file| &sources[file].name[..]).collect();
            panic!("these files name each other in a circle: {}", names.join(" -> "));
        }
    }
    let n_edges: usize = named.iter().map(Vec::len).sum();
    assert!(n_edges > 200, "only {n_edges} files are named by others: the search no longer sees them");
}

#[test]
fn unsafe_stands_only_in_the_files_of_the_list() {
    let sources = sources();
    let files =
        |has: &dyn Fn(&Source) -> bool| -> Vec<String> { sources.iter().filter(|s| has(s)).map(|s| s.name.clone()).collect() };
    assert_eq!(files(&|s| s.code.contains("#![deny(unsafe_code)]")), ROOTS, "the packages deny what the list allows");
    let lifts = |s: &Source| s.words("unsafe_code").count() > 0 && !ROOTS.contains(&s.name.as_str());
    assert_eq!(files(&lifts), ALLOW_UNSAFE, "files that lift the denial");
    assert_eq!(files(&|s| s.words("unsafe").count() > 0), UNSAFE, "files with unsafe code");
}

/// Messages of the library carry settings, which the command line spells as flags.
#[test]
fn the_library_does_not_speak_command_line() {
    let is_flag = |text: &str| text.starts_with("--") && text[2..].starts_with(|c: char| c.is_ascii_lowercase());
    for source in sources().iter().filter(|source| !["cli", "main"].contains(&source.room())) {
        let shipped = source.text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for (number, line) in shipped.lines().enumerate() {
            let said = line.split("//").next().unwrap_or_default();
            let flag = said.char_indices().find(|&(at, c)| c == '-' && is_flag(&said[at..]));
            assert!(flag.is_none(), "src/{}:{}: a flag: {}", source.name, number + 1, line.trim());
        }
    }
}

#[test]
fn files_say_what_they_own_and_are_not_long() {
    let mut violations = String::new();
    for source in sources() {
        let lines = source.text.lines().count();
        if lines > MAX_LINES {
            writeln!(violations, "src/{}: {lines} lines, more than {MAX_LINES}: cut it by what it owns", source.name).unwrap();
        }
        let opening = source.text.lines().take_while(|line| line.starts_with("//!")).count();
        if !(1..=16).contains(&opening) {
            writeln!(violations, "src/{}: opens with {opening} lines of `//!`: say what it owns and refuses", source.name)
                .unwrap();
        }
    }
    assert!(violations.is_empty(), "\n{violations}");
}

/// The reader of the source itself: were it blind, the tests above would pass for nothing.
#[test]
fn code_is_told_from_comments_and_strings() {
    let text = concat!(
        "use crate::mem; // crate::kv\n/* crate::cli /* unsafe */ crate::cli */ let a = \"crate::eval \\\" unsafe\";\n",
        "let b = r#\"crate::text \" \"#; let c = '\"'; let d = '\\''; fn e<'a>(x: &'a str) {} r\"\"; unsafe fn f() {}\n",
        "use crate::{\n    gguf::{GgufFile, TensorInfo},\n    Error,\n};\npub(crate) fn f() { crate :: units::g() }\n",
    );
    let source = Source { name: "kv/x.rs".into(), text: text.into(), code: without_comments_and_strings(text) };
    let names: Vec<(usize, &str)> = root_names(&source).into_iter().map(|(at, name)| (source.line_of(at), name)).collect();
    assert_eq!(names, [(1, "mem"), (4, "gguf"), (4, "Error"), (8, "units")]);
    assert_eq!(source.words("unsafe").map(|at| source.line_of(at)).collect::<Vec<_>>(), [3]);
    assert_eq!(source.room(), "kv");
    assert!(objection("kv", "model").is_some() && objection("text", "kv").is_some() && objection("mem", "nowhere").is_some());
    assert!(objection("model", "kv").is_none() && objection("mem", "Error").is_none() && objection("kv", "kv").is_none());
    assert!(objection("error", "units").is_some() && objection("units", "Result").is_none());
}

#[test]
fn a_circle_is_found() {
    let source = |name: &str, text: &str| Source { name: name.into(), text: text.into(), code: text.into() };
    let mut sources = vec![
        source("kv/mod.rs", "mod a; mod b; mod c; use a::A;"),
        source("kv/a.rs", "use super::{C, b::{B, D}};"),
        source("kv/b.rs", "use crate::{mem, kv::c::f};"),
        source("kv/c.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::kv::a; }"),
    ];
    let found = |sources: &[Source]| circle(0, &named_files(sources), &mut Vec::new(), &mut vec![false; sources.len()]);
    assert_eq!(named_files(&sources), [vec![1], vec![2], vec![3], vec![]]);
    assert_eq!(found(&sources), None);
    sources[3] = source("kv/c.rs", "fn f(x: super::a::A) {}");
    assert_eq!(found(&sources), Some(vec![1, 2, 3]));
}

/// What is run by its own name can be run: a file that begins with `#!` may be executed by its owner.
#[cfg(unix)]
#[test]
fn scripts_are_executable() {
    use std::os::unix::fs::PermissionsExt;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<_> = [".ci", "benches", "cross", "deploy", "models", "tests"].map(|folder| root.join(folder)).into();
    let mut n_scripts = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let entry = entry.expect("an entry");
            let kind = entry.file_type().expect("its kind");
            if kind.is_dir() && entry.file_name() != "node_modules" {
                folders.push(entry.path());
            }
            let mut start = [0; 2];
            let is_read =
                kind.is_file() && std::fs::File::open(entry.path()).is_ok_and(|mut file| file.read_exact(&mut start).is_ok());
            if is_read && &start == b"#!" {
                n_scripts += 1;
                let mode = entry.metadata().expect("its mode").permissions().mode();
                assert!(mode & 0o100 != 0, "{} begins with #! and is not executable", entry.path().display());
            }
        }
    }
    assert!(n_scripts > 20, "only {n_scripts} scripts were found");
}
