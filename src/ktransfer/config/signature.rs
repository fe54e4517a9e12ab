//! `signature`: the secrets with which pushes are signed.

use std::path::Path;

use crate::config::{Problems, Section};
use crate::ktransfer::backend_client::{SIGNATURE_HEADERS, SigningSecret};
use crate::regular_file;

/// Limit on the size of `secrets_file` in bytes.
const MAX_FILE_BYTES: usize = 64 << 10;
/// Limit on the secrets of a module: each adds 48 bytes to the header, and a hash of the body to the cost of each push.
const MAX_SECRETS: usize = 4;

/// Reads the map: `secrets`, `secrets_file`, or both. No problem shows a secret.
pub(super) fn from_section(section: Option<Section>, problems: &mut Problems) -> Vec<SigningSecret> {
    let Some(mut section) = section else { return Vec::new() };
    section.hide_values();
    let before = problems.0.len();
    let texts = section.strings("secrets", false, problems).unwrap_or_default();
    let mut secrets = parse(&texts, "secrets", &section, problems);
    if section.has("secrets_file") {
        let path = section.string("secrets_file", None, problems);
        match file(&path) {
            Ok(lines) => secrets.extend(parse(&lines, "secrets_file", &section, problems)),
            Err(text) => section.note("secrets_file", format!("is {path:?}, which {text}"), problems),
        }
    }
    if before == problems.0.len() && !(1..=MAX_SECRETS).contains(&secrets.len()) {
        let text = format!("must have 1 to {MAX_SECRETS} secrets, in secrets or secrets_file");
        section.note("", text, problems);
    }
    section.finish(problems);
    secrets
}

/// Adds a problem for each configured header that a signature would replace.
pub(super) fn check_headers(headers: &[(String, String)], section: &Section, problems: &mut Problems) {
    for (name, _) in headers {
        if SIGNATURE_HEADERS.iter().any(|own| name.eq_ignore_ascii_case(own)) {
            section.note("protocol.headers", format!("has {name}, which signature sets"), problems);
        }
    }
}

fn parse(texts: &[String], key: &str, section: &Section, problems: &mut Problems) -> Vec<SigningSecret> {
    let mut secrets = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match SigningSecret::parse(text) {
            Ok(secret) => secrets.push(secret),
            Err(problem) => section.note(key, format!("entry {} {problem}", index + 1), problems),
        }
    }
    secrets
}

/// Returns the lines of a file; empty lines and comments (`#`) are left out.
fn file(path: &str) -> Result<Vec<String>, String> {
    let content = regular_file::read(Path::new(path), MAX_FILE_BYTES).map_err(|cause| cause.to_string())?;
    let text = String::from_utf8(content).map_err(|_| "is not UTF-8".to_owned())?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}
