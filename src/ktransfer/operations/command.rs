//! The command line of operators: `ktransfer_bin -f FILE --pause MODULE`, and so on.
//!
//! | exit code | when |
//! |---|---|
//! | 0 | done; `--status`; a dry run that would be done |
//! | 1 | not done: nothing was changed, for the printed reason |
//! | 2 | the command line is invalid |
//! | 3 | unknown: whether it is done, or will be done, could not be found out |

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use getopts::Options;

use super::client::{self, ClientArguments, ClientError};
use crate::ktransfer::config::load;

/// The options that select an operation, with its name.
const OPERATIONS: [(&str, &str); 5] =
    [("pause", "pause"), ("resume", "resume"), ("skip", "skip"), ("seek", "seek"), ("status", "status")];

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Print(String),
    Operate { file: PathBuf, arguments: ClientArguments },
}

/// Whether the command line is one of an operator.
fn is_meant(arguments: &[OsString]) -> bool {
    let name = |text: &str| text.strip_prefix("--").map(|text| text.split('=').next().unwrap_or_default().to_owned());
    let is_option = |argument: &OsString| {
        let name = argument.to_str().and_then(name);
        name.is_some_and(|name| OPERATIONS.iter().any(|(option, _)| *option == name))
    };
    arguments.iter().any(is_option)
}

/// Runs the operation on the command line of the program; returns `None` if there is none.
pub fn run_if_meant() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    is_meant(&arguments).then(|| main(arguments))
}

fn main(arguments: Vec<OsString>) -> ExitCode {
    let (text, is_error, code) = run(arguments, |name| std::env::var(name).ok());
    // A closed pipe is no error.
    let _ = match is_error {
        true => io::stderr().lock().write_all(text.as_bytes()),
        false => io::stdout().lock().write_all(text.as_bytes()),
    };
    ExitCode::from(code)
}

