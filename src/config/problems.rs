//! Everything that is wrong in a configuration, as `FILE: KEY: what is wrong and what is allowed`.

use std::fmt;
use std::path::PathBuf;

/// One thing that is wrong in a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file that has the problem.
    pub file: PathBuf,
    /// The key with its parents, as in `protocol.uri`; empty for the file itself.
    pub key: String,
    /// What is wrong and what is allowed.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.key.as_str() {
            "" => write!(formatter, "{file}: {}", self.text),
            key => write!(formatter, "{file}: {key}: {}", self.text),
        }
    }
}

/// All problems of a configuration, in the order they were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(formatter, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

impl Problems {
    /// Returns `value` if there is no problem, otherwise all the problems.
    pub fn or<T>(self, value: T) -> Result<T, Problems> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}
