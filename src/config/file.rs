//! Reads a configuration file into one YAML map, with the environment variables replaced.

use std::fs;
use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::environment::expand;

/// Larger files are refused: a configuration is small, and YAML aliases can expand a large file without a bound.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Returns the YAML map of the file, or an error text. The error text for a file of secrets quotes nothing from the
/// file.
pub(super) fn read(file: &Path, is_secret: bool) -> Result<Mapping, String> {
    let size = fs::metadata(file).map_err(|cause| format!("cannot be read: {cause}"))?.len();
    if MAX_FILE_BYTES < size {
        return Err(format!("has {size} bytes, but a configuration file may have at most {MAX_FILE_BYTES}"));
    }
    let text = fs::read_to_string(file).map_err(|cause| format!("cannot be read: {cause}"))?;
    // Parsed into a `Value` and not into a map or struct, since only a `Value` refuses a key that occurs twice.
    let mut value: Value = serde_yaml::from_str(&text).map_err(|cause| match cause.location() {
        _ if !is_secret => format!("is not valid YAML: {cause}"),
        // The parser's own text may quote a secret, so only the position is shown.
        Some(at) => format!("is not valid YAML, or has a key twice: line {}, column {}", at.line(), at.column()),
        None => "is not valid YAML, or has a key twice".to_owned(),
    })?;
    expand(&mut value).map_err(|(key, wrong)| match is_secret {
        true => wrong.without_value(),
        false => format!("{key}: {}", wrong.without_value()),
    })?;
    match value {
        Value::Mapping(map) => Ok(map),
        Value::Null => Err("is empty, but must be a map of keys".to_owned()),
        _ => Err("must be a map of keys".to_owned()),
    }
}