/// Returns what to print, whether it is an error, and the exit code.
fn run(arguments: Vec<OsString>, environment: impl Fn(&str) -> Option<String>) -> (String, bool, u8) {
    let (file, arguments) = match parse(arguments) {
        Err(text) => return (format!("ktransfer: {text}\nTry ktransfer --status -h\n"), true, 2),
        Ok(Command::Print(text)) => return (text, false, 0),
        Ok(Command::Operate { file, arguments }) => (file, arguments),
    };
    match load(Path::new(&file)) {
        Err(problems) => (format!("{problems}ktransfer: the configuration is invalid\n"), true, 1),
        Ok(config) => match client::run(config.admin_port, &arguments, environment) {
            Ok(text) => (text, false, 0),
            Err(ClientError::NotDone(text)) => (format!("ktransfer: {}\n", text.trim_end()), true, 1),
            Err(ClientError::Unknown(text)) => (format!("ktransfer: {}\n", text.trim_end()), true, 3),
        },
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Command, String> {
    let mut options = Options::new();
    options.optopt("f", "file", "configuration file (default ./conf/ktransfer.yaml)", "FILE");
    options.optflagopt("", "status", "show a module, or all modules", "MODULE");
    options.optopt("", "pause", "begin no further push of a module, or of one partition", "MODULE");
    options.optopt("", "resume", "end a pause", "MODULE");
    options.optopt(
        "",
        "skip",
        "pass over the message that holds a commit point; needs --partition, --offset",
        "MODULE",
    );
    options.optopt("", "seek", "continue at --offset or --to, in one partition or all of this process", "MODULE");
    options.optopt("", "partition", "number of the partition", "NUMBER");
    options.optopt("", "offset", "offset of a message", "OFFSET");
    options.optopt("", "to", "earliest, end, a time like 2026-01-31T08:00:00Z, or milliseconds since 1970", "PLACE");
    options.optflag("", "no-dead-letter", "with --skip: store no dead letter of the message");
    options.optflag("", "dry-run", "say what would be done, and change nothing");
    options.optflag("h", "help", "print this help and exit");
    let texts: Vec<String> = arguments
        .into_iter()
        .map(|argument| argument.into_string().map_err(|argument| format!("{:?} is not UTF-8", argument.display())))
        .collect::<Result<_, _>>()?;
    let matches = options.parse(texts).map_err(|problem| problem.to_string())?;
    if matches.opt_present("h") {
        let brief = "Usage: ktransfer [-f FILE] OPERATION [--partition NUMBER] [--offset OFFSET] [--to PLACE]
    [--no-dead-letter] [--dry-run]

Operates the ktransfer on this host that runs with the same file, through its admin_port. The secret of an operator is
read from the environment: KTRANSFER_TOKEN, or KTRANSFER_USER and KTRANSFER_PASSWORD; --status needs none.
Exit codes: 0 done, 1 not done (nothing was changed), 2 wrong command line, 3 unknown.";
        return Ok(Command::Print(options.usage(brief)));
    }
    if let Some(stray) = matches.free.first() {
        return Err(format!("unexpected argument {stray:?}"));
    }
    let chosen: Vec<&(&str, &str)> = OPERATIONS.iter().filter(|(option, _)| matches.opt_present(option)).collect();
    let [(option, operation)] = chosen[..] else {
        return Err("give one of --status, --pause, --resume, --skip and --seek".to_owned());
    };
    let module = matches.opt_str(option).unwrap_or_default();
    if module.is_empty() && *operation != "status" {
        return Err(format!("--{option} needs the name of a module"));
    }
    let arguments = ClientArguments {
        operation,
        module,
        partition: matches.opt_str("partition"),
        offset: matches.opt_str("offset"),
        to: matches.opt_str("to"),
        has_no_letter: matches.opt_present("no-dead-letter"),
        is_dry_run: matches.opt_present("dry-run"),
    };
    let file = matches.opt_str("f").unwrap_or_else(|| "./conf/ktransfer.yaml".to_owned()).into();
    Ok(Command::Operate { file, arguments })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Command, String> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    #[test]
    fn a_command_line_is_an_operation_or_an_error() {
        let of = |operation, module: &str| ClientArguments {
            operation,
            module: module.to_owned(),
            ..ClientArguments::default()
        };
        let pause = ClientArguments { partition: Some("3".into()), is_dry_run: true, ..of("pause", "m") };
        let seek = ClientArguments { to: Some("end".into()), ..of("seek", "m") };
        let skip = ClientArguments { offset: Some("7".into()), has_no_letter: true, ..of("skip", "m") };
        for (line, file, arguments) in [
            ("--pause m --partition 3 --dry-run", "./conf/ktransfer.yaml", pause),
            ("-f a.yaml --seek=m --to end", "a.yaml", seek),
            ("--skip m --offset 7 --no-dead-letter", "./conf/ktransfer.yaml", skip),
            ("--status", "./conf/ktransfer.yaml", of("status", "")),
            ("--status=m", "./conf/ktransfer.yaml", of("status", "m")),
        ] {
            assert!(is_meant(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>()), "{line}");
            assert_eq!(parsed(line), Ok(Command::Operate { file: file.into(), arguments }), "{line}");
        }
        for line in
            ["", "--pause m --resume m", "--pause", "--pause= ", "--pause m stray", "--skip m --part", "-t --pause m"]
        {
            assert!(parsed(line).is_err(), "{line}");
        }
        assert!(matches!(parsed("--status -h"), Ok(Command::Print(text)) if text.contains("KTRANSFER_TOKEN")));
        assert!(!is_meant(&["-f".into(), "--pauses".into(), "pause".into()]));
    }

    #[test]
    fn each_failure_has_its_exit_code() {
        let code = |line: &str| {
            let arguments = line.split_whitespace().map(OsString::from).collect();
            let (text, is_error, code) = run(arguments, |_| None);
            assert!(is_error && text.starts_with("ktransfer: ") || text.contains("yaml"), "{text}");
            code
        };
        assert_eq!(code("--pause"), 2);
        assert_eq!(code("-f /nowhere.yaml --pause m"), 1);
        assert_eq!(code("-f docs/quickstart/ktransfer.yaml --pause m"), 1);
    }
}
