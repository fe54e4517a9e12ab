//! Reads a configuration file into one YAML map, with the environment variables replaced.

use std::path::Path;

use serde_yaml::{Mapping, Value};

use super::environment::expand;
use crate::regular_file;

/// Larger files are refused: a configuration is small, and YAML aliases can expand a large file without a bound.
const MAX_FILE_BYTES: usize = 1 << 20;

/// Returns the YAML map of the file, or an error text. The error text for a file of secrets quotes nothing from the
/// file.
pub(super) fn read(file: &Path, is_secret: bool) -> Result<Mapping, String> {
    let bytes = regular_file::read(file, MAX_FILE_BYTES).map_err(|cause| cause.to_string())?;
    let text = String::from_utf8(bytes).map_err(|_| "cannot be read: is not UTF-8".to_owned())?;
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
