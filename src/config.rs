//! Reads a YAML configuration file into final types.
//!
//! A daemon's config module takes the keys of a [`Section`] one by one, each with its type, range and default. It
//! collects every [`Problem`] instead of stopping at the first. A key that the daemon does not take is a problem as
//! well.
//!
//! `${NAME}` in a string value is replaced by the environment variable NAME; `$${` stands for `${`.

mod environment;
mod file;
mod problems;
#[cfg(test)]
pub(crate) mod reference;
mod section;
mod values;

pub use problems::{Problem, Problems};
pub use section::Section;
