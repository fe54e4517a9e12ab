//! The programs of docs/clients.md: each stores its message, retries what is worth a retry, and nothing else.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::{Backend, BackendAnswer, Kproxy, STOP_DEADLINE, cluster};

const DOCUMENT: &str = include_str!("../../docs/clients.md");
const STORED: &[u8] = br#"{"topic":"events","partition":0,"offset":7}"#;

/// A language of the document: its code block, and how the program is built and run.
struct Language {
    /// The word after the three backticks of the code block.
    block: &'static str,
    file: &'static str,
    /// A program that must be installed.
    needs: &'static str,
    /// Builds the file in its folder; empty if nothing is built.
    build: &'static [&'static str],
    run: &'static [&'static str],
}

const LANGUAGES: [Language; 6] = [
    Language { block: "sh", file: "post.sh", needs: "curl", build: &[], run: &["sh", "post.sh"] },
    Language { block: "python", file: "post.py", needs: "python3", build: &[], run: &["python3", "post.py"] },
    Language { block: "javascript", file: "post.js", needs: "node", build: &[], run: &["node", "post.js"] },
    Language { block: "go", file: "post.go", needs: "go", build: &["go", "build", "post.go"], run: &["./post"] },
    Language {
        block: "java",
        file: "Post.java",
        needs: "javac",
        build: &["javac", "Post.java"],
        run: &["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "Post"],
    },
    Language { block: "php", file: "post.php", needs: "php", build: &[], run: &["php", "post.php"] },
];

/// Returns the only code block of the document in this language.
fn block(language: &str) -> &'static str {
    let blocks: Vec<_> = DOCUMENT.split("```").skip(1).step_by(2).collect();
    let found: Vec<_> = blocks.iter().filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n')).collect();
    assert_eq!(found.len(), 1, "blocks of {language}");
    found[0]
}

fn is_installed(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().is_ok_and(|found| found.status.success())
}

fn command(folder: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(words[0]);
    // Without a module and without cgo, Go needs nothing but itself. Proxies are not for this machine.
    command.args(&words[1..]).current_dir(folder).envs([
        ("GO111MODULE", "off"),
        ("CGO_ENABLED", "0"),
        ("NO_PROXY", "*"),
    ]);
    command.output().unwrap_or_else(|cause| panic!("{words:?}: {cause}"))
}

/// Builds and runs the program of a language against the server at `address`, with `topic` instead of `events`.
fn run(language: &Language, address: &str, topic: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let source = block(language.block);
    assert_eq!(source.matches("localhost:5030").count(), 1, "{}", language.block);
    let source = source.replace("localhost:5030", address).replace("events", topic);
    fs::write(folder.path().join(language.file), source).unwrap();
    if !language.build.is_empty() {
        let built = command(folder.path(), language.build);
        assert!(built.status.success(), "{:?}: {}", language.build, text(&built));
    }
    command(folder.path(), language.run)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

/// Returns a server that answers the first requests as `script` says, and the others with 200.
fn scripted(script: fn(usize) -> Option<BackendAnswer>) -> Backend {
    let count = AtomicUsize::new(0);
    let stored = || BackendAnswer::ok().header("Content-Type", "application/json").body(STORED);
    Backend::start_with(move |_| script(count.fetch_add(1, Ordering::SeqCst)).unwrap_or_else(stored))
}

/// Runs a program against a kproxy, and against servers that refuse some or all of its requests.
fn check_program(language: &Language, kproxy: &str, topic: &str) {
    let name = language.block;
    let output = run(language, kproxy, topic);
    assert!(output.status.success(), "{name}: {}", text(&output));
    assert!(text(&output).contains("offset"), "{name} prints the answer: {}", text(&output));

    let busy = scripted(|number| match number {
        0 => Some(BackendAnswer::status(503).header("Retry-After", "0").body(b"{\"retriable\":true}")),
        1 => Some(BackendAnswer::status(504).body(b"{\"retriable\":true}")),
        2 => Some(BackendAnswer::status(429).header("Retry-After", "1")),
        _ => None,
    });
    let output = run(language, &busy.address(), "events");
    assert!(output.status.success(), "{name}: {}", text(&output));
    assert_eq!(busy.n_requests(), 4, "{name} retries 503, 504 and 429");
    for record in busy.records() {
        assert_eq!((record.request.path(), record.request.text().as_str()), ("/commit", "hello"), "{name}");
        assert_eq!(record.request.query("key").as_deref(), Some("alice"), "{name}");
    }

    let refusing = scripted(|_| Some(BackendAnswer::status(400).body(b"{\"message\":\"topic must be legal\"}")));
    let output = run(language, &refusing.address(), "events");
    assert!(!output.status.success(), "{name} fails after a 400: {}", text(&output));
    assert_eq!(refusing.n_requests(), 1, "{name} does not retry a 400");
    assert!(text(&output).contains("topic must be legal"), "{name} prints the reason: {}", text(&output));

    let failing = scripted(|_| Some(BackendAnswer::status(503).header("Retry-After", "0").body(b"{}")));
    let output = run(language, &failing.address(), "events");
    assert!(!output.status.success(), "{name} gives up in the end: {}", text(&output));
    assert!((5..=6).contains(&failing.n_requests()), "{name}: {} attempts", failing.n_requests());
    eprintln!("the program for {name} works");
}

#[test]
fn each_program_stores_its_message_and_retries_what_is_worth_a_retry() {
    let topic = cluster().new_topic("programs", 1);
    let mut kproxy = Kproxy::start_usual(cluster());
    let (installed, absent): (Vec<_>, Vec<_>) = LANGUAGES.iter().partition(|language| is_installed(language.needs));
    for language in absent {
        eprintln!("SKIPPED: the program for {} is not tested: {} is not installed", language.block, language.needs);
    }
    // All at once: they wait before they retry.
    std::thread::scope(|scope| {
        for language in &installed {
            scope.spawn(|| check_program(language, &kproxy.address, &topic));
        }
    });
    assert!(!installed.is_empty(), "no language of docs/clients.md is installed");
    let stored = cluster().messages(&topic);
    assert_eq!(stored.len(), installed.len());
    assert!(stored.iter().all(|message| message.key == b"alice" && message.value == b"hello"), "{stored:?}");
    kproxy.daemon.stop(STOP_DEADLINE);
}

#[test]
fn a_program_repeats_a_request_whose_connection_was_closed() {
    std::thread::scope(|scope| {
        for language in LANGUAGES.iter().filter(|language| is_installed(language.needs) && language.block != "sh") {
            scope.spawn(move || {
                let closing = scripted(|number| (number == 0).then(BackendAnswer::close));
                let output = run(language, &closing.address(), "events");
                assert!(output.status.success(), "{}: {}", language.block, text(&output));
                assert!(closing.n_requests() >= 2, "{}", language.block);
            });
        }
    });
}
