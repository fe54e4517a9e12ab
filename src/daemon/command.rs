//! The command line of a program: the options of every daemon, and those of a task that some programs have.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;

use getopts::Options;

/// A task that the program does and ends, instead of running as a daemon.
pub struct Tool<C> {
    /// Its options. The first one selects the task; the others need it.
    pub options: &'static [ToolOption],
    /// Does the task and prints to the writer. An error ends the program with exit code 1.
    pub run: fn(C, &ToolArguments, &mut dyn Write) -> Result<(), String>,
}

/// An option of a [`Tool`].
#[derive(Clone, Copy, Debug)]
pub struct ToolOption {
    /// The name, without the dashes before it.
    pub name: &'static str,
    /// The placeholder of the value in the help; empty for an option without a value.
    pub value: &'static str,
    /// For the help.
    pub description: &'static str,
}

/// The options of a [`Tool`] that were given, with their values; an option without a value has an empty one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ToolArguments(BTreeMap<&'static str, String>);

impl ToolArguments {
    /// Returns the value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Returns whether the option was given.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }
}

/// A parsed command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Command {
    Print(String),
    Check(PathBuf),
    Run(PathBuf),
    /// The task of the [`Tool`] with this index.
    Tool(PathBuf, usize, ToolArguments),
}

pub(super) fn parse(
    name: &str,
    default_file: &str,
    tools: &[&[ToolOption]],
    arguments: impl Iterator<Item = OsString>,
) -> Result<Command, String> {
    let mut options = Options::new();
    options.optopt("f", "file", &format!("configuration file (default {default_file})"), "FILE");
    options.optflag("t", "test", "check the configuration, print every problem, and exit with 0 or 1");
    options.optflag("V", "version", "print the version and exit");
    options.optflag("h", "help", "print this help and exit");
    let mut added = BTreeSet::new();
    for ToolOption { name, value, description } in tools.iter().copied().flatten() {
        // An option of several tools is listed once.
        if !added.insert(*name) {
            continue;
        }
        match value.is_empty() {
            true => options.optflag("", name, description),
            false => options.optopt("", name, description, value),
        };
    }
    let originals: Vec<OsString> = arguments.collect();
    // getopts accepts UTF-8 only, but a path may be any bytes. An argument that is not UTF-8 is replaced, while
    // parsing, by a stand-in that no argument can equal: NUL and its index.
    let stand_ins = originals.iter().enumerate().map(|(index, original)| match original.to_str() {
        Some(text) => text.to_owned(),
        None => format!("\0{index}"),
    });
    let original = |text: String| match text.strip_prefix('\0').and_then(|index| index.parse::<usize>().ok()) {
        Some(index) => originals.get(index).cloned().unwrap_or_default(),
        None => text.into(),
    };
    let matches = options.parse(stand_ins).map_err(|problem| problem.to_string())?;
    if let Some(unknown) = matches.free.first() {
        return Err(format!("unexpected argument {:?}", original(unknown.clone()).display()));
    }
    if matches.opt_present("h") {
        return Ok(Command::Print(options.usage(&format!("Usage: {name} [-f FILE] [-t]"))));
    }
    if matches.opt_present("V") {
        return Ok(Command::Print(format!("{name} {}\n", env!("CARGO_PKG_VERSION"))));
    }
    let file = matches.opt_str("f").map_or_else(|| default_file.into(), original);
    if file.as_os_str() == OsStr::new("") {
        return Err("-f needs a file name".to_owned());
    }
    let file = PathBuf::from(file);
    let given = tools.iter().copied().flatten().filter(|option| matches.opt_present(option.name));
    let task: BTreeMap<_, _> =
        given.map(|option| (option.name, matches.opt_str(option.name).unwrap_or_default())).collect();
    if let Some(given) = task.keys().next() {
        let selected = tools.iter().position(|tool| task.contains_key(tool[0].name));
        let has = |tool: &[ToolOption], name: &&str| tool.iter().any(|option| option.name == *name);
        return match selected.filter(|_| !matches.opt_present("t")) {
            Some(index) => match task.keys().find(|name| !has(tools[index], name)) {
                None => Ok(Command::Tool(file, index, ToolArguments(task))),
                Some(other) => Err(format!("--{other} has no meaning with --{}", tools[index][0].name)),
            },
            None => {
                let selecting = tools.iter().filter(|tool| has(tool, given));
                let selecting: Vec<String> = selecting.map(|tool| format!("--{}", tool[0].name)).collect();
                Err(format!("--{given} needs {}, without -t", selecting.join(" or ")))
            }
        };
    }
    Ok(if matches.opt_present("t") { Command::Check(file) } else { Command::Run(file) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    fn parsed(arguments: &[&str]) -> Result<Command, String> {
        parse("kproxy", "./conf/kproxy.yaml", &[], arguments.iter().map(OsString::from))
    }

    #[test]
    fn the_options_of_a_tool_need_the_one_that_selects_it() {
        let tool = [
            ToolOption { name: "move", value: "NAME", description: "moves" },
            ToolOption { name: "dry-run", value: "", description: "only with --move" },
        ];
        let other = [
            ToolOption { name: "copy", value: "NAME", description: "copies" },
            ToolOption { name: "dry-run", value: "", description: "as with --move" },
            ToolOption { name: "all", value: "", description: "with --copy" },
        ];
        let parsed = |arguments: &[&str]| {
            parse("d", "d.yaml", &[&tool, &other], arguments.iter().map(|argument| OsString::from(*argument)))
        };
        let arguments = ToolArguments([("move", "m".to_owned()), ("dry-run", String::new())].into());
        assert_eq!(arguments.value("move"), Some("m"));
        assert!(arguments.has("dry-run") && !arguments.has("x"));
        let expected = Command::Tool("a.yaml".into(), 0, arguments);
        assert_eq!(parsed(&["-f", "a.yaml", "--move", "m", "--dry-run"]), Ok(expected));
        assert!(matches!(parsed(&["--copy", "c", "--all", "--dry-run"]), Ok(Command::Tool(_, 1, _))));
        for (arguments, problem) in [
            (&["--all", "--move", "m"][..], "--all has no meaning with --move"),
            (&["--copy", "c", "--move", "m"], "--copy has no meaning with --move"),
            (&["--dry-run"], "--dry-run needs --move or --copy, without -t"),
        ] {
            assert_eq!(parsed(arguments), Err(problem.to_owned()), "{arguments:?}");
        }
        assert_eq!(parsed(&[]), Ok(Command::Run("d.yaml".into())));
        assert!(matches!(parsed(&["-h"]), Ok(Command::Print(text)) if text.contains("--move NAME")));
        for arguments in [&["--dry-run"][..], &["--move", "m", "-t"], &["--move"], &["--dry-run", "--dry-run"]] {
            assert!(parsed(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn a_command_line_is_a_command_or_an_error() {
        for (arguments, expected) in [
            (&[][..], Command::Run("./conf/kproxy.yaml".into())),
            (&["-f", "a.yaml"], Command::Run("a.yaml".into())),
            (&["-fa.yaml", "-t"], Command::Check("a.yaml".into())),
            (&["--test", "--file=a b"], Command::Check("a b".into())),
            (&["-V", "-f", "x"], Command::Print(concat!("kproxy ", env!("CARGO_PKG_VERSION"), "\n").into())),
        ] {
            assert_eq!(parsed(arguments), Ok(expected), "{arguments:?}");
        }
        assert!(matches!(parsed(&["-h"]), Ok(Command::Print(text)) if text.contains("-f, --file FILE")));
        for arguments in [&["-x"][..], &["-f"], &["-f", ""], &["-f", "a", "-f", "b"], &["stray"], &["-t", "a.yaml"]] {
            assert!(parsed(arguments).is_err(), "{arguments:?}");
        }
    }

    #[test]
    fn a_path_may_be_any_bytes() {
        let path = OsString::from_vec(b"/tmp/\xff.yaml".to_vec());
        let command = parse("kproxy", "x", &[], [OsString::from("-f"), path.clone()].into_iter());
        assert_eq!(command, Ok(Command::Run(path.clone().into())));
        assert!(parse("kproxy", "x", &[], [path].into_iter()).is_err());
    }
}
